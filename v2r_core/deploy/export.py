"""From an encoder in torch to a bundle that a robot can load.

The order: a copy of the encoder is put into evaluation mode, its batch norms are folded in float64, its weights are
rounded if half weights are asked for. What came out is *the* encoder from then on: it is what the graphs compute, and
what goals must be embedded with. Both graphs are then compared with it in ONNX Runtime, loaded from their files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from v2r_core.deploy import graph
from v2r_core.deploy.bundle import (
    MANIFEST,
    Bundle,
    CheckSpec,
    EncoderSpec,
    Manifest,
    Precision,
    RewardSpec,
    load_bundle,
    write_manifest,
)
from v2r_core.deploy.card import CARD, write_card
from v2r_core.deploy.export_networks import OPSET, ExportError, LearnedParts, checked_model
from v2r_core.deploy.folder import PreprocessSpec, describe_files
from v2r_core.deploy.half import to_half, with_stored_halves
from v2r_core.deploy.tensorrt_check import check_tensorrt
from v2r_core.encoders.encoder import Encoder, numpy_embed
from v2r_core.encoders.fold import fold_batch_norm, plain_pooling, round_weights

GRAPHS: dict[Precision, str] = {"fp32": "encoder.fp32.onnx", "fp16": "encoder.fp16.onnx"}
WEIGHTS = "encoder.weights.bin"

MAX_FP32_ERROR = 1e-4
"""Largest difference to torch over the largest output."""
MIN_FP16_COSINE = 0.999
MIN_ROUNDING_COSINE = 0.999

CHECK_SEED = 0
_CHECK_VALUES = 64
_CHECK_TOLERANCE = 1e-3  # leaves room for the TF32 arithmetic of GPUs; wrong weights or colours differ by 1e-1
_CHECK_TOLERANCE_FP16 = 2e-3
_CHECK_MARGIN = 5.0  # times the error that was measured here, where that is more
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ExportedEncoder:
    """What `export_encoder` made.

    Attributes:
        encoder: the encoder that the graphs compute: folded, rounded if asked for, in evaluation mode on the CPU.
            Embed goals with this one.
        spec: for the manifest, with the measured parity.
        check: for the manifest, the stored answer.
        half_weights: True if the weights were rounded to float16.
        files: names of the files that were written.
    """

    encoder: Encoder
    spec: EncoderSpec
    check: CheckSpec
    half_weights: bool
    files: list[str]


def export_encoder(
    encoder: Encoder, folder: str | Path, half_weights: bool = False, force: bool = False
) -> ExportedEncoder:
    """Writes the float32 and the mixed float16 graph of an encoder and measures both against torch.

    The graphs have one input, `frames`, uint8 (batch, S, S, 3) with a free batch, and one output, `embedding`, float32
    (batch, D). Exporting the same encoder twice with the same packages gives the same bytes.

    Args:
        encoder: any encoder; it is not changed.
        folder: made if need be.
        half_weights: round the weights to float16, and keep them in one file that both graphs share: a third of the
            size of two graphs of their own. The rounding changes the encoder slightly (`rounding_min_cosine`).
        force: overwrite the bundle that is in the folder.

    Returns:
        The encoder as exported, and the records for the manifest.

    Raises:
        ExportError: a graph differs from torch by more than the limits above, or has another opset than asked for;
            or the folder holds a bundle.
        FoldError, HalfError, TensorRTError: the network has something that cannot be folded, converted or deployed.
    """
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    if (target / MANIFEST).exists():
        if not force:
            raise ExportError(f"{target}: there is a bundle already; give another folder, or force to overwrite it")
        (target / MANIFEST).unlink()
    size = encoder.preprocess.size
    probes = np.concatenate([probe_frames(size), check_image(size)])
    parity: dict[str, float] = {}
    ready = _prepare(encoder, probes)
    expected = numpy_embed(ready)(probes)
    if half_weights:
        round_weights(ready.backbone)
        rounded = numpy_embed(ready)(probes)
        parity["rounding_min_cosine"] = _min_cosine(rounded, expected)
        if not parity["rounding_min_cosine"] >= MIN_ROUNDING_COSINE:
            raise ExportError(
                f"{encoder.name}: with weights rounded to float16 the cosine falls to "
                f"{parity['rounding_min_cosine']:.6f}, {MIN_ROUNDING_COSINE} needed; export without half weights"
            )
        expected = rounded
    single = _to_onnx(ready)
    half = to_half(single)
    # Measured before the weights move into a file of their own, which a model in memory could not find.
    stored = _run(with_stored_halves(half).SerializeToString(), probes, optimise=False)
    files = _write_graphs({"fp32": single, "fp16": half}, target, half_weights)
    parity["fp32_max_rel_error"] = _check_fp32(_run(target / GRAPHS["fp32"], probes), expected, encoder.name)
    loaded = _run(target / GRAPHS["fp16"], probes)
    parity["fp16_min_cosine"] = min(_check_fp16(found, expected, encoder.name) for found in (stored, loaded))
    spec = EncoderSpec(
        name=encoder.name,
        embedding_dim=encoder.embedding_dim,
        preprocess=PreprocessSpec(**vars(encoder.preprocess)),
        opset=OPSET,
        graphs=GRAPHS,
        weights_license=encoder.weights.license,
        parity=parity,
    )
    return ExportedEncoder(ready, spec, _stored_answer(expected[-1], stored[-1]), half_weights, files)


def export_bundle(
    exported: ExportedEncoder,
    folder: str | Path,
    *,
    name: str,
    reward: RewardSpec,
    description: str = "",
    goal: str | None = None,
    learned: LearnedParts | None = None,
    other_files: Sequence[str] = (),
    training: Mapping[str, str] | None = None,
    quality: Mapping[str, float] | None = None,
) -> Bundle:
    """Completes the folder that `export_encoder` wrote to a bundle, and loads it again, which checks every hash.

    Between the two calls a caller may embed a goal with `exported.encoder` and put its file into the folder.

    Args:
        exported: what `export_encoder` returned for this folder.
        folder: the same folder.
        name: identifier of the bundle: letters, digits, dot, dash, underscore.
        reward: which reward the robot shall compute.
        description: one sentence for people; a default tells encoder and reward.
        goal: name of a goal file that lies in the folder already.
        learned: what `export_networks` wrote into the folder, for a reward with networks of its own.
        other_files: names of further files in the folder that belong to the bundle, such as pictures of the goal.
        training: data and recipe; where the weights are from is added to it.
        quality: measured reward quality.
    """
    target = Path(folder).expanduser()
    extra = learned or LearnedParts({}, None)
    manifest = Manifest(
        name=name,
        description=description or f"Frames to embeddings ({exported.encoder.name}) to a reward ({reward.name}).",
        software={package: version(package) for package in _PACKAGES},
        encoder=exported.spec,
        reward=reward,
        goal=goal,
        networks=extra.networks,
        tensors=extra.tensors,
        check=exported.check,
        training={**_provenance(exported), **(training or {})},
        quality=dict(quality or {}),
        files={},
    )
    write_card(target, manifest)
    names = [*exported.files, *extra.files, CARD, *([goal] if goal else []), *other_files]
    write_manifest(target, manifest.model_copy(update={"files": describe_files(target, names)}))
    return load_bundle(target)


def probe_frames(size: int, seed: int = CHECK_SEED) -> NDArray[np.uint8]:
    """Frames to measure parity on: four with the spectrum of photographs, two of noise, one dark, one of a blank wall.

    The wall has the noise of a sensor. A frame of one exact colour is left out: no camera makes one, and hardly
    anything is left of such a frame behind the first layers, so that its embedding measures rounding alone.

    Args:
        size: side in pixels.
        seed: of all of them.

    Returns:
        uint8 RGB, shape (8, size, size, 3).
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    falloff = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / size)[..., None]
    frames = []
    for _ in range(4):
        noise = np.fft.fft2(rng.standard_normal((size, size, 3)), axes=(0, 1))
        picture = np.fft.ifft2(noise * falloff, axes=(0, 1)).real
        picture = (picture - picture.mean()) / picture.std()
        frames.append(np.clip(rng.uniform(70, 180) + rng.uniform(20, 60) * picture, 0, 255))
    frames += [rng.integers(0, 256, (size, size, 3)) for _ in range(2)]
    frames += [rng.integers(0, 4, (size, size, 3)), 128 + 3 * rng.standard_normal((size, size, 3))]
    return np.stack(frames).astype(np.uint8)


