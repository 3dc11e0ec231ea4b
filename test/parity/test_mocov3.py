"""Our MoCo v3 against the released code (section 2 of the parity kit); its LARS and schedules are tested elsewhere."""

import dataclasses

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state

from v2r_core.methods.method import Horizon
from v2r_core.methods.moco import Moco, MocoRecipe
from v2r_core.methods.mocov3 import ProjectedViT, mocov3_loss
from v2r_core.nn.ema import copy_for_ema
from v2r_core.nn.projection import mocov3_head
from v2r_core.nn.vit import ViTConfig


def assert_close(found, expected, scale=1e-5):
    found = found.detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * np.abs(expected).max() + 1e-6)


def below(stored, prefix):
    return {key.removeprefix(prefix): torch.tensor(stored[key]) for key in stored.files if key.startswith(prefix)}


def test_loss_of_both_directions(parity_file):
    stored = parity_file("mocov3.npz")
    temperature = float(stored["contrastive/T"])
    q1, q2, k1, k2 = (torch.tensor(stored[f"contrastive/{name}"]) for name in ("q1", "q2", "k1", "k2"))
    q1.requires_grad_(), q2.requires_grad_()
    one, other = mocov3_loss(q1, k2, temperature), mocov3_loss(q2, k1, temperature)
    (one + other).backward()
    assert_close(one, stored["contrastive/expected_loss_q1_k2"])
    assert_close(other, stored["contrastive/expected_loss_q2_k1"])
    assert_close(one + other, stored["contrastive/expected_loss"])
    assert_close(q1.grad, stored["contrastive/expected_grad_q1"])
    assert_close(q2.grad, stored["contrastive/expected_grad_q2"])


def test_keys_of_two_ranks(parity_file):
    stored = parity_file("mocov3.npz")
    queries, keys = (torch.tensor(stored[f"contrastive_two_ranks/{name}"]) for name in ("q", "k"))
    joined = keys.flatten(0, 1)
    temperature = float(stored["contrastive_two_ranks/T"])
    found = [mocov3_loss(q, joined, temperature, rank * len(q)) for rank, q in enumerate(queries)]
    assert_close(torch.stack(found), stored["contrastive_two_ranks/expected_loss"])


def test_one_step_of_a_vit(parity_file):
    stored = parity_file("mocov3.npz")
    weights = below(stored, "vit_step/weights/")
    patch_weight = weights["base_encoder.patch_embed.proj.weight"]
    hidden, width = weights["base_encoder.head.0.weight"].shape
    dim = len(weights["base_encoder.head.6.weight"])
    side = stored["vit_step/x1"].shape[-1]
    # Width, depth and heads of the kit's network have no name.
    config = ViTConfig(
        size=side, patch=patch_weight.shape[-1], width=width, depth=2, heads=4, positions="sincos", order="row"
    )
    recipe = dataclasses.replace(
        MocoRecipe.tiny("v3"),
        temperature=float(stored["vit_step/T"]),
        momentum=float(stored["vit_step/m"]),
        momentum_cosine=False,
    )
    moco = Moco(recipe, Horizon(1, 1, 64, 64))
    moco.base_encoder = ProjectedViT(config, hidden, dim, freeze_patch=False)
    moco.momentum_encoder = copy_for_ema(moco.base_encoder)
    moco.predictor = mocov3_head(2, dim, hidden, dim)
    moco.load_state_dict(weights)
    x1, x2 = (torch.tensor(stored[f"vit_step/{name}"]) for name in ("x1", "x2"))

    outcome = moco.loss({"views": [x1, x2]}, 0)
    outcome.loss.backward()

    assert_close(outcome.loss, stored["vit_step/expected_loss"], 1e-4)
    state = moco.state_dict()
    for key, value in below(stored, "vit_step/expected_after/").items():
        assert_close(state[key], value.numpy(), 1e-4)
    gradients = {key: parameter.grad for key, parameter in moco.named_parameters()}
    for key, value in below(stored, "vit_step/expected_grad/").items():
        assert_close(gradients[key], value.numpy(), 1e-4)
    moco.eval()
    with torch.inference_mode():
        assert_close(moco.base_encoder(x1), stored["vit_step/expected_eval_base_output"], 1e-4)


@pytest.fixture(scope="module")
def vit_small():
    return Moco(MocoRecipe.paper("v3", "vit-small"), Horizon(1, 1, 4096, 4096))


def test_vit_small(parity_file, vit_small):
    stored = parity_file("mocov3.npz")
    seed = int(stored["checkpoint_vit_small/fill_seed"])
    network = vit_small.base_encoder
    # The position table is fixed.
    shapes = {key: value.shape for key, value in network.state_dict().items() if key != "pos_embed"}
    network.load_state_dict(fill_state(shapes, seed, "module.base_encoder.") | {"pos_embed": network.pos_embed})
    images = fill_input(seed, (1, 3, 224, 224))
    with torch.inference_mode():
        cls = vit_small.encoder().backbone(images)
        head = network.eval()(images)
    for found, name in ((cls, "cls"), (head, "head")):
        expected = stored[f"checkpoint_vit_small/expected_{name}"]
        assert found.shape == expected.shape
        assert np.linalg.norm(found.numpy() - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["vit-small", "resnet50"])
def test_state_has_the_released_names(checkpoint_keys, vit_small, name):
    moco = vit_small if name == "vit-small" else Moco(MocoRecipe.paper("v3", name), Horizon(1, 1, 4096, 4096))
    keys = checkpoint_keys[f"mocov3_{name.replace('-', '_')}"]["keys"]
    expected = {key: tuple(shape) for key, shape in keys.items()}
    assert {f"module.{key}": tuple(value.shape) for key, value in moco.state_dict().items()} == expected
