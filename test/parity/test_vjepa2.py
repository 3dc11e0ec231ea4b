"""Our V-JEPA 2 against the released code (section 9 of the parity kit)."""

import pytest
import torch
from fill import fill_input, fill_state
from network import FORMULA, FULL, NETWORK, assert_close, assert_gradients, tensor, weights

from v2r_core.methods.jepa import normalise
from v2r_core.methods.vjepa import vjepa_loss
from v2r_core.nn.positions import rotate
from v2r_core.nn.predictor import Predictor, at_targets
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture

MASK_TOKENS = 2


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("vjepa2.npz")


@pytest.fixture
def networks(stored):
    """The tiny encoder, its target and the predictor of the kit."""
    config = ViTConfig(
        size=32,
        patch=8,
        width=80,
        depth=2,
        heads=4,
        frames=4,
        tubelet=2,
        class_token=False,
        positions="rotary",
        pool="mean",
    )
    predictor = Predictor(80, 48, 2, 4, config.grid, positions="rotary", mask_tokens=MASK_TOKENS)
    made = (VisionTransformer(config), VisionTransformer(config).requires_grad_(False), predictor)
    for what, network in zip(("encoder", "target", "predictor"), made, strict=True):
        network.load_state_dict(weights(stored, f"model/weights_{what}/"))
    return made


def test_rotary_positions(stored):
    x = tensor(stored, "rope/x")
    assert_close(rotate(x, tensor(stored, "rope/position")), stored["rope/expected"], FORMULA)
    assert_close(rotate(x, tensor(stored, "rope/position_random")), stored["rope/expected_random"], FORMULA)


def test_attention(stored, networks):
    attention = networks[0].blocks[0].attn
    assert attention.heads == stored["attention/num_heads"]
    assert attention.grid == (stored["attention/grid"], stored["attention/grid"])
    x, index = tensor(stored, "attention/x"), tensor(stored, "attention/mask_index")
    assert_close(attention(x, torch.arange(x.shape[1])), stored["attention/expected"], NETWORK)
    assert_close(attention(x[:, : index.shape[1]], index), stored["attention/expected_masked"], NETWORK)


def test_network_and_its_gradients(stored, networks):
    encoder, target, predictor = networks
    clip, kind = tensor(stored, "model/clip"), int(stored["model/mask_token_index"])
    context, wanted = tensor(stored, "model/context_index"), tensor(stored, "model/target_index")
    actual = at_targets(normalise(target.tokens(clip)), wanted)
    assert_close(actual, stored["model/expected_target"], NETWORK)
    assert_close(encoder.tokens(clip), stored["model/expected_encoder_all"], NETWORK)
    tokens = encoder.tokens(clip, keep=context)
    assert_close(tokens, stored["model/expected_context_out"], NETWORK)
    prediction = predictor(tokens, context, wanted, kind)
    assert_close(prediction, stored["model/expected_prediction"], NETWORK)
    assert_close(predictor(tokens, context, wanted, 0), stored["model/expected_prediction_token0"], NETWORK)
    loss = vjepa_loss([prediction], [actual])
    loss.backward()
    assert_close(loss, stored["model/expected_loss"], NETWORK)
    assert_gradients(encoder, stored, "model/expected_grad_encoder/")
    assert_gradients(predictor, stored, "model/expected_grad_predictor/")


@pytest.mark.slow
def test_full_size_checkpoint(stored):
    check = "checkpoint_vit_large"
    seed = int(stored[f"{check}/fill_seed"])
    config = ViTConfig(
        size=256,
        patch=16,
        frames=64,
        tubelet=2,
        class_token=False,
        positions="rotary",
        pool="mean",
        **architecture("large"),
    )
    with torch.device("meta"):
        network = VisionTransformer(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(fill_state(shapes, seed, "module.backbone."), assign=True)
    clip = fill_input(seed, (1, 3, 4, 256, 256))
    with torch.no_grad():
        context = network.tokens(clip, keep=tensor(stored, f"{check}/context_index"))
    assert_close(context.mean(dim=1), stored[f"{check}/expected_context_mean"], FULL)
    assert_close(context[:, 0], stored[f"{check}/expected_token0"], FULL)
