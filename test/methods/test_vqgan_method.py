"""Tokenizers: both flavours train, the losses pull what they should, weights of others' networks, what is exported."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from v2r_core.methods.method import Horizon
from v2r_core.methods.tokenizer import DistanceMoments, latent_encoder, split_rows, token_rows
from v2r_core.methods.vqgan import VQGANMethod, VQGANRecipe, build_tokenizer
from v2r_core.nn.adversarial import (
    PatchDiscriminator,
    ResidualDiscriminator,
    adaptive_weight,
    fixed_scores,
    hinge_loss,
)
from v2r_core.nn.perceptual import VGG16_LAYERS, BackboneStages, PerceptualDistance, VGG16Stages
from v2r_core.nn.vqgan import nearest_codes, perplexity, quantization_errors, quantization_rms
from v2r_core.rewards.quantization import quantize

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=8, examples=40)
TOY = {"batch_size": 8, "size": 16, "latent": 8, "codes": 16, "adversarial_start": 0, "discriminator_width": 8}
CHANNELS = {"tiny": (8, 16), "tiny-diffusion-reward": (32, 32)}
PRESETS = list(CHANNELS)


def toy_recipe(preset="tiny", **changes):
    # A patch discriminator halves twice and needs some pixels more.
    return dataclasses.replace(VQGANRecipe.presets()[preset], **{**TOY, "channels": CHANNELS[preset], **changes})


def toy_method(preset="tiny", **changes):
    torch.manual_seed(0)
    return VQGANMethod(toy_recipe(preset, **{"discriminator": "residual", **changes}), HORIZON)


def images_of(count=8, size=16, seed=0):
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return functional.interpolate(coarse, size=size, mode="bilinear")


def batch_of(count=8, size=16, seed=0):
    return {"views": [images_of(count, size, seed)]}


def fit(method, steps, first=0, batch=None):
    batch, optimizer = batch or batch_of(), method.optimizer()
    method.train()
    outcomes = []
    for step in range(first, first + steps):
        outcome = method(batch, step)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        outcomes.append({key: float(value) for key, value in outcome.metrics.items()})
    return outcomes


@pytest.mark.parametrize("preset", PRESETS)
def test_training_reconstructs_better_than_the_mean(preset):
    outcomes = fit(toy_method(preset, revive=5, adversarial_start=25, lr=3e-3), 30)
    images = images_of()
    constant = (images - images.mean(dim=(0, 2, 3), keepdim=True)).abs().mean()
    assert outcomes[-1]["l1"] < 0.7 * float(constant)
    assert outcomes[-1]["codes_used"] > 4
    assert 1 < outcomes[-1]["perplexity"] <= 16


@pytest.mark.parametrize("discriminator", ["patch", "residual"])
def test_every_trainable_parameter_gets_a_gradient(discriminator):
    for first in (0, 10):
        method = toy_method(size=32, discriminator=discriminator, adversarial_start=10)
        method(batch_of(size=32), first).loss.backward()
        missing = [name for name, weight in method.named_parameters() if weight.requires_grad and weight.grad is None]
        assert missing == []
    assert len(list(method.discriminator.parameters())) > 4


def test_before_its_start_the_discriminator_changes_nothing():
    method, alone = toy_method(adversarial_start=10), toy_method(adversarial_weight=0.0)
    alone.tokenizer.load_state_dict(method.tokenizer.state_dict())
    batch = batch_of()
    early = method(batch, 9)
    early.loss.backward()
    alone(batch, 0).loss.backward()
    assert "discriminator" not in early.metrics
    assert float(early.loss.detach()) == pytest.approx(float(alone(batch, 0).loss.detach()))
    assert all(float(weight.grad.abs().max()) == 0 for weight in method.discriminator.parameters())
    for ours, theirs in zip(method.tokenizer.parameters(), alone.tokenizer.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_one_loss_gives_the_gradients_of_alternating_updates():
    method, batch = toy_method(adaptive=False, adversarial_weight=0.5), batch_of()
    method(batch, 0).loss.backward()
    tokenizer, discriminator, images = method.tokenizer, method.discriminator, batch["views"][0]
    found = {name: weight.grad.clone() for name, weight in method.named_parameters() if weight.grad is not None}

    reconstructed, _, table = tokenizer(images)
    generator = (reconstructed - images).abs().mean() + table - 0.5 * discriminator(reconstructed).mean()
    first = torch.autograd.grad(generator, list(tokenizer.parameters()), allow_unused=True)
    critic = 0.5 * hinge_loss(discriminator(images), discriminator(reconstructed.detach()))
    second = torch.autograd.grad(critic, list(discriminator.parameters()))

    names = [f"tokenizer.{name}" for name, _ in tokenizer.named_parameters()]
    names += [f"discriminator.{name}" for name, _ in discriminator.named_parameters()]
    for name, expected in zip(names, [*first, *second], strict=True):
        if expected is not None:
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


def test_fixed_scores_move_images_only():
    torch.manual_seed(0)
    discriminator, images = PatchDiscriminator(8).train(), images_of(size=32).requires_grad_()
    scores = fixed_scores(discriminator, images)
    torch.testing.assert_close(scores, discriminator(images))
    scores.sum().backward()
    assert images.grad.abs().max() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    layer = torch.ones(4, requires_grad=True)
    weight = adaptive_weight((3 * layer).sum(), (0.5 * layer).sum(), layer, factor=0.8)
    assert float(weight) == pytest.approx(0.8 * 6 / (1 + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight((1e9 * layer).sum(), (0 * layer).sum(), layer)) == pytest.approx(0.8e4)


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(hinge_loss(real, fake)) == pytest.approx((0.25 + 0.5) / 2)


def test_discriminators():
    images = images_of(size=64)
    assert PatchDiscriminator(8)(images).shape == (8, 1, 6, 6)
    assert ResidualDiscriminator(64, 8)(images).shape == (8, 1)
    with pytest.raises(ValueError, match="size is 48"):
        ResidualDiscriminator(48)
    with pytest.raises(ValueError, match="layers 0"):
        PatchDiscriminator(layers=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_quantisation(preset):
    torch.manual_seed(0)
    network = build_tokenizer(toy_recipe(preset))
    with torch.no_grad():
        network.codebook.normal_()
    latents = torch.randn(3, 8, 8, 8, requires_grad=True)
    codes, quantized, loss = network.quantize(latents)
    assert codes.shape == (3, 64)
    assert codes.dtype == torch.int64
    rows = latents.detach().permute(0, 2, 3, 1).reshape(-1, 8)
    torch.testing.assert_close(codes.flatten(), torch.cdist(rows, network.codebook.detach()).argmin(dim=1))
    picked = network.codebook[codes].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    torch.testing.assert_close(quantized, picked)
    torch.testing.assert_close(network.decode_codes(codes), network.decode(quantized), rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(quantized)
    (through,) = torch.autograd.grad(quantized, latents, upstream, retain_graph=True)
    torch.testing.assert_close(through, upstream)
    to_latents, to_codes = torch.autograd.grad(loss, [latents, network.codebook])
    difference = 2 * (latents.detach() - picked.detach()) / latents.numel()
    commitment, pull = (0.25, 1.0) if preset == "tiny" else (1.0, 0.25)
    torch.testing.assert_close(to_latents, commitment * difference)
    expected = torch.zeros_like(network.codebook)
    expected.index_add_(0, codes.flatten(), -pull * difference.permute(0, 2, 3, 1).reshape(-1, 8))
    torch.testing.assert_close(to_codes, expected)


def test_the_paper_swaps_the_weights_back():
    network = build_tokenizer(toy_recipe("tiny-diffusion-reward", compat="paper"))
    assert (network.commitment, network.pull) == (0.25, 1.0)


def test_errors_of_quantisation_have_equal_values_and_one_gradient_each():
    latents, chosen = torch.randn(2, 4, 3, 3, requires_grad=True), torch.randn(2, 4, 3, 3, requires_grad=True)
    commit, table = quantization_errors(latents, chosen)
    assert torch.equal(commit.detach(), table.detach())
    assert torch.autograd.grad(commit, [latents, chosen], allow_unused=True)[1] is None
    assert torch.autograd.grad(table, [latents, chosen], allow_unused=True)[0] is None


def test_the_first_of_equal_codes_is_taken():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest_codes(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), codebook).tolist() == [0, 1]


def test_perplexity_counts_codes():
    assert float(perplexity(torch.arange(8), 8)) == pytest.approx(8, rel=1e-4)
    assert float(perplexity(torch.zeros(8, dtype=torch.int64), 8)) == pytest.approx(1, rel=1e-4)


def test_idle_codes_come_back_as_latents():
    method = toy_method(revive=3, adversarial_weight=0.0)
    method.train()
    with torch.no_grad():
        method.tokenizer.codebook[1:] = 100.0
    far = method.tokenizer.codebook[1:].clone()
    for step in range(2):
        method(batch_of(), step)
    torch.testing.assert_close(method.tokenizer.codebook.detach()[1:], far)
    method(batch_of(), 2)
    latents = method.tokenizer.encode(images_of()).detach().permute(0, 2, 3, 1).reshape(-1, 8)
    revived = method.tokenizer.codebook.detach()[1:]
    assert float((revived[:, None] - latents).abs().amax(dim=2).amin(dim=1).max()) < 1e-6
    assert int(method.idle.max()) == 0
    method.eval()
    before = method.tokenizer.codebook.detach().clone()
    for step in range(5):
        method(batch_of(), step)
    assert torch.equal(method.tokenizer.codebook, before)


def test_the_perceptual_distance_is_lpips_formula():
    torch.manual_seed(0)
    network = PerceptualDistance(
        VGG16Stages(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), [n for n, _ in VGG16_LAYERS]
    )
    weights = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, (n, _) in enumerate(VGG16_LAYERS)}
    network.load_channel_weights(weights, "vgg.pth")
    first, second = images_of(2, 32), images_of(2, 32, seed=1)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    maps = [network.stages((x - shift[:, None, None]) / scale[:, None, None]) for x in (first, second)]
    expected = 0.0
    for number, (one, other) in enumerate(zip(*maps, strict=True)):
        assert one.shape[1:] == (VGG16_LAYERS[number][0], 32 // 2**number, 32 // 2**number)
        squares = (functional.normalize(one) - functional.normalize(other)).square()
        expected = expected + (squares * weights[f"lin{number}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(network(first, second), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight is missing"):
        network.load_channel_weights({}, "vgg.pth")


def test_perceptual_gradients_are_finite_where_all_channels_are_zero():
    class Dead(nn.Module):
        def forward(self, images):
            return [torch.relu(images - 10)]

    network = PerceptualDistance(Dead(), (0.5,) * 3, (0.5,) * 3)
    images = images_of().requires_grad_()
    network(images, images_of(seed=1)).sum().backward()
    assert images.grad.isfinite().all()


def test_an_encoder_of_ours_measures_distances_too(monkeypatch):
    from v2r_core.methods import vqgan

    made = vqgan.create_encoder
    monkeypatch.setattr(
        vqgan, "create_encoder", lambda name, weights=None, pretrained=True: made(name, pretrained=False)
    )
    method = toy_method(perceptual="efficientnet_lite0", size=32, adversarial_weight=0.0)
    method.begin()
    before = [weight.clone() for weight in method.perceptual.state_dict().values()]
    outcomes = fit(method, 2, batch=batch_of(size=32))
    assert outcomes[0]["perceptual"] > 0
    assert not method.perceptual.training
    assert all(torch.equal(a, b) for a, b in zip(before, method.perceptual.state_dict().values(), strict=True))
    images = images_of(size=32)
    assert float(method.perceptual(images, images).max()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="Sequential does not show its stages"):
        BackboneStages(nn.Sequential())


def test_weights_of_vgg16_are_read_from_files(tmp_path):
    torch.manual_seed(1)
    stages = VGG16Stages()
    torch.save({**stages.state_dict(), "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, (n, _) in enumerate(VGG16_LAYERS)}
    torch.save(linear, tmp_path / "vgg.pth")
    files = {"perceptual_weights": str(tmp_path / "vgg16.pth"), "lpips_weights": str(tmp_path / "vgg.pth")}
    method = toy_method(perceptual="vgg16", **files)
    method.begin()
    images = images_of(2)
    for ours, theirs in zip(method.perceptual.stages(images), stages(images), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(method.perceptual.weights[4], linear["lin4.model.1.weight"].flatten())
    with pytest.raises(ValueError, match="perceptual_weights is empty"):
        toy_method(perceptual="vgg16").begin()
    with pytest.raises(ValueError, match="lpips_weights are for vgg16"):
        toy_recipe(lpips_weights="vgg.pth")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_encoder_gives_latents_that_the_host_quantises_alike(preset):
    method = toy_method(preset)
    with torch.no_grad():
        method.tokenizer.codebook.normal_()
    encoder = method.encoder()
    frames = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        flat = encoder(frames)
        codes, quantized, _ = method.tokenizer.quantize(
            latents := method.tokenizer.encode(frames.permute(0, 3, 1, 2) / 127.5 - 1)
        )
    assert flat.shape == (3, encoder.embedding_dim) == (3, 64 * 8)
    found, distances = quantize(flat.numpy(), method.tokenizer.codebook.detach().numpy())
    np.testing.assert_array_equal(found, codes.numpy())
    np.testing.assert_allclose(distances, quantization_rms(latents, quantized).numpy(), rtol=1e-4)
    rows = token_rows(method.tokenizer, frames)
    again, rms = split_rows(rows)
    assert torch.equal(again, codes)
    np.testing.assert_allclose(rms.numpy(), distances, rtol=1e-4)
    assert latent_encoder(method.tokenizer, "name", "source").name == "name"


def test_distances_are_remembered():
    moments = DistanceMoments()
    with pytest.raises(ValueError, match="train first"):
        moments.threshold  # noqa: B018
    values = torch.rand(5, 7)
    moments.add(values[:2])
    moments.add(values[2:])
    expected = values.double().mean() + 6 * values.double().std(correction=0)
    assert moments.threshold == pytest.approx(float(expected), rel=1e-6)


def test_the_picture_has_frames_over_reconstructions():
    method, batch = toy_method(), batch_of(10)
    picture = method.picture(batch)
    assert picture.shape == (32, 8 * 16, 3)
    assert picture.dtype == np.uint8
    given = ((batch["views"][0][:8] + 1) * 127.5).permute(2, 0, 3, 1).reshape(16, 8 * 16, 3).numpy()
    assert np.abs(picture[:16] - given).max() <= 0.51


@pytest.mark.parametrize("preset", PRESETS)
def test_the_state_can_be_loaded(preset):
    method = toy_method(preset)
    fit(method, 2)
    other = VQGANMethod(method.recipe, HORIZON)
    other.load_state_dict(method.state_dict(), strict=True)
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(other.encoder()(frames), method.encoder()(frames))


def test_half_precision_changes_the_loss_little():
    method, batch = toy_method(adversarial_weight=0.0), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch, 0).loss
    half.backward()
    torch.testing.assert_close(half, method(batch, 0).loss, rtol=0.05, atol=0.0, check_dtype=False)


@pytest.mark.parametrize("preset", VQGANRecipe.presets())
def test_presets(preset):
    recipe = VQGANRecipe.presets()[preset]
    with torch.device("meta"):
        network = build_tokenizer(recipe)
    assert network.grid == (16 if preset == "paper-atari" else 8)
    assert network.codebook.shape == (recipe.codes, recipe.latent)
    view = VQGANMethod.data(recipe).views[0]
    assert (view.size, view.crop, view.flip, view.mean) == (recipe.size, "whole", 0.0, (0.5, 0.5, 0.5))


def test_the_released_size_of_diffusion_reward():
    with torch.device("meta"):
        network = build_tokenizer(VQGANRecipe.paper_diffusion_reward())
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(20.5, abs=0.1)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="beta is -1"):
        toy_recipe(beta=-1)
    with pytest.raises(ValueError, match="cannot be halved"):
        build_tokenizer(toy_recipe(size=18, channels=(8, 8, 8)))
