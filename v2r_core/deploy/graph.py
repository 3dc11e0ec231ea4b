"""Work on ONNX graphs after the exporter: names and notes cleaned, weights shared between graphs in one file."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_ALIGNMENT = 64
_SHARED_FROM = 256
"""Elements; smaller tensors stay in the graph, where each costs less than its entry in a table would."""


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes everything that says where and from what a graph was made, and numbers its nodes.

    The exporter notes the source line of each node, with the folders of the machine it ran on. None of it is needed
    to run the graph, and without it the same network gives the same bytes everywhere.

    Args:
        model: changed in place.

    Returns:
        The same object.
    """
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    graph.doc_string = ""
    graph.name = "encoder"
    for item in [*graph.input, *graph.output, *graph.initializer, *graph.node]:
        del item.metadata_props[:]
        item.doc_string = ""
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for attribute in node.attribute:
            attribute.doc_string = ""
    return model


def read_input_by_cast(model: onnx.ModelProto) -> None:
    """Lets the one Cast of the uint8 input be its only reader; others, such as Shape, read the Cast's output instead.

    TensorRT takes uint8 as a network input that is cast at once, and for nothing else.

    Args:
        model: changed in place; left alone if the input is not cast.
    """
    graph = model.graph
    source = graph.input[0].name
    position = next(
        (i for i, node in enumerate(graph.node) if node.op_type == "Cast" and node.input[0] == source), None
    )
    if position is None:
        return
    cast = onnx.NodeProto()
    cast.CopyFrom(graph.node[position])
    del graph.node[position]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == source:
                node.input[index] = cast.output[0]
    graph.node.insert(0, cast)


class WeightFile:
    """Collects tensors for one file of raw bytes that several graphs refer to; equal contents are stored once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, array: NDArray[np.generic]) -> tuple[int, int]:
        """Stores an array if it is new, and returns its offset and length in bytes."""
        raw = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(str(array.dtype).encode() + raw).hexdigest()
        if key not in self._places:
            padding = -self._length % _ALIGNMENT
            self._pieces += [b"\0" * padding, raw]
            self._places[key] = (self._length + padding, len(raw))
            self._length += padding + len(raw)
        return self._places[key]

    def write(self, path: Path) -> None:
        """Writes the file."""
        path.write_bytes(b"".join(self._pieces))


def share_weights(model: onnx.ModelProto, weights: WeightFile, location: str) -> None:
    """Moves the weights of a graph, as float16, into a shared file.

    Where the graph computes in float32, a Cast brings the stored float16 back; it hangs on a constant, so the run time
    computes it once, while loading. A float32 tensor that float16 cannot represent exactly stays in the graph.

    Args:
        model: changed in place.
        weights: receives the tensors.
        location: name that the file will have, beside the graph.
    """
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size < _SHARED_FROM or array.dtype not in (np.float32, np.float16):
            continue
        half = array.astype(np.float16)
        if array.dtype == np.float32:
            if not np.array_equal(half.astype(np.float32), array):
                continue
            stored = f"{tensor.name}.stored"
            casts.append(helper.make_node("Cast", [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.name = stored
        offset, length = weights.add(half)
        tensor.data_type = onnx.TensorProto.FLOAT16
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    nodes = [*casts, *(copy.deepcopy(node) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
