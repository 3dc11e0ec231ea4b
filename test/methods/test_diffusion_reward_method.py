"""Diffusion Reward's training: the tokenizer that it reads, what its steps do, what it exports, released files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from v2r_core.methods import METHODS
from v2r_core.methods.diffusion_reward import DiffusionRewardMethod
from v2r_core.methods.diffusion_reward_recipe import DiffusionRewardRecipe
from v2r_core.methods.method import Horizon
from v2r_core.methods.tokenizer import split_rows
from v2r_core.methods.vqgan import VQGANMethod, VQGANRecipe
from v2r_core.nn import discrete_diffusion
from v2r_core.nn.denoiser import DenoiserConfig, DiffusionModel
from v2r_core.nn.taming_vqgan import TamingConfig, TamingVQGAN

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=8, examples=40)
RECIPE = DiffusionRewardRecipe(
    epochs=4,
    batch_size=8,
    channels=(32, 32, 32, 32),
    latent=4,
    codes=6,
    width=16,
    depth=2,
    heads=4,
    condition_width=12,
    diffusion_steps=10,
    lr=1e-2,
    warmup_steps=10,
    clip_steps=5,
    ema_every=3,
)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    made = TamingVQGAN(RECIPE.tokenizer_config())
    nn.init.normal_(made.codebook, std=0.3)
    return made


@pytest.fixture
def file(tokenizer, tmp_path):
    path = tmp_path / "vqgan.pt"
    torch.save(tokenizer.state_dict(), path)
    return path


@pytest.fixture
def method(file):
    return begun(file)


def begun(file, **changes):
    torch.manual_seed(0)
    made = DiffusionRewardMethod(dataclasses.replace(RECIPE, tokenizer=str(file), **changes), HORIZON)
    made.begin()
    return made


def batch_of(method, count=8, seed=0):
    """Codes that follow from the condition: each is that of the newest frame plus one."""
    generator = torch.Generator().manual_seed(seed)
    recipe = method.recipe
    frames = torch.randint(0, recipe.codes, (count, 3, recipe.grid**2), generator=generator)
    frames[:, 2] = (frames[:, :1, :1] + 1)[:, 0] % recipe.codes
    distances = 0.1 + 0.01 * torch.rand(count, 3, 1, generator=generator)
    noise = method.data(recipe).masks(count, seed, generator)
    return {"features": torch.cat([frames.float(), distances], dim=2), **noise}


def frames_of(count=5, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))


def test_the_tokenizer_of_a_released_file_is_taken_and_frozen(method, tokenizer):
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(method.tokenizer.state_dict()[key], value), key
    trained = {id(parameter) for group in method.optimizer().param_groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in method.tokenizer.parameters()}
    assert not method.tokenizer.training


def test_the_tokenizer_of_a_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "vqgan", "v2r_core.methods.vqgan:VQGANMethod")
    flavour = dataclasses.replace(VQGANRecipe.tiny_diffusion_reward(), channels=RECIPE.channels, latent=4, codes=6)
    made = {}
    for name, recipe in (("taming", flavour), ("viper", dataclasses.replace(flavour, flavour="viper"))):
        made[name] = VQGANMethod(recipe, HORIZON)
        folder = tmp_path / name / "checkpoints" / "step-00000001"
        folder.mkdir(parents=True)
        record = {"method": "vqgan", "recipe": dataclasses.asdict(recipe), "horizon": dataclasses.asdict(HORIZON)}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        state = {key: value.contiguous() for key, value in made[name].state_dict().items()}
        save_file(state, folder / "method.safetensors")
    sizes = {"residual_blocks": 1, "attention_resolutions": ()}
    found = begun(tmp_path / "taming", **sizes).tokenizer.state_dict()
    for key, value in made["taming"].tokenizer.state_dict().items():
        assert torch.equal(found[key], value), key
    with pytest.raises(ValueError, match="flavour diffusion-reward"):
        begun(tmp_path / "viper", **sizes)


def test_a_tokenizer_of_another_size_is_refused_by_name(file):
    with pytest.raises(ValueError, match="codes is 6, the recipe's 7; set codes to 6"):
        begun(file, codes=7)
    with pytest.raises(ValueError, match="needs the tokenizer"):
        begun("")
    with pytest.raises(ValueError, match=r"no run\.json"):
        begun(file.parent)


def test_features_are_codes_and_distances(method, tokenizer):
    frames = frames_of()
    frozen = method.frozen()
    codes, distances = split_rows(frozen.apply(frames))
    latents = tokenizer.encode(frames.permute(0, 3, 1, 2) / 127.5 - 1)
    expected, quantized, _ = tokenizer.quantize(latents)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(distances, (latents - quantized).square().mean(dim=(1, 2, 3)).sqrt())
    assert len(expected.unique()) > 1
    name = frozen.name
    with torch.no_grad():
        method.tokenizer.codebook[0, 0] += 1
    assert method.frozen().name != name


def test_training_learns_what_follows_from_the_condition(method):
    batch, optimizer = batch_of(method, 16), method.optimizer()
    first, losses = float(method(batch, 0).loss.detach()), []
    for step in range(60):
        noise = method.data(method.recipe).masks(16, step, torch.Generator().manual_seed(step))
        outcome = method({**batch, **noise}, step)
        optimizer.zero_grad()
        outcome.loss.backward()
        method.adjust_gradients(step)
        for group in optimizer.param_groups:
            group["lr"] = method.schedule(step)["lr"]
        optimizer.step()
        method.after_step(step)
        losses.append(float(outcome.metrics["bound_per_token"]))
    assert np.mean(losses[-10:]) < 0.5 * first
    assert method.model.Lt_count.sum() == 16 * 61


def test_the_loss_is_the_weighted_bound(method):
    batch = batch_of(method)
    codes, _ = split_rows(batch["features"])
    x0, steps = codes[:, 2], method.recipe.diffusion_steps
    chances = torch.full((steps,), 1 / steps)
    t = discrete_diffusion.draw_steps(chances, batch["step_uniform"])
    schedule = method.model.schedule
    tokens = discrete_diffusion.noised_tokens(x0, t, schedule, method.recipe.codes, batch["token_uniform"])
    log_x0 = method.model(tokens, t, codes[:, :2].flatten(1))
    main, auxiliary = discrete_diffusion.bound_terms(log_x0, x0, tokens, t, schedule)
    expected = ((main + 1e-3 * (2 - t / steps) * auxiliary) * steps).sum() / x0.numel()
    torch.testing.assert_close(method(batch, 0).loss, expected)


@pytest.mark.parametrize("compat", ["official", "paper"])
def test_what_is_trained(file, compat):
    method = begun(file, compat=compat)
    method(batch_of(method), 0).loss.backward()
    trained = {name for name, weight in method.named_parameters() if weight.requires_grad}
    assert [name for name in trained if dict(method.named_parameters())[name].grad is None] == []
    assert ("model.condition_emb.emb.weight" in trained) == (compat == "paper")
    assert ("model.condition_emb.place_emb.weight" in trained) == (compat == "paper")
    assert not any(name.startswith(("tokenizer", "average")) for name in trained)


def test_only_the_paper_knows_the_order_of_frames(file):
    for compat, same in (("official", True), ("paper", False)):
        method = begun(file, compat=compat)
        codes, _ = split_rows(batch_of(method)["features"])
        t = torch.full((len(codes),), 5)
        forth, back = (method.model.logits(codes[:, 2], t, codes[:, order].flatten(1)) for order in ([0, 1], [1, 0]))
        assert torch.allclose(forth, back, atol=1e-5) == same, compat


def test_the_average_moves_every_third_step(method):
    before = [weight.clone() for weight in method.average.parameters()]
    with torch.no_grad():
        for weight in method.model.parameters():
            weight.add_(1.0)
    for step in range(2):
        method.after_step(step)
    assert all(torch.equal(a, b) for a, b in zip(before, method.average.parameters(), strict=True))
    method.after_step(2)
    for old, new in zip(before, method.average.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.01)


def test_gradients_are_clipped_in_the_first_steps_only(method):
    method(batch_of(method), 0).loss.backward()
    parameters = [weight for weight in method.model.parameters() if weight.grad is not None]
    whole = method.adjust_gradients(method.recipe.clip_steps)["grad_norm"]
    assert whole > 0.5
    assert float(nn.utils.get_total_norm([weight.grad for weight in parameters])) == pytest.approx(whole, rel=1e-4)
    method.adjust_gradients(0)
    assert float(nn.utils.get_total_norm([weight.grad for weight in parameters])) == pytest.approx(0.5, rel=1e-3)


def test_the_learning_rate_warms_up_and_stays(method):
    rates = [method.schedule(step)["lr"] for step in (0, 4, 9, 10_000)]
    assert rates == pytest.approx([1e-3, 5e-3, 1e-2, 1e-2])


def test_steps_are_drawn_in_proportion():
    chances = torch.tensor([0.1, 0.6, 0.3])
    drawn = discrete_diffusion.draw_steps(chances, (torch.arange(1000) + 0.5) / 1000)
    assert torch.bincount(drawn).tolist() == [100, 600, 300]
    assert discrete_diffusion.draw_steps(chances, torch.tensor([0.0, 1.0])).tolist() == [0, 2]


def test_a_step_that_comes_twice_counts_with_the_mean_of_its_squares():
    zeros = torch.zeros(4)
    history, visits = discrete_diffusion.update_history(
        zeros + 5, zeros, torch.tensor([1, 1, 3]), torch.tensor([1.0, 3.0, 2.0])
    )
    torch.testing.assert_close(history, torch.tensor([5.0, 4.5 + 0.5, 5.0, 4.5 + 0.4]))
    assert visits.tolist() == [0, 2, 0, 1]


def test_the_threshold_is_six_deviations_above_the_mean(method):
    with pytest.raises(ValueError, match="train first"):
        method.reward_export()
    batches = [batch_of(method, seed=seed) for seed in range(3)]
    for batch in batches:
        method(batch, 0)
    method.eval()
    method(batches[0], 0)
    seen = torch.cat([batch["features"][..., -1].flatten() for batch in batches]).double()
    expected = seen.mean() + 6 * seen.std(correction=0)
    assert method.reward_export().tensors["quantization_threshold"] == pytest.approx(float(expected), rel=1e-5)


def test_the_encoder_gives_latents_before_quantisation(method, tokenizer):
    frames = frames_of(2)
    found = method.encoder()(frames)
    latents = tokenizer.encode(frames.permute(0, 3, 1, 2) / 127.5 - 1)
    assert found.shape == (2, 64 * 4)
    torch.testing.assert_close(found.reshape(2, 8, 8, 4), latents.permute(0, 2, 3, 1))


@pytest.mark.parametrize("compat", ["official", "paper"])
def test_the_exported_denoiser_is_the_average(file, compat):
    method = begun(file, compat=compat)
    method(batch_of(method), 0)
    with torch.no_grad():
        for weight in method.average.parameters():
            weight.normal_(std=0.3)
    export = method.reward_export()
    (name, network), *others = export.networks.items()
    assert (export.name, name, others) == ("diffusion", "denoiser", [])
    assert list(network.inputs) == ["tokens", "t", "condition"]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 7, (3, 64), generator=generator)
    condition = torch.randint(0, 6, (3, 128), generator=generator)
    t = torch.tensor([0, 4, 9])
    with torch.no_grad():
        expected = method.average(tokens, t, condition)
        torch.testing.assert_close(network.module(tokens, t, condition), expected, rtol=0, atol=1e-4)
        assert float(expected.std()) > 0.1
        network.module(**network.inputs)
    assert export.tensors["codebook"].shape == (6, 4)
    assert export.tensors["quantization_threshold"].shape == ()


def test_the_official_likelihood_is_exported_for_three_frames(file):
    for compat, frames in (("official", 3), ("paper", 2)):
        method = begun(file, compat=compat, mode="likelihood")
        method(batch_of(method), 0)
        network = method.reward_export().networks["denoiser"]
        assert network.inputs["condition"].shape == (2, frames * 64)
        assert network.module(**network.inputs).shape == (2, 7, 64)


def test_the_picture_shows_four_frames_a_row(method):
    picture = method.picture(batch_of(method, 10))
    assert picture.shape == (8 * 64, 4 * 64, 3)
    assert picture.dtype == np.uint8
    codes, _ = split_rows(batch_of(method, 10)["features"])
    with torch.no_grad():
        second = ((method.tokenizer.decode_codes(codes[1:2, 1]) + 1) * 127.5).clamp(0, 255).round()[0]
    np.testing.assert_allclose(picture[64:128, 64:128], second.permute(1, 2, 0).numpy(), atol=1)


def test_half_precision_changes_the_loss_little(method):
    batch = batch_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(batch, 0).loss
    half.backward()
    torch.testing.assert_close(half, method(batch, 0).loss, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_presets(preset):
    recipe = DiffusionRewardRecipe.presets()[preset]
    assert recipe.grid**2 == 64
    with torch.device("meta"):
        model = DiffusionModel(recipe.denoiser_config())
        vqgan = TamingVQGAN(recipe.tokenizer_config())
    counts = [sum(weight.numel() for weight in part.parameters()) / 1e6 for part in (vqgan, model)]
    if preset == "paper":
        assert counts == pytest.approx([20.5, 18.0], abs=0.1)
    else:
        assert sum(counts) < 2


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="grid of 8"):
        TamingConfig(size=60)
    with pytest.raises(ValueError, match="multiples of 32"):
        TamingConfig(channels=(32, 40))
    with pytest.raises(ValueError, match="no multiple of 3 heads"):
        DenoiserConfig(width=16, heads=3)
    small = TamingVQGAN(TamingConfig(size=32, channels=(32, 32, 64), latent=4, codes=5))
    images, codes, _ = small(torch.zeros(2, 3, 32, 32))
    assert (images.shape, codes.shape) == ((2, 3, 32, 32), (2, 64))
