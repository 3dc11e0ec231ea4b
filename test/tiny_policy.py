"""Policies of a few numbers: one steers a bright blob to its mark, one multiplies embeddings by a matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import GRID, SIZE, tiny_model

from v2r_core.deploy.policy import write_policy
from v2r_core.video.resize import Preprocess

GAIN = 4.0
MARK = (0.5, -0.3)
STACK = 3
EMBEDDING = GRID * GRID * 3


def grid(size: int) -> np.ndarray:
    """Columns x, y and 1 of every pixel of a size x size image, row by row; x and y run from -1 to 1."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return np.stack([x.ravel(), y.ravel(), np.ones(size * size, np.float32)], axis=1)


def seeker(size: int = 32, mark: tuple[float, float] = MARK) -> bytes:
    """An actor on one frame: from the centre of mass of its red to the mark. Without any red it gives NaN."""
    constants = {
        "channel": np.array(0),
        "flat": np.array([-1, size * size]),
        "grid": grid(size),
        "parts": np.array([2, 1]),
        "mark": np.asarray(mark, np.float32),
        "gain": np.float32(GAIN),
    }
    nodes = [
        helper.make_node("Gather", ["observation", "channel"], ["red"], axis=1),
        helper.make_node("Cast", ["red"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["cast", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "grid"], ["moments"]),
        helper.make_node("Split", ["moments", "parts"], ["sum", "mass"], axis=1),
        helper.make_node("Div", ["sum", "mass"], ["centre"]),
        helper.make_node("Sub", ["mark", "centre"], ["way"]),
        helper.make_node("Mul", ["way", "gain"], ["action"]),
    ]
    return _model(nodes, constants, TensorProto.UINT8, ["batch", 3, size, size], 2)


def matrix() -> np.ndarray:
    """What the embedding policy multiplies its three embeddings by: float32 (3 * 48, 2)."""
    return np.random.default_rng(3).normal(0, 0.05, (STACK * EMBEDDING, 2)).astype(np.float32)


def linear() -> bytes:
    """An actor on three embeddings."""
    nodes = [helper.make_node("MatMul", ["observation", "weights"], ["action"])]
    return _model(nodes, {"weights": matrix()}, TensorProto.FLOAT, ["batch", STACK * EMBEDDING], 2)


def _model(nodes: list, constants: dict, kind: int, shape: list, dim: int) -> bytes:
    given = helper.make_tensor_value_info("observation", kind, shape)
    taken = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", dim])
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "actor", [given], [taken], initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def write_seeker(folder: Path, rate: float = 20.0, size: int = 32, **changes: object) -> Path:
    """Writes the blob's policy and returns its folder; keywords change arguments of `write_policy`."""
    arguments: dict = {
        "name": "seeker",
        "description": "steers the red blob to its mark",
        "actor": seeker(size),
        "action_dim": 2,
        "rate": rate,
        "preprocess": Preprocess(size),
        "frame_stack": 1,
        "training": {"method": "none"},
    }
    write_policy(folder, **arguments | changes)
    return folder


def write_linear(folder: Path, **changes: object) -> Path:
    """Writes the embedding's policy and returns its folder."""
    arguments: dict = {
        "name": "linear",
        "description": "three embeddings times a matrix",
        "actor": linear(),
        "encoder": tiny_model().SerializeToString(),
        "action_dim": 2,
        "rate": 10.0,
        "preprocess": Preprocess(SIZE),
        "frame_stack": STACK,
    }
    write_policy(folder, **arguments | changes)
    return folder


def blob(x: float, y: float, size: int = 48) -> np.ndarray:
    """A frame with the red blob there, in [-1, 1], and the green mark; uint8 (size, size, 3)."""
    positions = grid(size)

    def bump(at: tuple[float, float], width: float) -> np.ndarray:
        distance = np.linalg.norm(positions[:, :2] - np.asarray(at), axis=1)
        return np.clip(1 - distance / width, 0, 1).reshape(size, size)

    red, green = bump((x, y), 0.35), bump(MARK, 0.15)
    return (255 * np.stack([red, green, np.zeros_like(red)], axis=-1)).astype(np.uint8)
