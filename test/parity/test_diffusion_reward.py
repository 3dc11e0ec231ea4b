"""Our Diffusion Reward against the released code: networks, noise and loss (section 4 of the reward kit)."""

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from diffusion_reward_kit import (
    CODES,
    GRID,
    LATENT,
    STEPS,
    assert_relative,
    fill,
    latents_of,
    make_model,
    make_vqgan,
    tensor,
    uniforms,
)

from v2r_core.nn import discrete_diffusion as diffusion
from v2r_core.nn.denoiser_fold import FoldedDenoiser
from v2r_core.nn.diffusion_schedule import log_probabilities, probabilities
from v2r_core.nn.gpt_density import (
    GPTConfig,
    GPTDensity,
    clip_log_likelihood,
    clip_negative_entropy,
    subclips,
)
from v2r_core.nn.rnd import RandomNetworkDistillation, exploration_reward
from v2r_core.nn.taming_vqgan import TamingVQGAN


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("diffusion_reward.npz")


@pytest.fixture(scope="module")
def vqgan(stored):
    return make_vqgan(stored)


@pytest.fixture(scope="module")
def model(stored):
    return make_model(stored)


@pytest.fixture(scope="module")
def latents(stored, vqgan):
    return latents_of(stored, vqgan)


def assert_key_list(stored, name, shapes):
    keys = sorted(shapes)
    assert [zlib.crc32(key.encode()) for key in keys] == stored[f"keys/{name}/crc32"].tolist()
    padded = [[*shapes[key], *[-1] * (4 - len(shapes[key]))] for key in keys]
    assert padded == stored[f"keys/{name}/shape"].tolist()


def shapes_of(module, prefix=""):
    return {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}


# 4.1


def test_keys_of_the_vqgan(stored, vqgan):
    assert_key_list(stored, "vqgan", shapes_of(vqgan))


def test_latents_codes_and_code_loss(stored, vqgan, latents):
    assert_relative(latents, stored["vq/expected_prequant"], 1e-4)
    codes, quantized, loss = vqgan.quantize(latents)
    np.testing.assert_array_equal(codes.numpy(), stored["vq/expected_codes"])
    assert_relative(loss, stored["vq/expected_vq_loss"], 1e-4)
    distances = (latents.flatten(2).transpose(1, 2)[:, :, None] - vqgan.codebook).square().sum(dim=-1)
    nearest = distances.sort(dim=-1).values
    assert_relative(nearest[..., 1] - nearest[..., 0], stored["vq/code_margin"], 1e-4)
    chosen = vqgan.codebook[codes].transpose(1, 2).unflatten(2, (GRID, GRID))
    torch.testing.assert_close(quantized, chosen, rtol=0, atol=1e-5)


def test_reconstructions(stored, vqgan, latents):
    with torch.no_grad():
        images = vqgan.decode(vqgan.quantize(latents)[1])
        assert_relative(images[:, :, ::4, ::4], stored["vq/expected_recon_slice"], 1e-4)
        sums = torch.stack([images.double().sum(dim=(1, 2, 3)), images.double().square().sum(dim=(1, 2, 3)).sqrt()], 1)
        # Each sum is over 12288 pixels with an error of 1e-6 or so.
        assert_relative(sums, stored["vq/expected_recon_sum_l2"], 1e-3)
        expected = stored["vq/expected_decoded_from_codes_slice"]
        decoded = vqgan.decode_codes(tensor(stored, "vq/expected_codes")[: len(expected)])
    pixels = ((decoded + 1) * 127.5).clamp(0, 255)[:, :, ::4, ::4]
    np.testing.assert_allclose(pixels.numpy(), expected, rtol=0, atol=0.01)


def test_which_term_of_the_code_loss_has_beta(vqgan, latents):
    """The value is the same either way, so only gradients tell."""
    ratios = {}
    for compat in ("official", "paper"):
        other = TamingVQGAN(dataclasses.replace(vqgan.config, compat=compat))
        other.load_state_dict(vqgan.state_dict())
        moved = latents.clone().requires_grad_()
        other.quantize(moved)[2].backward()
        codes = other.codebook.grad.norm()
        ratios[compat] = float(moved.grad.norm() / codes)
    assert ratios["official"] / ratios["paper"] == pytest.approx(1 / 0.25**2, rel=1e-4)


# 4.2


