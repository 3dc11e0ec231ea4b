"""V-JEPA and V-JEPA 2: training, clipping, schedules, and the encoder for single images."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from v2r_core.methods.method import Horizon
from v2r_core.methods.vjepa import VJepa, VJepaRecipe, variance_hinge, vjepa_loss
from v2r_core.nn import vit

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=4, examples=20)


@pytest.fixture(params=["sincos", "rotary"])
def recipe(request, monkeypatch):
    monkeypatch.setitem(vit.ARCHITECTURES, "toy", (48, 2, 2))
    return dataclasses.replace(
        VJepaRecipe.tiny(),
        architecture="toy",
        patch=16,
        predictor_width=24,
        batch_size=4,
        positions=request.param,
        warmup_epochs=1,
    )


@pytest.fixture
def method(recipe):
    torch.manual_seed(0)
    return VJepa(recipe, HORIZON)


def batch_of(method, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    recipe = method.recipe
    coarse = torch.randn(count, 3, recipe.frames, 4, 4, generator=generator)
    clips = nn.functional.interpolate(coarse, size=(recipe.frames, recipe.size, recipe.size), mode="trilinear")
    return {"views": [clips], **method.data(recipe).masks(count, 0, generator)}


def test_training_lowers_the_loss(method):
    batch, optimizer = batch_of(method), method.optimizer()
    losses = []
    for step in range(100):
        found = method(batch, step)
        optimizer.zero_grad()
        found.loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        method.after_step(0)
        losses.append(float(found.loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert found.features.shape == (4, 48)
    assert 0 <= found.metrics["variance_hinge"] <= 1


def test_half_precision_changes_the_loss_little(method):
    batch = batch_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch, 0).loss
    half.backward()
    torch.testing.assert_close(half, method(batch, 0).loss, rtol=0.02, atol=0.0)


def test_every_trainable_parameter_gets_a_gradient(method):
    method(batch_of(method), 0).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_encoder_of_an_image_is_the_target_on_a_still_clip(method, recipe):
    frames = torch.randint(0, 256, (3, recipe.size, recipe.size, 3), dtype=torch.uint8)
    encoder = method.encoder()
    images = (frames.permute(0, 3, 1, 2) / 255 - encoder.mean) / encoder.std
    clip = images[:, :, None].repeat(1, 1, recipe.frames, 1, 1)
    first = torch.arange((recipe.size // recipe.patch) ** 2).expand(3, -1)
    expected = method.target.tokens(clip, keep=first).mean(dim=1)
    torch.testing.assert_close(encoder(frames), expected, rtol=0, atol=1e-5)
    assert not any(isinstance(module, nn.Conv3d) for module in encoder.modules())


def test_a_still_clip_of_one_tubelet_is_the_same_where_positions_are_rotary(method, recipe):
    if recipe.positions != "rotary":
        pytest.skip("a fixed table is resampled for clips of another length")
    images = torch.randn(2, 3, recipe.size, recipe.size)
    clip = images[:, :, None].repeat(1, 1, recipe.tubelet, 1, 1)
    torch.testing.assert_close(
        method.encoder().backbone(images), method.target.tokens(clip).mean(dim=1), rtol=0, atol=1e-5
    )


def test_patches_that_are_kept_are_embedded_as_all_of_them_are(method):
    batch = batch_of(method)
    keep = batch["context_0"]
    embed = method.online.patch_embed
    tokens, grid = embed(batch["views"][0])
    kept, same = embed(batch["views"][0], keep)
    assert grid == same
    torch.testing.assert_close(kept, vit.take(tokens, keep), rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_apart_and_after_the_warm_up_only(method):
    batch = batch_of(method)

    def norms(step):
        method.zero_grad()
        (method(batch, 0).loss * 1e6).backward()
        before = method.adjust_gradients(step)
        after = [
            float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))
            for network in (method.online, method.predictor)
        ]
        return list(before.values()), after

    early, untouched = norms(9)
    assert early == pytest.approx(untouched)
    assert min(early) > method.recipe.clip
    late, clipped = norms(10)
    assert late == pytest.approx(early)
    assert clipped == pytest.approx([method.recipe.clip] * 2, rel=1e-4)


def test_stretched_schedules_do_not_reach_their_ends(method, recipe):
    last = method.schedule(HORIZON.steps - 1)
    assert last["lr"] > 10 * recipe.final_lr
    assert recipe.momentum < last["momentum"] < 0.9 * recipe.final_momentum + 0.1 * recipe.momentum
    assert math.isclose(method.schedule(4)["lr"], recipe.lr)


def test_second_version_keeps_its_rate_and_then_cools_down(recipe):
    constant = dataclasses.replace(recipe, schedule_kind="warmup_stable_decay", stretch=1.0)
    rates = [VJepa(constant, HORIZON).schedule(step)["lr"] for step in range(HORIZON.steps)]
    assert rates[4:] == [recipe.lr] * 16
    falling = VJepa(dataclasses.replace(constant, anneal_epochs=1), HORIZON)
    assert math.isclose(falling.schedule(HORIZON.steps - 1)["lr"], recipe.final_lr)
    cooling = VJepa(dataclasses.replace(constant, schedule_kind="linear_decay"), HORIZON)
    assert math.isclose(cooling.schedule(9)["lr"], (recipe.lr + recipe.final_lr) / 2)


def test_presets_and_their_masks():
    presets = VJepaRecipe.presets()
    assert set(presets) == {"paper", "tiny", "paper-v2", "paper-v2-cooldown"}
    for recipe in presets.values():
        spec = VJepa.data(recipe)
        found = spec.masks(1, 0, torch.Generator().manual_seed(0))
        patches = recipe.frames // recipe.tubelet * (recipe.size // recipe.patch) ** 2
        for kind in range(2):
            assert found[f"context_{kind}"].shape[1] + found[f"target_{kind}"].shape[1] == patches


def test_the_hinge_enters_the_loss_if_asked_for(recipe):
    torch.manual_seed(0)
    plain = VJepa(dataclasses.replace(recipe, hinge=0.0), HORIZON)
    torch.manual_seed(0)
    hinged = VJepa(dataclasses.replace(recipe, hinge=0.5), HORIZON)
    batch = batch_of(plain)
    first, second = plain(batch, 0), hinged(batch, 0)
    torch.testing.assert_close(second.loss, first.loss + 0.5 * first.metrics["variance_hinge"])


def test_losses():
    z, h = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]]), torch.zeros(1, 2, 2)
    assert float(vjepa_loss([z], [h])) == 1.0
    assert float(vjepa_loss([z, h], [h, h], exponent=2.0)) == 0.5
    assert float(variance_hinge([torch.zeros(1, 3, 4)])) == pytest.approx(0.99)
    assert float(variance_hinge([10 * torch.randn(1, 50, 4)])) == 0.0


def test_kinds_of_masks_need_all_their_numbers():
    with pytest.raises(ValueError, match="one entry for each kind of mask"):
        VJepaRecipe(blocks=(8,))
