"""Diffusion Reward's two networks as graphs: what the robot runs computes what was trained, for any batch."""

import numpy as np
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")

from v2r_core.methods.diffusion_reward import DiffusionRewardMethod  # noqa: E402 (behind importorskip)
from v2r_core.methods.diffusion_reward_recipe import DiffusionRewardRecipe  # noqa: E402
from v2r_core.methods.method import Horizon  # noqa: E402


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    recipe = DiffusionRewardRecipe(
        channels=(32, 32),
        size=16,
        grid=8,
        residual_blocks=1,
        attention_resolutions=(16,),
        latent=4,
        codes=6,
        width=16,
        depth=1,
        heads=2,
        condition_width=12,
        compat="paper",
    )
    made = DiffusionRewardMethod(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=4, examples=4))
    made.distances.add(torch.tensor([0.1, 0.2]))
    with torch.no_grad():
        for weight in made.average.parameters():
            weight.normal_(std=0.3)
    return made.eval()


def session(module, inputs, output):
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        opset_version=18,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in inputs},
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])


def test_denoiser(method):
    network = method.reward_export().networks["denoiser"]
    running = session(network.module, network.inputs, network.output)
    rng = np.random.default_rng(0)
    for rows in (1, 3):
        given = {
            "tokens": rng.integers(0, 7, (rows, 64)),
            "t": rng.integers(0, 100, rows),
            "condition": rng.integers(0, 6, (rows, 128)),
        }
        with torch.no_grad():
            expected = method.average(*(torch.from_numpy(value) for value in given.values()))
        np.testing.assert_allclose(running.run([network.output], given)[0], expected, rtol=0, atol=1e-4)
        assert float(expected.std()) > 0.1


def test_encoder(method):
    encoder = method.encoder()
    running = session(encoder, {"frames": torch.zeros(2, 16, 16, 3, dtype=torch.uint8)}, "embedding")
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(frames))
    np.testing.assert_allclose(running.run(["embedding"], {"frames": frames})[0], expected, rtol=0, atol=1e-4)