@pytest.mark.parametrize(("steps", "codes"), [(100, 1024), (20, 8)])
def test_schedule(stored, steps, codes):
    table = probabilities(steps, codes)
    names = dict(
        at=table.keep,
        bt=table.switch,
        ct=table.mask,
        cumprod_at=table.cumulative_keep,
        cumprod_bt=table.cumulative_switch,
        cumprod_ct=table.cumulative_mask,
    )
    for name, found in names.items():
        expected = stored[f"sched/T{steps}_K{codes}/expected_{name}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=name)


def test_logarithms_of_the_schedule(stored, model):
    for name, found in vars(log_probabilities(STEPS, CODES)).items():
        expected = stored[f"sched/n33/expected_{name}"]
        tolerance = 2e-4 if name == "log_1_min_ct" else 1e-5
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected), err_msg=name)
        np.testing.assert_array_equal(getattr(model, name).numpy(), found)


def same_step(t, count):
    return torch.full((count,), t)


@pytest.mark.parametrize("t", [-1, 0, 37, 99])
def test_forward_distributions(stored, model, t):
    x0 = tensor(stored, "qpost/x0")
    onehot = diffusion.log_onehot(x0, CODES + 1)
    found = diffusion.q_pred(onehot, same_step(t, len(x0)), model.schedule)
    np.testing.assert_allclose(found, stored[f"qpred/t{t}/expected"], rtol=0, atol=1e-3)
    if t >= 0:
        found = diffusion.q_pred_one(onehot, same_step(t, len(x0)), model.schedule)
        np.testing.assert_allclose(found, stored[f"qpred_one/t{t}/expected"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("t", [0, 9, 37, 99])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_posterior(stored, model, t, kind):
    x0, xt = tensor(stored, "qpost/x0"), tensor(stored, "qpost/xt")
    given = tensor(stored, "qpost/log_x0") if kind == "soft" else diffusion.log_onehot(x0, CODES + 1)
    found = diffusion.q_posterior(given, xt, same_step(t, len(x0)), model.schedule)
    np.testing.assert_allclose(found, stored[f"qpost/t{t}/expected_{kind}"], rtol=0, atol=1e-3)


def test_divergence_of_posteriors(stored):
    hard, soft = tensor(stored, "qpost/t37/expected_hard"), tensor(stored, "qpost/t37/expected_soft")
    found = diffusion.kl_divergence(hard, soft)
    np.testing.assert_allclose(found, stored["multinomial_kl/expected"], rtol=0, atol=1e-3)


# 4.3


def test_keys_of_the_denoiser(stored, model):
    assert_key_list(stored, "diffusion", shapes_of(model, "transformer."))


def test_the_generated_weights_are_the_reference_ones(stored, model):
    checks = [name for name in stored.files if name.startswith("weights_check/")]
    assert checks
    state = {f"transformer.{key}": value for key, value in model.state_dict().items()}
    for name in checks:
        np.testing.assert_array_equal(state[name.removeprefix("weights_check/")].flatten()[:6].numpy(), stored[name])


def inputs(stored):
    return tensor(stored, "denoiser/xt"), tensor(stored, "denoiser/t"), tensor(stored, "denoiser/cond_tokens")


def test_denoiser(stored, model):
    xt, t, condition = inputs(stored)
    with torch.no_grad():
        logits = model.logits(xt, t, condition)
        np.testing.assert_allclose(logits, stored["denoiser/expected_logits"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(model(xt, t, condition), stored["denoiser/expected_log_x0"], rtol=0, atol=1e-4)
        shuffled = model.logits(xt, t, condition[:, tensor(stored, "denoiser/cond_permutation")])
    # The condition is a bag of codes: an order of frames or places is nowhere in the network.
    np.testing.assert_allclose(shuffled, logits, rtol=0, atol=1e-4)


def test_the_folded_denoiser_is_the_same(stored, model):
    xt, t, condition = inputs(stored)
    with torch.no_grad():
        found = FoldedDenoiser(model)(xt, t, condition)
    np.testing.assert_allclose(found, stored["denoiser/expected_log_x0"], rtol=0, atol=1e-4)


# 4.4


@pytest.fixture(scope="module")
def training(stored, model):
    """Losses of the kit's batch, with gradients in the model."""
    x0, t = tensor(stored, "train/x0"), tensor(stored, "train/t")
    uniform = torch.from_numpy(uniforms(stored["train/uniform_u16"]))
    xt = diffusion.noised_tokens(x0, t, model.schedule, CODES, uniform)
    model.zero_grad(set_to_none=True)
    log_x0 = model(xt, t, tensor(stored, "train/cond_tokens"))
    main, auxiliary = diffusion.bound_terms(log_x0, x0, xt, t, model.schedule)
    chances = torch.full(t.shape, 1 / STEPS)
    full = diffusion.weighted_losses(main, auxiliary, t, chances, STEPS)
    plain = diffusion.weighted_losses(main, auxiliary, t, chances, STEPS, auxiliary_weight=0.0)
    (full.sum() / x0.numel()).backward()
    return {"x0": x0, "t": t, "xt": xt, "log_x0": log_x0, "main": main, "full": full, "plain": plain}


def test_noised_tokens(stored, training):
    np.testing.assert_array_equal(training["xt"].numpy(), stored["train/expected_xt"])


def test_losses(stored, model, training):
    x0, xt, t = training["x0"], training["xt"], training["t"]
    posterior = diffusion.q_posterior(training["log_x0"], xt, t, model.schedule)[:, :, ::4]
    np.testing.assert_allclose(posterior.detach(), stored["train/expected_log_model_prob"], rtol=0, atol=1e-3)
    assert_relative(training["full"], stored["train/expected_loss_per_item"], 1e-4)
    assert_relative(training["plain"], stored["train/expected_loss_per_item_without_aux"], 1e-4)
    total = training["full"].sum() / x0.numel()
    assert_relative(total, stored["train/expected_total_loss"], 1e-4)
    assert_relative(total, stored["train/expected_total_loss_from_forward"], 1e-4)


def test_gradients(stored, model, training):
    names = sorted(f"transformer.{name}" for name, _ in model.named_parameters())
    parameters = dict(model.named_parameters())
    assert len(names) == len(stored["train/expected_grad_sum_l2"])
    for name, (_, norm), present in zip(
        names, stored["train/expected_grad_sum_l2"], stored["train/expected_grad_present"], strict=True
    ):
        gradient = parameters[name.removeprefix("transformer.")].grad
        assert (gradient is not None) == present, name
        found = 0.0 if gradient is None else float(gradient.double().norm())
        assert abs(found - norm) <= 1e-3 * norm + 1e-6, name


def test_history_and_importance(stored, training):
    zeros = torch.zeros(STEPS)
    history, visits = diffusion.update_history(zeros, zeros, training["t"], training["main"])
    assert_relative(history[training["t"]], stored["train/expected_Lt_history_at_t"], 1e-4)
    assert visits.sum() == len(training["t"])
    given = tensor(stored, "train/importance_history")
    expected = stored["train/expected_importance_probabilities"]
    np.testing.assert_allclose(diffusion.importance(given), expected, rtol=0, atol=1e-6)
    enough = torch.full((STEPS,), 11.0)
    np.testing.assert_allclose(diffusion.step_chances(given, enough), expected, rtol=0, atol=1e-6)
    enough[3] = 10.0
    np.testing.assert_allclose(diffusion.step_chances(given, enough), 1 / STEPS, rtol=1e-6)


# 4.8


def test_random_network_distillation(stored):
    rnd = fill(RandomNetworkDistillation(), stored, "rnd.")
    assert_key_list(stored, "rnd", shapes_of(rnd, "rnd."))
    frames = tensor(stored, "rnd/obs").permute(0, 2, 3, 1)
    predicted, target = rnd.features(frames)
    assert_relative(predicted[:, ::16], stored["rnd/expected_predictor_features"], 1e-4)
    assert_relative(target[:, ::16], stored["rnd/expected_target_features"], 1e-4)
    assert_relative(rnd.reward(frames)[:, None], stored["rnd/expected_reward_before"], 1e-4)
    optimizer = torch.optim.Adam(rnd.predictor.parameters(), lr=1e-4)
    losses = []
    for number in (1, 2, 3):
        losses.append(rnd.update(frames, optimizer))
        assert_relative(rnd.reward(frames)[:, None], stored[f"rnd/expected_reward_after_{number}"], 1e-3)
    assert_relative(losses, stored["rnd/expected_losses"], 1e-3)
    scaled = exploration_reward(torch.zeros(len(frames)), rnd.reward(frames), alpha=0.95)
    assert_relative(scaled[:, None], stored["rnd/expected_scaled_reward_after_3"], 1e-3)


# 4.9


@pytest.fixture(scope="module")
def gpt(stored):
    return fill(
        GPTDensity(GPTConfig(codes=CODES, latent=LATENT, block=256, width=32, depth=2, heads=4)), stored, "gpt."
    )


def test_keys_of_the_density_baseline(stored, gpt):
    assert_key_list(stored, "gpt", shapes_of(gpt, "gpt."))


@pytest.mark.parametrize("joint", [False, True])
def test_density_baseline(stored, vqgan, gpt, joint):
    codes = tensor(stored, "vq/expected_codes")
    with torch.no_grad():
        clips = subclips(codes, frames=3)
        likelihood = clip_log_likelihood(gpt(vqgan.codebook[clips]), clips, GRID**2, joint)
        clips = subclips(codes, frames=2)
        entropy = clip_negative_entropy(gpt(vqgan.codebook[clips]), GRID**2)
    assert_relative(likelihood[:, None], stored[f"gpt/likelihood_joint{int(joint)}/expected_reward"], 1e-3)
    assert_relative(entropy[:, None], stored[f"gpt/entropy_joint{int(joint)}/expected_reward"], 1e-3)
