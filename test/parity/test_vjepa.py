"""Our V-JEPA against the released code (section 8 of the parity kit)."""

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state
from network import FORMULA, FULL, NETWORK, assert_close, assert_gradients, tensor, weights
from torch import nn

from v2r_core.methods import jepa
from v2r_core.methods.jepa import normalise
from v2r_core.methods.method import Horizon
from v2r_core.methods.vjepa import VJepa, VJepaRecipe, variance_hinge, vjepa_loss
from v2r_core.nn import vit
from v2r_core.nn.attentive import AttentiveProbe
from v2r_core.nn.masking import BlockKind, MultiBlock3d
from v2r_core.nn.predictor import at_targets
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture

PREFIX = "backbone."
KINDS = 2


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("vjepa.npz")


@pytest.fixture
def method(stored, monkeypatch):
    """The tiny network of the kit."""
    monkeypatch.setitem(vit.ARCHITECTURES, "kit", (48, 2, 4))
    recipe = VJepaRecipe(architecture="kit", size=32, patch=8, frames=4, predictor_width=24, predictor_depth=2)
    made = VJepa(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=2, examples=2))
    for what, network in (("encoder", made.online), ("predictor", made.predictor), ("target", made.target)):
        network.load_state_dict(weights(stored, f"model/weights_{what}/{PREFIX}"))
    return made


@pytest.fixture
def batch(stored):
    made = {"views": [tensor(stored, "model/clip")]}
    for kind in range(KINDS):
        made[f"context_{kind}"] = tensor(stored, f"model/context_index_{kind}")
        made[f"target_{kind}"] = tensor(stored, f"model/target_index_{kind}")
    return made


@pytest.mark.parametrize("check", ["masks_8x14x14", "masks_partial_time"])
def test_masks(stored, check):
    def pairs(what):
        return [tuple(float(value) for value in row) for row in stored[f"{check}/{what}"]]

    rows = zip(
        (int(count) for count in stored[f"{check}/n_blocks"]),
        pairs("spatial_scale"),
        pairs("temporal_scale"),
        pairs("aspect"),
        (float(share) for share in stored[f"{check}/max_temporal_keep"]),
        strict=True,
    )
    kinds = tuple(BlockKind(*row) for row in rows)
    grid = tuple(int(stored[f"{check}/{side}"]) for side in ("depth", "height", "width"))
    sampler = MultiBlock3d(grid, kinds)
    positions = torch.Generator().manual_seed(int(stored[f"{check}/seed"]))
    for number, step in enumerate(stored[f"{check}/steps"]):
        found = sampler(int(stored[f"{check}/batch"]), int(step), positions)
        for kind in range(len(kinds)):
            for what in ("context", "target"):
                prefix = f"{check}/draw{number}/kind{kind}/expected_{what}"
                length = int(stored[f"{prefix}_length"])
                np.testing.assert_array_equal(found[f"{what}_{kind}"].numpy(), stored[prefix][:, :length])
                assert (stored[prefix][:, length:] == -1).all()


def test_network(stored, method, batch):
    clip = batch["views"][0]
    actual = normalise(method.target.tokens(clip))
    assert_close(actual, stored["model/expected_target_all"], NETWORK)
    predictions, targets = [], []
    for kind in range(KINDS):
        context, target = batch[f"context_{kind}"], batch[f"target_{kind}"]
        tokens = method.online.tokens(clip, keep=context)
        assert_close(tokens, stored[f"model/expected_context_out_{kind}"], NETWORK)
        predictions.append(method.predictor(tokens, context, target, kind))
        targets.append(at_targets(actual, target))
        assert_close(predictions[-1], stored[f"model/expected_prediction_{kind}"], NETWORK)
    assert_close(vjepa_loss(predictions, targets), stored["model/expected_loss"], NETWORK)
    assert_close(variance_hinge(predictions), stored["model/expected_std_hinge"], NETWORK)


def test_step_of_the_method(stored, method, batch):
    step = method(batch, 0)
    step.loss.backward()
    assert_close(step.loss, stored["model/expected_loss"], NETWORK)
    assert_close(step.metrics["variance_hinge"], stored["model/expected_std_hinge"], NETWORK)
    assert_gradients(method.online, rename(stored, "encoder"), "")
    assert_gradients(method.predictor, rename(stored, "predictor"), "")
    norms = method.adjust_gradients(0)
    assert_close(norms["grad_norm_encoder"], stored["model/expected_grad_norm_encoder"], NETWORK)
    assert_close(norms["grad_norm_predictor"], stored["model/expected_grad_norm_predictor"], NETWORK)


def rename(stored, what):
    prefix = f"model/expected_grad_{what}/{PREFIX}"
    return {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}


def test_clip_of_another_size(stored, method):
    found = method.online.tokens(tensor(stored, "model/clip_8x48x48"))
    assert_close(found, stored["model/expected_encoder_8x48x48"], NETWORK)


def test_fixed_tables_are_the_released_ones(stored, method):
    fresh = VJepa(method.recipe, method.horizon)
    assert_close(fresh.online.pos_embed, stored[f"model/weights_encoder/{PREFIX}pos_embed"], FORMULA)
    expected = stored[f"model/weights_predictor/{PREFIX}predictor_pos_embed"]
    assert_close(fresh.predictor.predictor_pos_embed, expected, FORMULA)


@pytest.mark.parametrize(("check", "depth"), [("attentive_probe", 1), ("attentive_probe_depth3", 3)])
def test_attentive_probe(stored, check, depth):
    tokens, expected = tensor(stored, f"{check}/tokens"), stored[f"{check}/expected_logits"]
    probe = AttentiveProbe(tokens.shape[-1], expected.shape[-1], heads=4, depth=depth)
    probe.load_state_dict(weights(stored, f"{check}/weights/"))
    logits = probe(tokens)
    assert_close(logits, expected, NETWORK)
    logits.sum().backward()
    projection = probe.pooler.cross_attention_block.xattn.proj
    has_gradient = projection.weight.grad is not None
    assert has_gradient == bool(stored[f"{check}/expected_output_projection_has_gradient"])


def test_which_parameters_are_decayed(stored, method):
    expected = {name: bool(flag) for name, flag in weights(stored, "weight_decay_names/").items()}
    networks = {"encoder": method.online, "predictor": method.predictor}
    found = {
        f"{what}/{PREFIX}{name}": flag
        for what, network in networks.items()
        for name, flag in jepa.weight_decay_names(network).items()
    }
    assert found == expected


@pytest.mark.slow
def test_full_size_checkpoint(stored):
    check = "checkpoint_vit_large16"
    seed = int(stored[f"{check}/fill_seed"])
    config = ViTConfig(
        size=224,
        patch=16,
        frames=16,
        tubelet=2,
        class_token=False,
        positions="sincos",
        pool="mean",
        **architecture("large"),
    )
    with torch.device("meta"):
        network: nn.Module = VisionTransformer(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name != "pos_embed"}
    table, _ = vit._table(config)
    network.load_state_dict({**fill_state(shapes, seed, "module.backbone."), "pos_embed": table}, assign=True)
    clip = fill_input(seed, (1, 3, 16, 224, 224))
    with torch.no_grad():
        context = network.tokens(clip, keep=tensor(stored, f"{check}/context_index"))
    assert_close(context.mean(dim=1), stored[f"{check}/expected_context_mean"], FULL)
    assert_close(context[:, 0], stored[f"{check}/expected_token0"], FULL)
