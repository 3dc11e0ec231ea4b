"""Diffusion Reward on the robot: numpy against torch, online against offline, speeds, frames that cannot be scored."""

import numpy as np
import pytest
import torch

from v2r_core.nn import discrete_diffusion as diffusion
from v2r_core.nn.denoiser import DenoiserConfig, DiffusionModel, log_distribution
from v2r_core.nn.diffusion_schedule import chain_steps, log_probabilities
from v2r_core.rewards import denoising
from v2r_core.rewards.diffusion_reward import DiffusionReward
from v2r_core.rewards.reward import RewardCurve

STEPS, CODES, LENGTH, LATENT = 20, 5, 16, 3
THRESHOLD = 0.5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = DenoiserConfig(codes=CODES, grid=4, width=16, depth=2, heads=2, condition_width=8, steps=STEPS)
    made = DiffusionModel(config).eval()
    with torch.no_grad():
        for weight in made.transformer.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    return made


@pytest.fixture(scope="module")
def codebook():
    return np.random.default_rng(5).standard_normal((CODES, LATENT)).astype(np.float32)


class Counted:
    """The network as the robot calls it, by names; counts calls and keeps conditions."""

    def __init__(self, model):
        self.model = model
        self.calls, self.rows, self.conditions = 0, 0, []

    def __call__(self, tokens, t, condition):
        assert tokens.dtype == t.dtype == condition.dtype == np.int64
        self.calls += 1
        self.rows += len(tokens)
        self.conditions.append(condition)
        with torch.no_grad():
            return self.model(*(torch.from_numpy(each) for each in (tokens, t, condition))).numpy()


@pytest.fixture
def network(model):
    return Counted(model)


def make(network, codebook, embed=None, **parameters):
    tensors = {"codebook": codebook, "quantization_threshold": np.float32(THRESHOLD)}
    return DiffusionReward(embed or unused, {"denoiser": network}, tensors, steps=STEPS, **parameters)


def unused(frames):
    raise AssertionError("embed must not be called")


def video(codebook, frames=9, cameras=1, seed=0, noise=0.05):
    """Latents near codes, float32 (T, C, L Z), and the codes (T, C, L)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (frames, cameras, LENGTH))
    latents = codebook[codes] + noise * rng.standard_normal((frames, cameras, LENGTH, LATENT))
    return latents.reshape(frames, cameras, -1).astype(np.float32), codes


def curves(reward, embeddings):
    """Online, one frame at a time, and offline."""
    reward.reset()
    online = RewardCurve.from_samples(reward.observe(each) for each in embeddings)
    reward.reset()
    return online, RewardCurve.from_samples(reward.observe_many(embeddings))


@pytest.mark.parametrize("t", [0, 1, 7, STEPS - 1])
def test_posteriors_are_those_of_torch(t):
    generator = torch.Generator().manual_seed(t)
    logits = torch.randn(3, CODES, LENGTH, generator=generator) * 3
    tokens = torch.randint(0, CODES + 1, (3, LENGTH), generator=generator)
    schedule = diffusion.Schedule.linear(STEPS, CODES)
    for log_x0 in (log_distribution(logits.log_softmax(dim=1)), diffusion.log_onehot(tokens % CODES, CODES + 1)):
        expected = diffusion.q_posterior(log_x0, tokens, torch.full((3,), t), schedule)
        found = denoising.posterior(log_x0.numpy(), tokens.numpy(), t, log_probabilities(STEPS, CODES))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        if t:
            np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(axis=1), 1, atol=1e-4)


def torch_bound(model, condition, uniform, skip):
    """The bound of the chain's own end, straight from `nn.discrete_diffusion`."""
    condition = torch.from_numpy(condition)
    rows, schedule = len(condition), model.schedule
    tokens, given = torch.full((rows, LENGTH), CODES), []
    for t in chain_steps(STEPS, skip):
        at = torch.full((rows,), t - skip if t > skip else t)
        log_x0 = model(tokens, torch.full((rows,), t), condition)
        p = diffusion.q_posterior(log_x0, tokens, at, schedule)
        given.append((p, tokens, at))
        tokens = (p + diffusion.gumbel(torch.from_numpy(uniform()))).argmax(dim=1)
    truth = diffusion.log_onehot(tokens, CODES + 1)
    total = (truth.exp() * given[-1][0]).sum(dim=(1, 2))
    for p, before, at in given[:-1]:
        total -= diffusion.kl_divergence(diffusion.q_posterior(truth, before, at, schedule), p).sum(dim=1)
    return total


def test_the_reward_is_the_bound_of_the_chain(model, network, codebook):
    embeddings, codes = video(codebook)
    reward = make(network, codebook, skip_step=4, seed=3)
    found = RewardCurve.from_samples(reward.observe_many(embeddings)).raw_reward
    assert np.isnan(found[0])
    for frame in range(1, len(codes)):
        rng = np.random.default_rng((3, frame))
        condition = np.concatenate([codes[frame - 1], codes[frame]], axis=1)

        def uniform(rng=rng):
            return rng.random((1, 1, CODES + 1, LENGTH))[0]

        with torch.no_grad():
            assert found[frame] == pytest.approx(float(torch_bound(model, condition, uniform, 4)[0]), rel=1e-4)


