"""I-JEPA: training, its target encoder, its optimizer and its two readings."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from v2r_core.methods.ijepa import IJepa, IJepaRecipe, ijepa_loss
from v2r_core.methods.method import Horizon
from v2r_core.nn import vit

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=8, examples=40)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(vit.ARCHITECTURES, "toy", (32, 2, 2))
    return dataclasses.replace(
        IJepaRecipe.tiny(), architecture="toy", predictor_width=16, batch_size=8, warmup_epochs=1, momentum=0.9
    )


@pytest.fixture
def method(recipe):
    torch.manual_seed(0)
    return IJepa(recipe, HORIZON)


def batch_of(method, count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spec, size = method.data(method.recipe), method.recipe.size
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return {"views": [images], **spec.masks(count, 0, generator)}


def test_training_lowers_the_loss_and_keeps_images_apart(method):
    batch, optimizer = batch_of(method), method.optimizer()
    losses = []
    for step in range(60):
        found = method(batch, step)
        optimizer.zero_grad()
        found.loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        method.after_step(0)
        losses.append(float(found.loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert found.features.shape == (8, 32)
    assert found.features.std(dim=0).mean() > 0.05


def test_the_target_follows_without_a_gradient(method):
    assert not any(parameter.requires_grad for parameter in method.target.parameters())
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter.add_(1.0)
    before = method.target.norm.bias.clone()
    method.after_step(0)
    torch.testing.assert_close(method.target.norm.bias, before + 0.1)


def test_half_precision_changes_the_loss_little(method):
    batch = batch_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch, 0).loss
    half.backward()
    torch.testing.assert_close(half, method(batch, 0).loss, rtol=0.02, atol=0.0)


def test_every_trainable_parameter_gets_a_gradient(method):
    method(batch_of(method), 0).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_targets_do_not_see_each_other(method):
    batch = batch_of(method)
    context, targets = batch["context"], batch["targets"]
    tokens = method.online.tokens(batch["views"][0], keep=context)
    together = method.predictor(tokens, context, targets.flatten(0, 1)).unflatten(0, targets.shape[:2])
    for block, found in zip(targets, together, strict=True):
        torch.testing.assert_close(method.predictor(tokens, context, block), found, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_the_target_averaged_over_patches(method, recipe):
    frames = torch.randint(0, 256, (2, recipe.size, recipe.size, 3), dtype=torch.uint8)
    encoder = method.encoder()
    images = (frames.permute(0, 3, 1, 2) / 255 - encoder.mean) / encoder.std
    torch.testing.assert_close(encoder(frames), method.target.tokens(images).mean(dim=1))
    with torch.no_grad():
        method.target.norm.bias.add_(1.0)
    torch.testing.assert_close(encoder(frames), method.target.tokens(images).mean(dim=1))


def test_schedules_start_at_their_first_step(method, recipe):
    first, last = method.schedule(0), method.schedule(HORIZON.steps - 1)
    assert math.isclose(first["lr"], recipe.start_lr + (recipe.lr - recipe.start_lr) / 5)
    assert first["momentum"] == recipe.momentum
    assert math.isclose(last["lr"], recipe.final_lr)
    assert math.isclose(last["weight_decay"], recipe.final_weight_decay)
    assert recipe.momentum < last["momentum"] < recipe.final_momentum


def test_the_paper_divides_initial_weights_by_depth_and_the_code_does_not(recipe):
    for compat, ratio in (("official", 1.0), ("paper", math.sqrt(2))):
        torch.manual_seed(0)
        method = IJepa(dataclasses.replace(recipe, compat=compat), HORIZON)
        for blocks in (method.online.blocks, method.predictor.predictor_blocks):
            first, second = (float(block.mlp.fc2.weight.detach().std()) for block in blocks)
            assert math.isclose(first / second, ratio, rel_tol=0.1)


def test_the_paper_says_l2():
    prediction, target = torch.tensor([[[0.0, 3.0]]]), torch.zeros(1, 1, 2)
    assert float(ijepa_loss(prediction, target)) == 1.25
    assert float(ijepa_loss(prediction, target, "paper")) == 4.5


def test_presets_and_their_masks():
    for recipe in IJepaRecipe.presets().values():
        found = IJepa.data(recipe).masks(2, 0, torch.Generator().manual_seed(0))
        side = recipe.size // recipe.patch
        assert found["targets"].shape[:2] == (recipe.targets, 2)
        assert found["context"].max() < side * side


def test_a_predictor_that_its_heads_do_not_divide_is_refused(recipe):
    with pytest.raises(ValueError, match="predictor width 15"):
        IJepa(dataclasses.replace(recipe, predictor_width=15), HORIZON)
