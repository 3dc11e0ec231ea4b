"""A bundle with a network of a few numbers, so that tests of everything around it need neither weights nor torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from v2r_core.deploy.bundle import CheckSpec, EncoderSpec, Manifest, RewardSpec, write_manifest
from v2r_core.deploy.folder import PreprocessSpec, describe_files

SIZE = 32
GRID = 4
SEED = 7


def embed(frames: np.ndarray) -> np.ndarray:
    """What the graph computes, in numpy: means of 8x8 pixel blocks, divided by 255; float32 (N, 48)."""
    blocks = frames.astype(np.float32).reshape(len(frames), GRID, SIZE // GRID, GRID, SIZE // GRID, 3)
    return (blocks.mean(axis=(2, 4)) / 255).transpose(0, 3, 1, 2).reshape(len(frames), -1)


def tiny_model(factor: float = 1.0) -> onnx.ModelProto:
    """The graph: cast, transpose, average pool, scale, flatten."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Mul", ["pooled", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["embedding"]),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", GRID * GRID * 3])
    scale = numpy_helper.from_array(np.float32(factor / 255), "scale")
    graph = helper.make_graph(nodes, "tiny", [frames], [out], [scale])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_tiny_bundle(folder: Path, reward: str = "vip", factor: float = 1.0, **parameters: float) -> Path:
    """Writes the bundle and returns its folder.

    Args:
        folder: is created.
        reward: reward of the bundle.
        factor: multiplies the embeddings of the graph but not the stored answer: anything but 1 fails the self-check.
        parameters: of the reward.
    """
    folder.mkdir(parents=True)
    onnx.save(tiny_model(factor), folder / "encoder.fp32.onnx")
    (folder / "README.md").write_text("A test bundle.\n")
    image = np.random.default_rng(SEED).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    answer = embed(image)[0]
    manifest = Manifest(
        name="tiny",
        description="block means",
        software={},
        encoder=EncoderSpec(
            name="tiny",
            embedding_dim=answer.size,
            preprocess=PreprocessSpec(size=SIZE, mode="squash", resize_to=SIZE, mean=(0, 0, 0), std=(1, 1, 1)),
            opset=18,
            graphs={"fp32": "encoder.fp32.onnx"},
            weights_license="Apache-2.0",
            parity={},
        ),
        reward=RewardSpec(name=reward, parameters=parameters),
        check=CheckSpec(
            seed=SEED,
            embedding_head=[float(x) for x in answer[:8]],
            embedding_norm=float(np.linalg.norm(answer)),
            tolerance=1e-4,
            tolerance_fp16=1e-2,
        ),
        files=describe_files(folder, ["encoder.fp32.onnx", "README.md"]),
    )
    write_manifest(folder, manifest)
    return folder