@pytest.mark.parametrize("speed", ["exact", "five_calls", "two_calls", "one_call"])
@pytest.mark.parametrize("mode", ["entropy", "likelihood"])
def test_online_equals_offline(network, codebook, speed, mode):
    reward = make(network, codebook, speed=speed, mode=mode, samples=2, stride=2, mean=-20.0, std=3.0, scale=2.0)
    embeddings, _ = video(codebook, frames=12, cameras=2)
    online, offline = curves(reward, embeddings)
    for name in ("reward", "raw_reward", "uncertainty"):
        np.testing.assert_allclose(getattr(online, name), getattr(offline, name), rtol=0, atol=1e-4, err_msg=name)
    span = 3 if mode == "entropy" else 5
    assert reward.history == span
    assert np.isnan(offline.raw_reward[: span - 1]).all()
    assert np.isfinite(offline.raw_reward[span - 1 :]).all()
    np.testing.assert_allclose(offline.reward, 2 * (offline.raw_reward + 20) / 3)
    assert np.isnan(offline.value).all()
    assert np.isnan(offline.progress).all()
    assert len(np.unique(offline.raw_reward[span - 1 :])) > 3


def test_calls(network, codebook):
    embeddings, _ = video(codebook, frames=2)
    counted = {}
    for speed in ("exact", "five_calls", "two_calls", "one_call"):
        reward, before = make(network, codebook, speed=speed, skip_step=1), network.calls
        reward.observe_many(embeddings)
        counted[speed] = network.calls - before
        assert reward.calls == counted[speed]
    assert counted == {"exact": 11, "five_calls": 5, "two_calls": 2, "one_call": 1}


def test_frames_cameras_and_samples_share_a_call(network, codebook):
    embeddings, _ = video(codebook, frames=5, cameras=2)
    reward = make(network, codebook, speed="five_calls", samples=3)
    reward.observe_many(embeddings)
    assert network.rows == 4 * 2 * 3 * 5
    assert network.calls == 5


def test_one_call_is_the_entropy_or_likelihood_of_the_first_prediction(model, network, codebook):
    embeddings, codes = video(codebook, frames=3)
    masks = torch.full((1, LENGTH), CODES)
    for mode, shown in (("entropy", [1, 2]), ("likelihood", [0, 1])):
        reward = make(network, codebook, speed="one_call", mode=mode, compat="paper")
        found = reward.observe_many(embeddings)[-1].raw_reward
        condition = torch.from_numpy(np.concatenate([codes[frame] for frame in shown], axis=1))
        with torch.no_grad():
            p = model(masks, torch.tensor([STEPS - 1]), condition)[0, :CODES].double()
        expected = (p.exp() * p).sum() if mode == "entropy" else p[codes[2, 0], np.arange(LENGTH)].sum()
        assert found == pytest.approx(float(expected), rel=1e-5)
        assert not reward.stochastic


def test_the_condition_of_each_mode(network, codebook):
    embeddings, codes = video(codebook, frames=3)

    def condition(**parameters):
        network.conditions.clear()
        make(network, codebook, speed="one_call", **parameters).observe_many(embeddings)
        return network.conditions[-1][-1]

    rows = codes[:, 0]
    np.testing.assert_array_equal(condition(), rows[[1, 2]].ravel())
    # The official likelihood is told the frame that it scores.
    np.testing.assert_array_equal(condition(mode="likelihood"), rows.ravel())
    np.testing.assert_array_equal(condition(mode="likelihood", compat="paper"), rows[[0, 1]].ravel())


def test_the_likelihood_is_a_mean_as_released_and_a_sum_as_a_bound_is(model, network, codebook):
    """A network that does not look at its condition makes the two comparable."""

    def blind(tokens, t, condition):
        return network(tokens, t, np.zeros_like(condition[:, :LENGTH]))

    embeddings, _ = video(codebook, frames=4)
    found = {
        compat: make(blind, codebook, mode="likelihood", compat=compat, skip_step=4).observe_many(embeddings)[-1]
        for compat in ("official", "paper")
    }
    steps = len(chain_steps(STEPS, 4))
    assert found["official"].raw_reward * steps == pytest.approx(found["paper"].raw_reward, rel=1e-5)


def test_the_seed_and_the_frame_decide_the_draws(network, codebook):
    embeddings, _ = video(codebook, frames=4)
    embeddings[:] = embeddings[0]

    def scores(**parameters):
        samples = make(network, codebook, skip_step=4, **parameters).observe_many(embeddings)
        return np.array([sample.raw_reward for sample in samples[1:]])

    assert len(set(scores())) == 3
    np.testing.assert_allclose(scores(), scores(), atol=1e-4)
    assert np.abs(scores() - scores(seed=1)).min() > 1e-3
    # Without draws, the same frames are worth the same.
    np.testing.assert_allclose(scores(sampling="argmax"), scores(sampling="argmax")[0], atol=1e-4)
    assert np.abs(scores(samples=64).mean() - scores(samples=64, seed=1).mean()) < scores().std()


