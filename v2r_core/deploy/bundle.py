"""A bundle: everything that a robot needs to turn frames into rewards, in one folder, every file with its hash.

bundle.json           this module's schema
encoder.fp32.onnx     uint8 NHWC frames in, float32 embeddings out; cast and normalisation inside
encoder.fp16.onnx     the same in half precision (LayerNorm, Softmax and reductions in float32)
encoder.weights.bin   optional: weights that the two graphs share
goal.safetensors      optional: goal, subgoals and calibration
<network>.onnx        optional: what a learned reward runs besides the encoder, in float32
reward.safetensors    optional: numbers that it needs, such as a codebook
README.md             the card
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file

from v2r_core.deploy.folder import (
    BundleError,
    FileSpec,
    PreprocessSpec,
    Strict,
    check_files,
    read_manifest,
    write_manifest_file,
)
from v2r_core.video.resize import Preprocess

MANIFEST = "bundle.json"
Precision = Literal["fp32", "fp16"]


class EncoderSpec(Strict):
    """What the ONNX graphs are.

    `parity` holds the numbers measured at export: `fp32_max_rel_error` (largest absolute difference to torch over
    the largest absolute output), `fp16_min_cosine`, and `rounding_min_cosine` where the weights were rounded.
    """

    name: str
    embedding_dim: int = Field(ge=1)
    preprocess: PreprocessSpec
    opset: int
    graphs: dict[Precision, str]
    weights_license: str
    parity: dict[str, float]


class RewardSpec(Strict):
    """Which reward is computed on the embeddings, and its parameters (fields of the reward's class)."""

    name: Literal["vip", "uvd", "pixel", "time", "viper", "diffusion"]
    kind: Literal["value", "step_reward"] = "value"
    parameters: dict[str, float | int | str | bool] = Field(default_factory=dict)
    rate: float | None = Field(
        default=None, gt=0, description="frames a second at which a window's frames follow each other, as in training"
    )


def reward_spec(name: str, parameters: Mapping[str, float | int | str | bool], fps: float | None = None) -> RewardSpec:
    """The entry of a reward that was learned.

    Args:
        name: of the reward.
        parameters: of its class.
        fps: frames a second of the training videos, None where they have no rate.

    Raises:
        pydantic.ValidationError: no such reward.
    """
    density = name in ("viper", "diffusion")
    stride = parameters.get("stride", 1)
    rate = fps / float(stride) if density and fps else None
    kind = "step_reward" if density else "value"
    return RewardSpec.model_validate({"name": name, "kind": kind, "parameters": dict(parameters), "rate": rate})


class InputSpec(Strict):
    """One input of a network, its batch axis left out; integers are below `high`."""

    dtype: Literal["float32", "int64"]
    shape: tuple[int, ...]
    high: int = Field(default=1, ge=1)


class NetworkSpec(Strict):
    """A network besides the encoder, with a stored answer as `CheckSpec` has it.

    Its inputs are drawn one after the other from `numpy.random.default_rng(seed)`, two rows each: standard normal
    numbers, or `integers(0, high)`.
    """

    graph: str
    inputs: dict[str, InputSpec] = Field(min_length=1)
    output: str
    seed: int
    answer: list[float] = Field(min_length=1, max_length=64, description="first values, C order")
    tolerance: float = Field(gt=0, description="largest absolute difference over the largest absolute value")
    error: float = Field(ge=0, description="measured at export against torch, in the same measure")

    def example(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """The inputs of the stored answer."""
        rng = np.random.default_rng(self.seed)
        drawn: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {}
        for name, spec in self.inputs.items():
            shape = (2, *spec.shape)
            if spec.dtype == "int64":
                drawn[name] = rng.integers(0, spec.high, shape)
            else:
                drawn[name] = rng.standard_normal(shape).astype(np.float32)
        return drawn


class CheckSpec(Strict):
    """A stored answer: after loading, one inference on a seeded image must give these first values.

    The image is `numpy.random.default_rng(seed).integers(0, 256, (1, S, S, 3), dtype=uint8)`.
    """

    seed: int
    embedding_head: list[float] = Field(min_length=4, max_length=64)
    embedding_norm: float
    tolerance: float = Field(gt=0, description="largest absolute difference over the norm, for fp32")
    tolerance_fp16: float = Field(gt=0)


class Manifest(Strict):
    """The content of `bundle.json`."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    description: str
    software: dict[str, str] = Field(description="versions that wrote the bundle")
    encoder: EncoderSpec
    reward: RewardSpec
    goal: str | None = None
    networks: dict[str, NetworkSpec] = Field(default_factory=dict)
    tensors: str | None = None
    check: CheckSpec
    training: dict[str, str] = Field(default_factory=dict, description="data and recipe, or where the weights are from")
    quality: dict[str, float] = Field(default_factory=dict, description="measured reward quality")
    files: dict[str, FileSpec]


class Bundle:
    """A bundle whose every file was found unchanged.

    Attributes:
        path: the folder.
        manifest: the validated `bundle.json`.
        sha256: hash of `bundle.json`, which holds all other hashes: the identity of the whole.
    """

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256

    def graph(self, precision: Precision) -> Path:
        """Path of the ONNX graph of that precision.

        Raises:
            BundleError: the bundle has none; the message lists those it has.
        """
        graphs = self.manifest.encoder.graphs
        if precision not in graphs:
            raise BundleError(f"{self.path}: no {precision} graph; this bundle has {sorted(graphs)}")
        return self.path / graphs[precision]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What the reward needs besides networks; empty if it needs nothing.

        Raises:
            BundleError: the file is damaged.
        """
        if self.manifest.tensors is None:
            return {}
        try:
            return load_file(self.path / self.manifest.tensors)
        except SafetensorError as error:
            raise BundleError(f"{self.path / self.manifest.tensors}: {error}; export the bundle again") from error

    @property
    def preprocess(self) -> Preprocess:
        """What to do with a frame before it goes into the graph."""
        return self.manifest.encoder.preprocess.preprocess()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `bundle.json`, see `folder.write_manifest_file`."""
    write_manifest_file(folder, MANIFEST, manifest)


def load_bundle(path: str | Path) -> Bundle:
    """Opens a bundle and checks every file against its hash.

    Args:
        path: the bundle's folder.

    Raises:
        BundleError: folder or file missing, hash wrong, a name that leaves the folder, or a schema not understood.
    """
    folder = Path(path).expanduser()
    manifest, sha256 = read_manifest(folder, MANIFEST, Manifest, "bundle")
    needed = {*manifest.encoder.graphs.values(), *(spec.graph for spec in manifest.networks.values())}
    needed |= {name for name in (manifest.goal, manifest.tensors) if name}
    check_files(folder, MANIFEST, manifest.files, needed, "bundle")
    return Bundle(folder, manifest, sha256)
