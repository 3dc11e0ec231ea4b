"""Bundles of learned rewards with networks of a few numbers, on top of tiny_bundle.py: no torch, no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tiny_bundle import write_tiny_bundle

from v2r_core.deploy.bundle import InputSpec, NetworkSpec, load_bundle, reward_spec, write_manifest
from v2r_core.deploy.folder import describe_files

CODES, LATENT, TOKENS, WINDOW, STEPS = 8, 3, 16, 4, 10
PARAMETERS: dict[str, dict[str, float | int | str]] = {
    "time": {},
    "viper": {"frames": WINDOW, "stride": 2},
    "diffusion": {"steps": STEPS, "skip_step": 3, "stride": 2},
}
LENGTH = {"time": 1, "viper": WINDOW, "diffusion": 2}
"""Frames of each reward's window."""


def write_learned_bundle(folder: Path, reward: str, rate: float | None = None, **parameters: float | int | str) -> Path:
    """Writes the bundle and returns its folder.

    Args:
        folder: is created.
        reward: time, viper or diffusion.
        rate: frames a second that the window wants.
        parameters: of the reward, besides those above.
    """
    write_tiny_bundle(folder)
    name, inputs, model = {"time": _pair, "viper": _likelihood, "diffusion": _denoiser}[reward]()
    onnx.save(model, folder / f"{name}.onnx")
    draft = NetworkSpec(
        graph=f"{name}.onnx", inputs=inputs, output="out", seed=3, answer=[0.0], tolerance=1e-3, error=0.0
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer = session.run(["out"], draft.example())[0].ravel()[:8].tolist()
    # Codes of the frames of `moving_square` change as the square walks; a black frame is far from all of them.
    codebook = np.linspace(0.5, 0.9, CODES, dtype=np.float32)[:, None].repeat(LATENT, axis=1)
    save_file({"codebook": codebook, "quantization_threshold": np.float32([0.3])}, folder / "reward.safetensors")
    manifest = load_bundle(folder).manifest
    spec = reward_spec(reward, {**PARAMETERS[reward], **parameters})
    files = [*manifest.files, f"{name}.onnx", "reward.safetensors"]
    update = {
        "reward": spec.model_copy(update={"rate": rate}),
        "networks": {name: draft.model_copy(update={"answer": answer})},
        "tensors": "reward.safetensors",
        "files": describe_files(folder, files),
    }
    write_manifest(folder, manifest.model_copy(update=update))
    return folder


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _model(nodes: list, inputs: dict[str, InputSpec], constants: dict[str, np.ndarray], out: list) -> onnx.ModelProto:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(k, types[v.dtype], ["batch", *v.shape]) for k, v in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", *out])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _pair() -> tuple[str, dict[str, InputSpec], onnx.ModelProto]:
    """The difference of two frames in one direction."""
    inputs = {name: InputSpec(dtype="float32", shape=(48,)) for name in ("first", "second")}
    nodes = [
        helper.make_node("Sub", ["second", "first"], ["difference"]),
        helper.make_node("MatMul", ["difference", "direction"], ["out"]),
    ]
    return "pair", inputs, _model(nodes, inputs, {"direction": _numbers(48)}, [])


def _likelihood() -> tuple[str, dict[str, InputSpec], onnx.ModelProto]:
    """Minus the square of how far the mean code of a frame is from a mix of those before it."""
    inputs = {"codes": InputSpec(dtype="int64", shape=(WINDOW, TOKENS), high=CODES)}
    nodes = [
        helper.make_node("Cast", ["codes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["float", "tokens"], ["means"]),
        helper.make_node("MatMul", ["means", "causal"], ["mixed"]),
        helper.make_node("Mul", ["mixed", "mixed"], ["square"]),
        helper.make_node("Neg", ["square"], ["out"]),
    ]
    constants = {"tokens": _numbers(TOKENS) / TOKENS, "causal": np.triu(_numbers(WINDOW, WINDOW))}
    return "likelihood", inputs, _model(nodes, inputs, constants, [WINDOW])


def _denoiser() -> tuple[str, dict[str, InputSpec], onnx.ModelProto]:
    """Chances of each token's code given that token, the step, and the codes of the condition by their place."""
    inputs = {
        "tokens": InputSpec(dtype="int64", shape=(TOKENS,), high=CODES + 1),
        "t": InputSpec(dtype="int64", shape=(), high=STEPS),
        "condition": InputSpec(dtype="int64", shape=(2 * TOKENS,), high=CODES),
    }
    nodes = [
        helper.make_node("Gather", ["token_table", "tokens"], ["own"]),
        helper.make_node("Gather", ["condition_table", "condition"], ["rows"]),
        helper.make_node("Mul", ["rows", "places"], ["placed"]),
        helper.make_node("ReduceMean", ["placed", "axis"], ["given"], keepdims=1),
        helper.make_node("Gather", ["step_table", "t"], ["step"]),
        helper.make_node("Unsqueeze", ["step", "axis"], ["steps"]),
        helper.make_node("Add", ["own", "given"], ["both"]),
        helper.make_node("Add", ["both", "steps"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["logs"], axis=-1),
        helper.make_node("Transpose", ["logs"], ["turned"], perm=[0, 2, 1]),
        # No code is ever predicted to be the mask.
        helper.make_node("Pad", ["turned", "pads", "never"], ["out"]),
    ]
    constants = {
        "token_table": _numbers(CODES + 1, CODES),
        "condition_table": 8 * _numbers(CODES, CODES),
        "places": np.linspace(0.5, 1.5, 2 * TOKENS, dtype=np.float32)[:, None],
        "step_table": _numbers(STEPS, CODES),
        "axis": np.array([1], np.int64),
        "pads": np.array([0, 0, 0, 0, 1, 0], np.int64),
        "never": np.float32(-70.0),
    }
    return "denoiser", inputs, _model(nodes, inputs, constants, [CODES + 1, TOKENS])
