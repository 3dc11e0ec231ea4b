"""Would TensorRT's ONNX parser take this graph? Asked at export, not on the robot.

The rules are those of onnx-tensorrt's operator table for TensorRT 10.1, the oldest one that is met on robots. A graph
that passes uses only what the table allows; the network definition may still be refused for reasons of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

OPSETS = range(9, 21)
MAX_TOP_K = 3840

UNSUPPORTED = frozenset(
    {
        *("AffineGrid", "Bernoulli", "BitShift", "BlackmanWindow", "CenterCropPad", "Col2Im", "Compress"),
        *("ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "HammingWindow", "HannWindow"),
        *("ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial"),
        *("NegativeLogLikelihoodLoss", "RegexFullMatch", "STFT", "SoftmaxCrossEntropyLoss", "SplitToSequence"),
        *("TfIdfVectorizer", "Unique"),
    }
)
UNSUPPORTED_PREFIXES = ("Bitwise", "Optional", "QLinear", "Sequence", "String")

# op: (input that must be a constant, its name); the remedy is the same for all of them.
_CONSTANT_INPUTS = {
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
    "Slice": (3, "axes"),
    "Pad": (3, "axes"),
    "CumSum": (1, "axis"),
    "OneHot": (1, "depth"),
    **{
        f"Reduce{kind}": (1, "axes")
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}

Finding = tuple[str, str]
"""What is wrong (with the attribute or input's name), and what to do about it."""


class TensorRTError(ValueError):
    """TensorRT would refuse the graph; the message names node, operator, attribute and remedy."""


def check_tensorrt(model: onnx.ModelProto | str | Path) -> None:
    """Refuses a graph that is outside of what TensorRT's ONNX parser takes.

    Args:
        model: the model, or its file; weights in other files are not read.

    Raises:
        TensorRTError: for the first node that breaks a rule.
    """
    import onnx  # noqa: PLC0415 (needed to export, not to run)

    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model, load_external_data=False)
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx") and item.version not in OPSETS:
            raise TensorRTError(
                f"opset {item.version}: TensorRT reads {OPSETS[0]} to {OPSETS[-1]}; export with opset 18"
            )
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise TensorRTError(
                f"{_title(node)}: domain {node.domain!r}; only a plugin could run it: use standard operators"
            )
    facts = _Facts(onnx, model)
    for value in [*model.graph.input, *model.graph.output]:
        element = facts.types.get(value.name, 0)
        if finding := _check_type(onnx.TensorProto, element, "network input or output", network=True):
            raise TensorRTError(f"{value.name}: {finding[0]}; {finding[1]}")
    for node in model.graph.node:
        finding = _check_node(node, facts)
        if finding is not None:
            raise TensorRTError(f"{_title(node)}: {finding[0]}; {finding[1]}")


class _Facts:
    """What the rules ask about values: constants, element types, shapes (None where a length is free)."""

    def __init__(self, onnx: ModuleType, model: onnx.ModelProto) -> None:
        self.onnx = onnx
        graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.shapes = {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            ]
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self.shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for item in node.attribute:
                if node.op_type == "Constant" and item.name == "value":
                    self.constants[node.output[0]] = item.t

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def value(self, name: str) -> NDArray[Any]:
        return self.onnx.numpy_helper.to_array(self.constants[name])


