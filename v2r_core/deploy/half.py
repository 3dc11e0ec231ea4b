"""From a float32 graph to a mixed one: float16 where it is safe, float32 where it is not.

TensorRT 11 takes the precision from the graph, so it must stand there. ONNX Runtime ships a converter too; it brings
the result of each node that stays in float32 back to float16, also between two of them, which rounds inside the
decomposed normalisations that should be kept exact. Here a value is converted only where the precision changes.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_FLOAT16_MAX = 65504.0

KEEP_FLOAT32 = frozenset(
    {
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization"),
        *("LpNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal"),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
        *("ReduceProd", "GlobalAveragePool", "AveragePool", "CumSum"),
        # Types of some inputs or of the output are fixed for these, or set by an attribute.
        *("Resize", "Range", "TopK", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"),
    }
)
"""Operators that sum many terms, exponentiate, or have types of their own."""

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Identity"})
"""Operators that compute nothing: they stay in the precision in which their input comes."""


class HalfError(ValueError):
    """A graph cannot be converted; the message names the node and the remedy."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes the mixed-precision twin of a float32 graph.

    The inputs and outputs of the graph keep their types. What happens to the input before the first convolution or
    matrix product (scale and normalisation) stays in float32, as do the operators in `KEEP_FLOAT32`.

    Args:
        model: float32 graph with its weights inside, not changed.

    Returns:
        A new model.

    Raises:
        HalfError: the graph has control flow, or types that cannot be inferred.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    _Converter(half).run()
    onnx.checker.check_model(half, full_check=True)
    return half


def with_stored_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for measuring, in which a CPU rounds each float16 value as a GPU does when it stores it.

    ONNX Runtime has few float16 kernels for CPUs. It computes neighbouring nodes in float32 and removes the casts in
    between, so that nothing is rounded and no value overflows. Each float16 value passes through an Identity here,
    which does have a float16 kernel; run the copy with all graph optimisations disabled, they remove an Identity.

    Args:
        model: result of `to_half`, not changed.

    Returns:
        A new model with the same inputs and outputs.
    """
    slow = onnx.ModelProto()
    slow.CopyFrom(model)
    types = _value_types(slow)
    nodes = []
    for node in slow.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                node.output[index] = f"{name}.computed"
                nodes.append(helper.make_node("Identity", [node.output[index]], [name], f"Identity_{name}"))
    copies = [copy.deepcopy(node) for node in nodes]
    del slow.graph.node[:]
    slow.graph.node.extend(copies)
    return slow


class _Converter:
    """One conversion. `float16` is the set of values that are float16 by now; all other floats are float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.types = _value_types(model)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.float16: set[str] = set()
        self.converted: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[TensorProto] = []

    def run(self) -> None:
        nodes = list(self.graph.node)
        early = _before_first_product(self.graph, self.types)
        for node in nodes:
            if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
                raise HalfError(f"{node.name} ({node.op_type}): control flow cannot be converted; export fp32 only")
            keep = node.op_type in KEEP_FLOAT32 or node.name in early
            if node.op_type in _MOVES and node.input[0] not in self.constants:
                keep = node.input[0] not in self.float16
            self._convert(node, keep)
        self._restore_outputs()
        done = [copy.deepcopy(node) for node in self.nodes]
        del self.graph.node[:]
        self.graph.node.extend(done)
        self.graph.initializer.extend(self.added)
        self._drop_unused()

    def _convert(self, node: onnx.NodeProto, keep: bool) -> None:
        for index, name in enumerate(node.input):
            if name and self.types.get(name) == TensorProto.FLOAT:
                node.input[index] = self._as(name, TensorProto.FLOAT if keep else TensorProto.FLOAT16)
        self.nodes.append(node)
        if keep:
            return
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.type == attribute.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(_round(numpy_helper.to_array(attribute.t))))
        self.float16.update(name for name in node.output if self.types.get(name) == TensorProto.FLOAT)

    def _as(self, name: str, wanted: int) -> str:
        """The value in the wanted precision: itself, a rounded constant, or the output of a Cast, made once."""
        present = TensorProto.FLOAT16 if name in self.float16 else TensorProto.FLOAT
        if present == wanted:
            return name
        if (name, wanted) not in self.converted:
            suffix = "half" if wanted == TensorProto.FLOAT16 else "float"
            other = f"{name}.{suffix}"
            if name in self.constants:
                rounded = _round(numpy_helper.to_array(self.constants[name]))
                self.added.append(numpy_helper.from_array(rounded, other))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [other], f"Cast_{other}", to=wanted))
            self.converted[name, wanted] = other
        return self.converted[name, wanted]

    def _restore_outputs(self) -> None:
        """A graph output that became float16 is computed under another name and cast to the promised one."""
        for output in self.graph.output:
            if output.name not in self.float16:
                continue
            inner = f"{output.name}.half"
            for node in self.nodes:
                for names in (node.input, node.output):
                    for index, name in enumerate(names):
                        if name == output.name:
                            names[index] = inner
            self.nodes.append(helper.make_node("Cast", [inner], [output.name], "Cast_output", to=TensorProto.FLOAT))

    def _drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value in the graph."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise HalfError(f"types cannot be inferred ({str(error)[:200]}); export fp32 only") from error
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    for node in inferred.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise HalfError(f"{node.name} ({node.op_type}): type of {name} not known; export fp32 only")
    return types


def _before_first_product(graph: onnx.GraphProto, types: dict[str, int]) -> set[str]:
    """Names of the nodes through which the input's pixels pass before their first convolution or product."""
    reached = {value.name for value in graph.input}
    early = set()
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") or reached.isdisjoint(node.input):
            continue
        early.add(node.name)
        # Only pixels count: what follows from the input's shape is integers.
        reached.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
    return early


def _round(array: NDArray[np.generic]) -> NDArray[np.float16]:
    # Finite limits such as the -3.4e38 of a mask become float16's own limit instead of infinity.
    clipped = np.where(np.isfinite(array), np.clip(array, -_FLOAT16_MAX, _FLOAT16_MAX), array)
    return clipped.astype(np.float16)