def check_image(size: int) -> NDArray[np.uint8]:
    """The image of the stored answer, as `CheckSpec` describes it: uint8 RGB, shape (1, size, size, 3)."""
    return np.random.default_rng(CHECK_SEED).integers(0, 256, (1, size, size, 3), dtype=np.uint8)


def _prepare(encoder: Encoder, probes: NDArray[np.uint8]) -> Encoder:
    """A copy on the CPU, in evaluation mode, with batch norms folded."""
    cpu = copy.deepcopy(encoder).cpu().float().eval()
    images = torch.from_numpy(probes[:2]).permute(0, 3, 1, 2).float() / 255.0
    backbone = fold_batch_norm(cpu.backbone, (images - cpu.mean) / cpu.std)
    plain_pooling(backbone)
    ready = Encoder(encoder.name, backbone, encoder.preprocess, encoder.embedding_dim, encoder.weights).eval()
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
    return ready


def _to_onnx(encoder: Encoder) -> onnx.ModelProto:
    size = encoder.preprocess.size
    program = torch.onnx.export(
        encoder,
        (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["frames"],
        output_names=["embedding"],
        dynamic_shapes={"frames": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    model = checked_model(program, encoder.name)
    graph.read_input_by_cast(model)
    return graph.clean(model)


def _write_graphs(models: dict[Precision, onnx.ModelProto], folder: Path, half_weights: bool) -> list[str]:
    weights = graph.WeightFile()
    for precision, model in models.items():
        if half_weights:
            graph.share_weights(model, weights, WEIGHTS)
        graph.clean(model)
        check_tensorrt(model)
        (folder / GRAPHS[precision]).write_bytes(model.SerializeToString(deterministic=True))
    if half_weights:
        weights.write(folder / WEIGHTS)
    return [*GRAPHS.values(), *([WEIGHTS] if half_weights else [])]


def _check_fp32(found: NDArray[np.float32], expected: NDArray[np.float32], name: str) -> float:
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= MAX_FP32_ERROR:  # written so that NaN fails
        raise ExportError(f"{name}: the fp32 graph differs from torch by {error:.2e}, at most {MAX_FP32_ERROR} allowed")
    return error


def _check_fp16(found: NDArray[np.float32], expected: NDArray[np.float32], name: str) -> float:
    cosine = _min_cosine(found, expected)
    if not cosine >= MIN_FP16_COSINE:
        raise ExportError(f"{name}: the fp16 graph has cosine {cosine:.6f} to torch, {MIN_FP16_COSINE} needed")
    return cosine


def _run(model: Path | bytes, probes: NDArray[np.uint8], optimise: bool = True) -> NDArray[np.float32]:
    """Embeddings of the probes by a graph: the first one alone, the others three at a time."""
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batches = [probes[:1], *(probes[start : start + 3] for start in range(1, len(probes), 3))]
    return np.concatenate([session.run(["embedding"], {"frames": batch})[0] for batch in batches])


def _min_cosine(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.min(np.sum(found * expected, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)))


def _stored_answer(expected: NDArray[np.float32], half: NDArray[np.float32]) -> CheckSpec:
    """What `check_image` gives, in torch and in float16, each of shape (D,)."""
    head, norm = expected[:_CHECK_VALUES], float(np.linalg.norm(expected))
    measured = float(np.abs(half[:_CHECK_VALUES] - head).max()) / norm
    return CheckSpec(
        seed=CHECK_SEED,
        embedding_head=[float(value) for value in head],
        embedding_norm=norm,
        tolerance=_CHECK_TOLERANCE,
        tolerance_fp16=max(_CHECK_TOLERANCE_FP16, _CHECK_MARGIN * measured),
    )


def _provenance(exported: ExportedEncoder) -> dict[str, str]:
    info = exported.encoder.weights
    changes = "classifier removed, batch norm folded" + (", rounded to float16" if exported.half_weights else "")
    facts = {"weights": info.source, "attribution": info.attribution, "sha256": info.sha256, "changes": changes}
    return {key: value for key, value in facts.items() if value}