def _check_node(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    if node.op_type in UNSUPPORTED or node.op_type.startswith(UNSUPPORTED_PREFIXES):
        return "not supported by TensorRT", "compute it on the host, or write the network without it"
    if node.op_type in _CONSTANT_INPUTS:
        index, name = _CONSTANT_INPUTS[node.op_type]
        given = _input(node, index)
        if given and not facts.is_constant(given):
            return f"input {name} is computed", "make it a constant: fix the shape that it depends on"
    rule = _RULES.get(node.op_type)
    finding = rule(node, facts) if rule else None
    return finding or _check_types(node, facts)


def _check_types(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    kinds = facts.onnx.TensorProto
    for name in [*node.input, *node.output]:
        element = facts.types.get(name, 0)
        network = name in facts.inputs or name in facts.outputs
        if finding := _check_type(kinds, element, f"value {name}", network):
            return finding
        if element == kinds.UINT8 and node.op_type != "Cast":
            return f"reads or writes uint8 ({name})", "cast the network's uint8 input at once"
        quantised = element in (kinds.INT8, kinds.INT4, kinds.FLOAT8E4M3FN)
        if quantised and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return f"8 or 4 bit value {name}", "use QuantizeLinear and DequantizeLinear around float operators"
    return None


def _check_type(kinds: Any, element: int, what: str, network: bool) -> Finding | None:
    if element == kinds.DOUBLE:
        return f"{what} is DOUBLE", "TensorRT would compute in float32 silently: export the network in float32"
    taken = {
        *(kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.INT32, kinds.INT64),
        *(kinds.BOOL, kinds.INT8, kinds.INT4, kinds.FLOAT8E4M3FN, kinds.UNDEFINED),
    }
    if element in taken or (network and element == kinds.UINT8):
        return None
    return f"{what} is {kinds.DataType.Name(element)}", "use float32, float16, int32, int64 or bool inside"


def _resize(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    remedy = "resize position embeddings before export and images on the host"
    if (mode := _attribute(node, "mode", b"nearest")) not in (b"nearest", b"linear"):
        return f"attribute mode is {mode.decode()}, nearest or linear taken", remedy
    if _attribute(node, "antialias", 0):
        return "attribute antialias is 1", remedy
    if (policy := _attribute(node, "keep_aspect_ratio_policy", b"stretch")) != b"stretch":
        return f"attribute keep_aspect_ratio_policy is {policy.decode()}, stretch taken", remedy
    return None


def _top_k(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    if not _attribute(node, "sorted", 1):
        return "attribute sorted is 0", "ask for sorted results"
    if facts.is_constant(node.input[1]) and (k := int(facts.value(node.input[1]).reshape(-1)[0])) >= MAX_TOP_K:
        return f"input K is {k}, below {MAX_TOP_K} taken", "use a smaller K, or search on the host"
    return None


def _layer_norm(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    if any(node.output[1:]):
        return "outputs Mean and InvStdDev are used", "use the first output only"
    return None


def _pool(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    if len(kernel := _attribute(node, "kernel_shape", [])) not in (2, 3):
        return f"attribute kernel_shape has {len(kernel)} axes, 2 or 3 taken", "add an axis of length 1"
    dilations = _attribute(node, "dilations", [])
    if any(step != 1 for step in dilations):
        return f"attribute dilations is {list(dilations)}", "use a pool without dilation"
    if any(node.output[1:]):
        return "output Indices is used", "use the first output only"
    return None


def _scatter_nd(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    if (reduction := _attribute(node, "reduction", b"none")) != b"none":
        return f"attribute reduction is {reduction.decode()}, none taken", "leave what updates the network out"
    return None


def _grid_sample(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    shape = facts.shapes.get(node.input[0])
    if shape is not None and len(shape) != 4:
        return f"input X has {len(shape)} axes, 4 taken", "keep augmentations out of the graph"
    return None


def _eye_like(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    shape = facts.shapes.get(node.input[0])
    if shape is None or None in shape:
        return "shape of the input is not fixed", "use a constant"
    return None


def _dropout(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    name = _input(node, 2)
    if name and not (facts.is_constant(name) and not np.any(facts.value(name))):
        return "input training_mode is not a constant False", "export in evaluation mode"
    return None


def _random(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    return "the attribute seed is ignored", "give the noise as an input"


def _control_flow(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    return "control flow", "unroll it, or loop on the host"


def _data_dependent(node: onnx.NodeProto, facts: _Facts) -> Finding | None:
    return "the shape of the output depends on the data", "export the network without masks"


_RULES: dict[str, Callable[[Any, _Facts], Finding | None]] = {
    "Resize": _resize,
    "TopK": _top_k,
    "LayerNormalization": _layer_norm,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "ScatterND": _scatter_nd,
    "GridSample": _grid_sample,
    "EyeLike": _eye_like,
    "Dropout": _dropout,
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _random),
    **dict.fromkeys(("Loop", "If", "Scan"), _control_flow),
    **dict.fromkeys(("NonZero", "NonMaxSuppression"), _data_dependent),
}


def _title(node: onnx.NodeProto) -> str:
    return f"{node.name or node.output[0]} ({node.op_type})"


def _input(node: onnx.NodeProto, index: int) -> str:
    """Name of an input; empty if it is not given."""
    return node.input[index] if index < len(node.input) else ""


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute, bytes where it is a string."""
    for item in node.attribute:
        if item.name == name:
            # The fields are exclusive in practice: the type tells which one holds the value.
            return {1: item.f, 2: item.i, 3: item.s, 7: list(item.ints)}.get(item.type, default)
    return default
