"""MAE: training, its picture, its optimizer and what it exports."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from v2r_core.methods import mae
from v2r_core.methods.mae import MAE, MAERecipe, mae_loss, reconstruction
from v2r_core.methods.method import Horizon
from v2r_core.nn import vit
from v2r_core.nn.block import Block
from v2r_core.nn.patches import patchify, unpatchify
from v2r_core.nn.tail import block_tail

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=8, examples=40)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(vit.ARCHITECTURES, "toy", (32, 2, 2))
    return dataclasses.replace(
        MAERecipe.tiny(), architecture="toy", size=32, decoder_width=16, decoder_heads=2, batch_size=8, warmup_epochs=1
    )


@pytest.fixture
def method(recipe):
    torch.manual_seed(0)
    return MAE(recipe, HORIZON)


def batch_of(method, count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spec, size = method.data(method.recipe), method.recipe.size
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return {"views": [images], **spec.masks(count, 0, generator)}


def test_training_lowers_the_loss_below_that_of_predicting_zero(method):
    batch, optimizer = batch_of(method), method.optimizer()
    pixels = method.recipe.patch**2 * 3
    for _ in range(150):
        step = method(batch, 0)
        optimizer.zero_grad()
        step.loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        optimizer.step()
    assert float(step.loss.detach()) < 0.8 * (pixels - 1) / pixels
    assert step.features.shape == (8, 32)
    assert not step.features.requires_grad


def test_predicting_zero_scores_one_less_pixel():
    patches = torch.randn(4, 9, 48)
    assert math.isclose(float(mae_loss(torch.zeros_like(patches), patches)), 47 / 48, rel_tol=1e-4)


def test_only_what_is_masked_counts():
    prediction, patches = torch.randn(2, 6, 12), torch.randn(2, 6, 12)
    mask = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0]])
    changed = torch.where(mask[..., None] == 1, prediction, prediction + 9)
    assert torch.equal(mae_loss(prediction, patches, mask), mae_loss(changed, patches, mask))
    chosen = mask.bool()
    alone = mae_loss(prediction[chosen][None], patches[chosen][None])
    torch.testing.assert_close(mae_loss(prediction, patches, mask), alone)


def test_the_picture_shows_what_was_visible_and_hides_the_rest(method):
    batch, size, patch = batch_of(method, 2), method.recipe.size, method.recipe.patch
    view = method.data(method.recipe).views[0]
    picture = method.picture(batch)
    assert picture.shape == (2 * size, 4 * size, 3)
    assert picture.dtype == np.uint8
    _, mask = method.reconstruct(batch["views"][0], batch["noise"])
    hidden = unpatchify(mask[..., None].expand(-1, -1, patch * patch * 3), patch)[:, 0].reshape(-1, size).numpy()
    given, masked, _, pasted = np.split(picture, 4, axis=1)
    np.testing.assert_array_equal(masked[~hidden], given[~hidden])
    np.testing.assert_array_equal(pasted[~hidden], given[~hidden])
    grey = (np.array(view.mean) * 255).round()
    np.testing.assert_array_equal(masked[hidden], np.broadcast_to(grey, masked[hidden].shape))


def test_a_perfect_decoder_gives_the_image_back(method, monkeypatch):
    batch = batch_of(method, 2)
    images = batch["views"][0]

    def perfect(images, noise):
        patches = patchify(images, method.recipe.patch)
        mean, deviation = mae.patch_statistics(patches)
        return (patches - mean) / deviation, torch.zeros(patches.shape[:2], dtype=torch.bool)

    monkeypatch.setattr(method, "reconstruct", perfect)
    picture = reconstruction(method, images, batch["noise"], (0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    given, _, predicted, _ = np.split(picture.astype(int), 4, axis=1)
    assert np.abs(given - predicted).max() <= 1


def test_the_state_survives_the_official_names(method, recipe):
    other = MAE(recipe, HORIZON)
    mae.load_official(other, mae.to_official(method))
    for name, value in method.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(RuntimeError, match=r"decoder_pred\.weight"):
        mae.load_official(other, {k: v for k, v in mae.to_official(method).items() if k != "decoder_pred.weight"})


def test_initial_weights(method):
    backbone = method.backbone
    embedding = backbone.patch_embed.proj.weight.flatten(1)
    bound = math.sqrt(6 / sum(embedding.shape))
    assert 0.9 * bound < float(embedding.detach().abs().max()) <= bound
    assert float(backbone.patch_embed.proj.bias.detach().abs().max()) > 0
    assert all((m.bias == 0).all() for m in method.modules() if isinstance(m, nn.Linear))
    assert 0.005 < float(method.decoder.mask_token.detach().std()) < 0.04


def test_the_learning_rate_follows_the_batch_size(method):
    peak = method.recipe.base_lr * HORIZON.batch_size / 256
    assert method.schedule(0)["lr"] == 0
    assert math.isclose(method.schedule(5)["lr"], peak)
    assert method.schedule(19)["lr"] < 0.1 * peak


def test_the_encoder_shares_its_weights_and_pools_as_asked(method, recipe):
    encoder = method.encoder()
    frames = torch.randint(0, 256, (2, recipe.size, recipe.size, 3), dtype=torch.uint8)
    before = encoder(frames)
    assert before.shape == (2, 32)
    with torch.no_grad():
        method.backbone.norm.bias.add_(1.0)
    torch.testing.assert_close(encoder(frames), before + 1.0)
    assert MAE(dataclasses.replace(recipe, pool="cls"), HORIZON).encoder()(frames).shape == (2, 32)


def test_gradients_are_measured_and_not_changed(method):
    method(batch_of(method), 0).loss.backward()
    before = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    norm = method.adjust_gradients(0)["grad_norm"]
    assert norm > 0
    assert all(
        torch.equal(a, b.grad)
        for a, b in zip(before, (p for p in method.parameters() if p.grad is not None), strict=True)
    )


def test_the_tail_of_a_block_is_the_end_of_its_output():
    torch.manual_seed(0)
    block, tokens = Block(16, 4), torch.randn(3, 9, 16)
    torch.testing.assert_close(block_tail(block, tokens, 4), block(tokens)[:, -4:])
    rotary, places = Block(24, 2, rotary=(3, 3)), torch.randint(0, 27, (3, 9))
    tokens = torch.randn(3, 9, 24)
    torch.testing.assert_close(block_tail(rotary, tokens, 4, places), rotary(tokens, places)[:, -4:])


def test_half_precision_changes_the_loss_little(method):
    batch = batch_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch, 0).loss
    half.backward()
    torch.testing.assert_close(half, method(batch, 0).loss, rtol=0.02, atol=0.0)


def test_every_trainable_parameter_gets_a_gradient(method):
    method(batch_of(method), 0).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_presets(preset):
    recipe = MAERecipe.presets()[preset]
    assert recipe.mask_ratio == 0.75
    assert MAE.data(recipe).views[0].size == recipe.size
