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

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from v2r_core.video.resize import Preprocess

MANIFEST = "bundle.json"
Precision = Literal["fp32", "fp16"]


class BundleError(ValueError):
    """A bundle is incomplete, changed or not understood; the message names the file and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessSpec(_Strict):
    """`Preprocess` as it is written to disk; the bounds keep an absurd file from allocating absurd memory."""

    size: int = Field(ge=16, le=2048)
    mode: Literal["squash", "crop"]
    resize_to: int = Field(ge=16, le=4096)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def preprocess(self) -> Preprocess:
        """The dataclass that `video.resize` works with."""
        return Preprocess(self.size, self.mode, self.resize_to, self.mean, self.std)


class FileSpec(_Strict):
    """Hash and length of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class EncoderSpec(_Strict):
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


class RewardSpec(_Strict):
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


class InputSpec(_Strict):
    """One input of a network, its batch axis left out; integers are below `high`."""

    dtype: Literal["float32", "int64"]
    shape: tuple[int, ...]
    high: int = Field(default=1, ge=1)


class NetworkSpec(_Strict):
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


class CheckSpec(_Strict):
    """A stored answer: after loading, one inference on a seeded image must give these first values.

    The image is `numpy.random.default_rng(seed).integers(0, 256, (1, S, S, 3), dtype=uint8)`.
    """

    seed: int
    embedding_head: list[float] = Field(min_length=4, max_length=64)
    embedding_norm: float
    tolerance: float = Field(gt=0, description="largest absolute difference over the norm, for fp32")
    tolerance_fp16: float = Field(gt=0)


class Manifest(_Strict):
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


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_files(folder: Path, names: list[str]) -> dict[str, FileSpec]:
    """Hash and length of each named file of the folder, for `Manifest.files`."""
    return {name: FileSpec(sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size) for name in names}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `bundle.json`, last of all files, by rename: a folder with a manifest is complete."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(text)
    partial.replace(folder / MANIFEST)


def load_bundle(path: str | Path) -> Bundle:
    """Opens a bundle and checks every file against its hash.

    Args:
        path: the bundle's folder.

    Raises:
        BundleError: folder or file missing, hash wrong, a name that leaves the folder, or a schema not understood.
    """
    folder = Path(path).expanduser()
    source = folder / MANIFEST
    if not source.is_file():
        raise BundleError(f"{folder}: no {MANIFEST} there; give the folder that `v2r export` wrote")
    raw = source.read_bytes()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{source}: {where or 'file'}: {first['msg']}; export the bundle again") from error
    needed = {*manifest.encoder.graphs.values(), *(spec.graph for spec in manifest.networks.values())}
    needed |= {name for name in (manifest.goal, manifest.tensors) if name}
    if missing := needed - set(manifest.files):
        raise BundleError(f"{source}: {sorted(missing)} used but not listed under files; export the bundle again")
    root = folder.resolve()
    for name, spec in manifest.files.items():
        check_file(root, name, spec)
    return Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())


def check_file(root: Path, name: str, spec: FileSpec) -> None:
    """Raises BundleError unless a file of a bundle lies in its folder, resolved, and is the one that was written."""
    file = root / name
    if not file.resolve().is_relative_to(root) or Path(name).is_absolute():
        raise BundleError(f"{root}: file name {name!r} leaves the bundle; do not use this bundle")
    if not file.is_file():
        raise BundleError(f"{file}: missing; copy the bundle again")
    if file.stat().st_size != spec.bytes:
        raise BundleError(f"{file}: {file.stat().st_size} bytes, {spec.bytes} expected; copy the bundle again")
    if (found := sha256_of(file)) != spec.sha256:
        raise BundleError(f"{file}: sha256 {found[:12]}..., {spec.sha256[:12]}... expected; copy the bundle again")
