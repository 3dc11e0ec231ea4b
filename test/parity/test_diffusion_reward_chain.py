"""Our chains and rewards of Diffusion Reward against the released code (sections 4.5 to 4.7 of the reward kit)."""

import numpy as np
import pytest
import torch
from diffusion_reward_kit import CODES, GRID, STEPS, assert_relative, latents_of, make_model, make_vqgan, uniforms

from v2r_core.nn import discrete_diffusion as diffusion
from v2r_core.nn.diffusion_schedule import chain_steps, log_probabilities
from v2r_core.nn.rnd import mixed_reward
from v2r_core.rewards.denoising import denoising_chain, gumbel
from v2r_core.rewards.diffusion_reward import DiffusionReward


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


def network_of(model):
    def denoise(tokens, t, condition):  # by position or by name, as an ONNX session is called
        with torch.no_grad():
            return model(torch.from_numpy(tokens), torch.from_numpy(t), torch.from_numpy(condition)).numpy()

    return denoise


def rewards(vqgan, model, latents, noise=None, **parameters):
    """Raw rewards of the kit's video by our reward class, observed at once."""
    reward = DiffusionReward(
        lambda frames: frames,
        {"denoiser": network_of(model)},
        {"codebook": vqgan.codebook.detach().numpy(), "quantization_threshold": np.float32(1e9)},
        steps=STEPS,
        incomplete="repeat",
        compat="official",
        **parameters,
    )
    reward.noise = noise or reward.noise
    reward.reset()
    rows = latents.permute(0, 2, 3, 1).flatten(1)[:, None].numpy()
    samples = reward.observe_many(rows)
    return np.array([sample.raw_reward for sample in samples]), np.array([sample.reward for sample in samples])


def keyed(levels):
    """The kit's numbers (steps, frames, classes, tokens), as the reward asks for them: frame by frame."""

    def source(frame):
        steps = iter(uniforms(levels[:, frame]))
        return lambda shape: np.broadcast_to(next(steps), shape)

    return source


SKIPS = [9, 24]


@pytest.mark.parametrize("skip", SKIPS)
def test_steps_of_the_chain(stored, skip):
    assert chain_steps(STEPS, skip) == stored[f"entropy/skip{skip}/expected_step_list"].tolist()


def compare_tokens(found, stored, skip, kind):
    """Exact, but where best and second-best are closer than rounding."""
    expected = stored[f"entropy/skip{skip}/expected_tokens_{kind}"]
    wrong = (found != expected).sum(axis=(1, 2))
    clear = stored[f"entropy/skip{skip}/argmax_margin"] > 1e-3 if kind == "noise_free" else np.ones(len(wrong), bool)
    assert not wrong[clear].any()
    assert wrong.sum() <= 1


@pytest.mark.parametrize("skip", SKIPS)
def test_chain_without_noise(stored, model, skip):
    chain = denoising_chain(
        network_of(model),
        stored["entropy/expected_cond_tokens"],
        log_probabilities(STEPS, CODES),
        skip,
        tokens=GRID**2,
        codes=CODES,
    )
    compare_tokens(chain.tokens, stored, skip, "noise_free")
    assert_relative(chain.divergences, stored[f"entropy/skip{skip}/expected_kl_noise_free"], 1e-3)
    assert_relative(chain.bound(), stored[f"entropy/skip{skip}/expected_reward_noise_free"], 1e-3)


@pytest.mark.parametrize("skip", SKIPS)
def test_chain_with_noise(stored, model, skip):
    levels = stored[f"entropy/skip{skip}/uniform_u16"]
    steps = iter(uniforms(levels))
    chain = denoising_chain(
        network_of(model),
        stored["entropy/expected_cond_tokens"],
        log_probabilities(STEPS, CODES),
        skip,
        tokens=GRID**2,
        codes=CODES,
        uniform=lambda: next(steps),
    )
    compare_tokens(chain.tokens, stored, skip, "noise")
    assert_relative(chain.bound(), stored[f"entropy/skip{skip}/expected_reward_noise"], 1e-3)


