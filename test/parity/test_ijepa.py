"""Our I-JEPA against the released code (section 7 of the parity kit)."""

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state
from network import FORMULA, FULL, NETWORK, assert_close, assert_gradients, tensor, weights

from v2r_core.methods import jepa
from v2r_core.methods.ijepa import IJepa, IJepaRecipe, ijepa_loss
from v2r_core.methods.jepa import normalise
from v2r_core.methods.method import Horizon
from v2r_core.nn import vit
from v2r_core.nn.ema import ema_update
from v2r_core.nn.masking import MultiBlock
from v2r_core.nn.predictor import at_targets
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture

MASKS = ["masks_16x16", "masks_8x8", "masks_10x14"]


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("ijepa.npz")


@pytest.fixture
def method(stored, monkeypatch):
    """The tiny network of the kit."""
    monkeypatch.setitem(vit.ARCHITECTURES, "kit", (32, 2, 2))
    momentum = float(stored["model/ema_momentum"])
    recipe = IJepaRecipe(
        architecture="kit",
        size=64,
        patch=8,
        predictor_width=16,
        predictor_depth=2,
        momentum=momentum,
        final_momentum=momentum,
    )
    made = IJepa(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=2, examples=2))
    for what, network in (("encoder", made.online), ("predictor", made.predictor), ("target", made.target)):
        network.load_state_dict(weights(stored, f"model/weights_{what}/"))
    return made


def pair(stored, key):
    low, high = stored[key]
    return float(low), float(high)


@pytest.mark.parametrize("check", MASKS)
def test_masks(stored, check):
    assert stored[f"{check}/n_context"] == 1
    sampler = MultiBlock(
        (int(stored[f"{check}/height"]), int(stored[f"{check}/width"])),
        target_scale=pair(stored, f"{check}/target_scale"),
        target_aspect=pair(stored, f"{check}/aspect"),
        context_scale=pair(stored, f"{check}/context_scale"),
        targets=int(stored[f"{check}/n_target"]),
        min_keep=int(stored[f"{check}/min_keep"]),
    )
    positions = torch.Generator().manual_seed(int(stored[f"{check}/seed"]))
    for number, step in enumerate(stored[f"{check}/steps"]):
        found = sampler(int(stored[f"{check}/batch"]), int(step), positions)
        for name, what in (("context", "context"), ("targets", "target")):
            expected = stored[f"{check}/draw{number}/expected_{what}"]
            length = int(stored[f"{check}/draw{number}/expected_{what}_length"])
            np.testing.assert_array_equal(found[name].numpy(), expected[..., :length])
            assert (expected[..., length:] == -1).all()


def test_network(stored, method):
    image, context = tensor(stored, "model/image"), tensor(stored, "model/context_index")
    targets = tensor(stored, "model/target_index").flatten(0, 1)
    actual = normalise(method.target.tokens(image))
    assert_close(actual, stored["model/expected_target_all"], NETWORK)
    assert_close(at_targets(actual, targets), stored["model/expected_target"], NETWORK)
    tokens = method.online.tokens(image, keep=context)
    assert_close(tokens, stored["model/expected_context_out"], NETWORK)
    assert_close(method.predictor(tokens, context, targets), stored["model/expected_prediction"], NETWORK)
    assert_close(method.online.tokens(image), stored["model/expected_encoder_all_tokens"], NETWORK)


def test_step_of_the_method(stored, method):
    batch = {
        "views": [tensor(stored, "model/image")],
        "context": tensor(stored, "model/context_index"),
        "targets": tensor(stored, "model/target_index"),
    }
    loss = method(batch, 0).loss
    loss.backward()
    assert_close(loss, stored["model/expected_loss"], NETWORK)
    assert_gradients(method.online, stored, "model/expected_grad_encoder/")
    assert_gradients(method.predictor, stored, "model/expected_grad_predictor/")
    method.after_step(0)
    after = dict(method.target.named_parameters())
    for name, expected in weights(stored, "model/expected_target_after_ema/").items():
        assert_close(after[name], expected.numpy(), NETWORK)


def test_moving_average(stored, method):
    ema_update(method.target, method.online, float(stored["model/ema_momentum"]))
    after = dict(method.target.named_parameters())
    for name, expected in weights(stored, "model/expected_target_after_ema/").items():
        assert_close(after[name], expected.numpy(), FORMULA)


def test_fixed_tables_are_the_released_ones(stored, method):
    fresh = IJepa(method.recipe, method.horizon)
    assert_close(fresh.online.pos_embed, stored["model/weights_encoder/pos_embed"], FORMULA)
    expected = stored["model/weights_predictor/predictor_pos_embed"]
    assert_close(fresh.predictor.predictor_pos_embed, expected, FORMULA)


def test_smooth_l1(stored):
    assert stored["smooth_l1/beta"] == 1
    prediction = tensor(stored, "smooth_l1/prediction").requires_grad_()
    loss = ijepa_loss(prediction, tensor(stored, "smooth_l1/target"))
    loss.backward()
    assert_close(loss, stored["smooth_l1/expected_loss"], FORMULA)
    assert_close(prediction.grad, stored["smooth_l1/expected_grad"], FORMULA)


def test_layer_norm_of_targets(stored):
    assert stored["target_layer_norm/eps"] == 1e-5
    assert_close(normalise(tensor(stored, "target_layer_norm/x")), stored["target_layer_norm/expected"], FORMULA)


def test_which_parameters_are_decayed(stored, method):
    expected = {name: bool(flag) for name, flag in weights(stored, "weight_decay_names/").items()}
    networks = {"encoder": method.online, "predictor": method.predictor}
    found = {
        f"{what}/{name}": flag
        for what, network in networks.items()
        for name, flag in jepa.weight_decay_names(network).items()
    }
    assert found == expected
    in_group = {id(p): bool(g["wd_scale"]) for g in method.optimizer().param_groups for p in g["params"]}
    for what, network in networks.items():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert in_group[id(parameter)] is expected[f"{what}/{name}"]


@pytest.mark.slow
def test_full_size_checkpoint(stored):
    check = "checkpoint_vit_huge14"
    seed = int(stored[f"{check}/fill_seed"])
    size = architecture("huge")
    config = ViTConfig(size=224, patch=14, class_token=False, positions="sincos", pool="mean", **size)
    with torch.device("meta"):
        network = VisionTransformer(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name != "pos_embed"}
    table, _ = vit._table(config)
    network.load_state_dict({**fill_state(shapes, seed, "module."), "pos_embed": table}, assign=True)
    image = fill_input(seed, (1, 3, 224, 224))
    with torch.no_grad():
        tokens = network.tokens(image)
        assert_close(tokens.mean(dim=1), stored[f"{check}/expected_mean_token"], FULL)
        assert_close(tokens[:, 0], stored[f"{check}/expected_token0"], FULL)
        context = network.tokens(image, keep=tensor(stored, f"{check}/context_index"))
        assert_close(context.mean(dim=1), stored[f"{check}/expected_context_mean"], FULL)
