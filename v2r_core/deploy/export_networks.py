"""The networks that a learned reward runs besides the encoder, as ONNX graphs with a stored answer each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from v2r_core.deploy import graph
from v2r_core.deploy.bundle import InputSpec, NetworkSpec

OPSET = 18
"""Oldest that torch's exporter writes, and within what TensorRT 10 reads; 23 brings operators that it does not."""

TENSORS = "reward.safetensors"
MAX_ERROR = 1e-4
"""Largest difference to torch over the largest output."""

_SEED = 0
_ANSWER_VALUES = 64
_TOLERANCE = 1e-3  # as for the encoder: room for the TF32 arithmetic of GPUs


class ExportError(ValueError):
    """A network cannot be exported faithfully; the message has the number that was measured and its limit."""


class LearnedNetwork(Protocol):
    """A network in torch: see `v2r_core.methods.method.NetworkExport`."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def inputs(self) -> dict[str, Tensor]: ...
    @property
    def output(self) -> str: ...


@dataclass(frozen=True)
class LearnedParts:
    """What `export_networks` wrote.

    Attributes:
        networks: for the manifest.
        tensors: name of the file of tensors, None without any.
        files: names of all files that were written.
    """

    networks: dict[str, NetworkSpec]
    tensors: str | None
    files: list[str] = field(default_factory=list)


def export_networks(
    networks: Mapping[str, LearnedNetwork], tensors: Mapping[str, NDArray[Any]], folder: str | Path
) -> LearnedParts:
    """Writes the networks and tensors of a learned reward into a bundle's folder.

    Args:
        networks: by the names that the reward knows them by, which become file names.
        tensors: numbers that it needs besides.
        folder: exists.

    Raises:
        ExportError: a graph differs from torch by more than 1e-4, or has another opset than asked for.
    """
    target = Path(folder).expanduser()
    specs, files = {}, []
    for name, network in networks.items():
        file = f"{name}.onnx"
        specs[name] = _export(name, network, target / file)
        files.append(file)
    if tensors:
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, target / TENSORS)
        files.append(TENSORS)
    return LearnedParts(specs, TENSORS if tensors else None, files)


def checked_model(program: torch.onnx.ONNXProgram | None, name: str) -> onnx.ModelProto:
    """The model that the exporter made.

    Raises:
        ExportError: it has another opset: some versions raise it silently where an operator wants it.
    """
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    written = {item.domain: item.version for item in model.opset_import}
    if written != {"": OPSET}:
        raise ExportError(f"{name}: the exporter wrote opsets {written}, only {OPSET} asked for")
    return model


def _export(name: str, network: LearnedNetwork, file: Path) -> NetworkSpec:
    module = network.module.cpu().float().eval()
    # Copies: two inputs that are one tensor would become one input.
    inputs = {key: value.detach().cpu().clone() for key, value in network.inputs.items()}
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # It warns that the batch axes of all inputs get one name, which is what is asked for.
        warnings.filterwarnings("ignore", message=".*The axis name.*", category=UserWarning)
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[network.output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    file.write_bytes(graph.clean(checked_model(program, name)).SerializeToString(deterministic=True))
    described = {
        key: InputSpec(
            dtype="float32" if value.is_floating_point() else "int64",
            shape=tuple(value.shape[1:]),
            high=1 if value.is_floating_point() else int(value.max()) + 1,
        )
        for key, value in inputs.items()
    }
    draft = NetworkSpec(
        graph=file.name, inputs=described, output=network.output, seed=_SEED, answer=[0.0], tolerance=1.0, error=0.0
    )
    example = draft.example()
    with torch.inference_mode():
        expected = module(*(torch.from_numpy(value) for value in example.values())).float().numpy()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    error = 0.0
    # Alone and together: a graph that has the batch of its example burnt in fails here.
    for rows in (slice(0, 1), slice(0, 2)):
        found = session.run([network.output], {key: value[rows] for key, value in example.items()})[0]
        error = max(error, float(np.abs(found - expected[rows]).max() / max(float(np.abs(expected).max()), 1e-12)))
    if not error <= MAX_ERROR:
        raise ExportError(f"{name}: the graph differs from torch by {error:.2e}, at most {MAX_ERROR} allowed")
    answer = expected.ravel()[:_ANSWER_VALUES].tolist()
    return draft.model_copy(update={"answer": answer, "tolerance": _TOLERANCE, "error": error})