@pytest.mark.parametrize("skip", SKIPS)
def test_chain_with_the_reference_generator(stored, model, skip):
    torch.manual_seed(int(stored[f"entropy/skip{skip}/torch_seed"]))
    condition = stored["entropy/expected_cond_tokens"]
    chain = denoising_chain(
        network_of(model),
        condition,
        log_probabilities(STEPS, CODES),
        skip,
        tokens=GRID**2,
        codes=CODES,
        uniform=lambda: torch.rand(len(condition), CODES + 1, GRID**2).numpy(),
    )
    assert_relative(chain.bound(), stored[f"entropy/skip{skip}/expected_reward_torch_seed"], 1e-3)


@pytest.mark.parametrize("skip", SKIPS)
def test_entropy_reward(stored, vqgan, model, latents, skip):
    raw, _ = rewards(vqgan, model, latents, skip_step=skip, sampling="argmax")
    assert_relative(raw, stored[f"entropy/skip{skip}/expected_reward_noise_free"], 1e-3)
    noise = keyed(stored[f"entropy/skip{skip}/uniform_u16"])
    raw, _ = rewards(vqgan, model, latents, skip_step=skip, noise=noise)
    assert_relative(raw, stored[f"entropy/skip{skip}/expected_reward_noise"], 1e-3)


def test_three_samples(stored, vqgan, model, latents):
    levels = stored["entropy/three_samples_skip24/uniform_u16"]

    def source(frame):
        steps = iter(np.swapaxes(uniforms(levels[:, :, frame]), 0, 1))
        return lambda shape: next(steps).reshape(shape)

    raw, _ = rewards(vqgan, model, latents, skip_step=24, samples=len(levels), noise=source)
    assert_relative(raw, stored["entropy/three_samples_skip24/expected_reward_noise"], 1e-3)


@pytest.mark.parametrize("skip", SKIPS)
def test_likelihood_reward(stored, vqgan, model, latents, skip):
    raw, _ = rewards(vqgan, model, latents, mode="likelihood", skip_step=skip, sampling="argmax")
    assert_relative(raw, stored[f"likelihood/skip{skip}/expected_reward_noise_free"][:, 0], 1e-3)
    noise = keyed(stored[f"entropy/skip{skip}/uniform_u16"])
    raw, _ = rewards(vqgan, model, latents, mode="likelihood", skip_step=skip, noise=noise)
    assert_relative(raw, stored[f"likelihood/skip{skip}/expected_reward_noise"][:, 0], 1e-3)


@pytest.mark.parametrize(("mode", "name"), [("entropy", "entropy"), ("likelihood", "likelihood")])
def test_conditions(stored, vqgan, model, latents, mode, name):
    seen = []

    def spy(tokens, t, condition):
        seen.append(condition)
        return network_of(model)(tokens, t, condition)

    reward = DiffusionReward(
        lambda frames: frames,
        {"denoiser": spy},
        {"codebook": vqgan.codebook.detach().numpy(), "quantization_threshold": np.float32(1e9)},
        steps=STEPS,
        mode=mode,
        incomplete="repeat",
        compat="official",
        speed="one_call",
    )
    reward.reset()
    reward.observe_many(latents.permute(0, 2, 3, 1).flatten(1)[:, None].numpy())
    np.testing.assert_array_equal(np.concatenate(seen), stored[f"{name}/expected_cond_tokens"])


def test_standardised_reward(stored, vqgan, model, latents):
    mean, std = (float(value) for value in stored["standardise/mean_std"])
    alpha = float(stored["standardise/expl_scale"])
    _, standardised = rewards(vqgan, model, latents, skip_step=24, sampling="argmax", mean=mean, std=std, scale=1.0)
    expected = stored["standardise/expected_reward_entropy_skip24_noise_free"]
    np.testing.assert_allclose([mixed_reward(float(each), 0.0, alpha) for each in standardised], expected, atol=1e-4)


def test_gumbel_noise_is_the_same_in_numpy(stored):
    uniform = uniforms(stored["train/uniform_u16"][0])
    np.testing.assert_allclose(gumbel(uniform), diffusion.gumbel(torch.from_numpy(uniform)), rtol=0, atol=2e-6)