def test_incomplete_windows_repeat_the_frame_as_released(network, codebook):
    embeddings, codes = video(codebook, frames=3)
    reward = make(network, codebook, incomplete="repeat", speed="one_call", mode="likelihood")
    curve = RewardCurve.from_samples(reward.observe_many(embeddings))
    assert np.isfinite(curve.raw_reward).all()
    rows = codes[:, 0]
    expected = np.stack([rows[[0, 0, 0]], rows[[1, 1, 1]], rows]).reshape(3, -1)
    np.testing.assert_array_equal(np.concatenate(network.conditions), expected)


def test_uncertainty_is_the_distance_to_the_codes(network, codebook):
    embeddings, codes = video(codebook, frames=2, cameras=2)
    sample = make(network, codebook).observe_many(embeddings)[-1]
    errors = embeddings[-1].reshape(2, LENGTH, LATENT) - codebook[codes[-1]]
    assert sample.uncertainty == pytest.approx(np.sqrt(np.square(errors).mean(axis=(1, 2))).max() / THRESHOLD, rel=1e-4)


def test_strange_and_broken_frames_empty_the_window(network, codebook):
    embeddings, _ = video(codebook, frames=10, cameras=2)
    clean = RewardCurve.from_samples(make(network, codebook).observe_many(embeddings))
    embeddings[3, 1] += 20
    embeddings[7, 0, 0] = np.nan
    online, offline = curves(make(network, codebook), embeddings)
    for curve in (online, offline):
        assert np.flatnonzero(np.isnan(curve.raw_reward)).tolist() == [0, 3, 4, 7, 8]
        assert curve.uncertainty[3] > 1
        assert np.flatnonzero(np.isnan(curve.uncertainty)).tolist() == [7]
        # The frames after them draw what they would have drawn.
        np.testing.assert_allclose(curve.raw_reward[[5, 6, 9]], clean.raw_reward[[5, 6, 9]], atol=1e-4)


def test_a_network_that_fails_is_told_from_warming_up(codebook):
    def broken(tokens, t, condition):
        return np.full((len(tokens), CODES + 1, LENGTH), np.nan, np.float32)

    embeddings, _ = video(codebook, frames=2)
    first, second = make(broken, codebook, speed="one_call").observe_many(embeddings)
    assert np.isfinite(first.uncertainty)
    assert np.isnan([second.reward, second.raw_reward, second.uncertainty]).all()


def test_cameras_become_their_mean(network, codebook):
    embeddings, _ = video(codebook, frames=2, cameras=2)
    both, *each = (
        make(network, codebook, speed="one_call").observe_many(rows)[-1].raw_reward
        for rows in (embeddings, embeddings[:, :1], embeddings[:, 1:])
    )
    assert both == pytest.approx(np.mean(each), rel=1e-5)
    assert each[0] != each[1]


def test_score_equals_steps(network, codebook):
    def embed(frames):
        return codebook[frames.reshape(len(frames), -1)[:, : LENGTH * 3 : 3] % CODES].reshape(len(frames), -1)

    frames = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    reward = make(network, codebook, embed, speed="two_calls", scale=0.1, clip=1.0)
    curve = reward.score(iter(frames))
    reward.reset()
    steps = RewardCurve.from_samples(reward.step(frame) for frame in frames)
    for name in ("reward", "raw_reward", "uncertainty"):
        np.testing.assert_allclose(getattr(curve, name), getattr(steps, name), rtol=0, atol=1e-4)
    assert np.nanmin(curve.reward) == -1.0
    reward.set_shape(1.0, None)
    assert np.nanmin(reward.score(frames).reward) < -1.0
    assert len(reward.score([])) == 0


def test_what_does_not_fit_is_refused(network, codebook):
    for wrong, message in (
        ({"skip_step": STEPS}, "skip_step is 20, 0 to 19"),
        ({"samples": 0}, "samples = 0"),
        ({"std": 0.0}, "std = 0.0"),
        ({"mode": "surprise"}, "mode = 'surprise'"),
        ({"speed": "fast"}, "speed = 'fast'"),
        ({"cameras": "min"}, "cameras = 'min'"),
        ({"mode": "likelihood", "compat": "paper", "incomplete": "repeat"}, "its own condition"),
    ):
        with pytest.raises(ValueError, match=message):
            make(network, codebook, **wrong)
    with pytest.raises(ValueError, match="denoiser expected"):
        DiffusionReward(unused, {}, {"codebook": codebook, "quantization_threshold": 1.0})
    with pytest.raises(ValueError, match="lack quantization_threshold"):
        DiffusionReward(unused, {"denoiser": network}, {"codebook": codebook})
    with pytest.raises(ValueError, match=r"tokens x 3\) expected"):
        make(network, codebook).observe(np.zeros((1, 7), np.float32))
