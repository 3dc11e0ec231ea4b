"""VIPER's reward: its window, frames it cannot score, batches, standardisation."""

import math

import numpy as np
import pytest

from v2r_core.rewards.quantization import quantize
from v2r_core.rewards.viper import WINDOW_BATCH, ViperReward

CODES, DIM, TOKENS = 16, 4, 9
CODEBOOK = np.random.default_rng(0).standard_normal((CODES, DIM)).astype(np.float32)
THRESHOLD = np.array(0.2, np.float32)


class FakeLikelihood:
    """A causal model: a frame's score depends on its codes, its place, those before it and the class."""

    def __init__(self):
        self.calls = []

    def __call__(self, codes, label=None):
        assert codes.dtype == np.int64
        self.calls.append(codes.shape)
        weights = np.arange(1, codes.shape[1] + 1)[:, None] * np.linspace(0.5, 1.5, codes.shape[2])
        own = np.cos(codes * weights).sum(axis=2)
        scores = own + 0.3 * np.cumsum(own, axis=1)
        if label is not None:
            assert label.dtype == np.int64
            assert label.shape == (len(codes),)
            scores = scores + 100.0 * label[:, None]
        return scores.astype(np.float32)


def make(network=None, **options):
    tensors = {"codebook": CODEBOOK, "quantization_threshold": THRESHOLD}
    chosen = {"frames": 3, "stride": 2, **options}
    return ViperReward(embed_levels, {"likelihood": network or FakeLikelihood()}, tensors, **chosen)


def embed_levels(frames):
    """The first bytes of a frame are its codes."""
    codes = frames.reshape(len(frames), -1)[:, :TOKENS] % CODES
    return CODEBOOK[codes].reshape(len(frames), -1)


def latents(count, cameras=1, noise=0.05, seed=1):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (count, cameras, TOKENS))
    clean = CODEBOOK[codes] + noise * rng.standard_normal((count, cameras, TOKENS, DIM))
    return clean.reshape(count, cameras, -1).astype(np.float32), codes


def column(samples, name):
    return np.array([getattr(sample, name) for sample in samples])


def expected_window(codes, end, frames=3, stride=2, label=None):
    chosen = codes[end - (frames - 1) * stride : end + 1 : stride].transpose(1, 0, 2)
    labels = None if label is None else np.full(len(chosen), label)
    return FakeLikelihood()(chosen, labels)


@pytest.mark.parametrize("mode", ["joint", "conditional"])
def test_the_score_is_that_of_the_window_that_ends_with_the_frame(mode):
    embeddings, codes = latents(12)
    samples = make(mode=mode).observe_many(embeddings)
    raw = column(samples, "raw_reward")
    for end in range(4, 12):
        scores = expected_window(codes, end)[0]
        assert raw[end] == pytest.approx(scores.sum() if mode == "joint" else scores[-1], abs=1e-4)
    np.testing.assert_array_equal(column(samples, "reward"), raw)


def test_warming_up_has_an_uncertainty_and_nothing_else():
    embeddings, _ = latents(6)
    samples = make().observe_many(embeddings)
    assert make().history == 5
    for sample in samples[:4]:
        assert math.isnan(sample.reward)
        assert math.isnan(sample.raw_reward)
        assert 0 < sample.uncertainty < 1
    assert math.isfinite(samples[4].reward)
    for sample in samples:
        assert math.isnan(sample.value)
        assert math.isnan(sample.progress)
        assert (sample.subgoal_index, sample.subgoal_count) == (0, 1)


def test_a_reset_starts_anew():
    embeddings, _ = latents(5)
    reward = make()
    first = column(reward.observe_many(embeddings), "reward")
    reward.reset()
    np.testing.assert_array_equal(column(reward.observe_many(embeddings), "reward"), first)


@pytest.mark.parametrize("incomplete", ["nan", "official"])
@pytest.mark.parametrize("cameras", [1, 2])
def test_batches_equal_single_frames(incomplete, cameras):
    embeddings, _ = latents(40, cameras)
    embeddings[9] = 50.0
    embeddings[17] = np.nan
    embeddings[20] = -50.0
    one, many, parts = (make(incomplete=incomplete) for _ in range(3))
    single = [one.observe(embedding) for embedding in embeddings]
    whole = many.observe_many(embeddings)
    split = [sample for first in range(0, 40, 7) for sample in parts.observe_many(embeddings[first : first + 7])]
    for name in ("reward", "raw_reward", "uncertainty"):
        np.testing.assert_allclose(column(single, name), column(whole, name), atol=1e-4)
        np.testing.assert_allclose(column(split, name), column(whole, name), atol=1e-4)
    assert np.isfinite(column(whole, "reward")).sum() > 15


def test_score_equals_steps():
    frames = np.random.default_rng(3).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    stepping, scoring = make(), make()
    stepping.reset()
    steps = [stepping.step(frame) for frame in frames]
    np.testing.assert_allclose(scoring.score(frames).reward, column(steps, "reward"), atol=1e-4)


def test_windows_share_network_calls():
    network = FakeLikelihood()
    embeddings, _ = latents(4 + 2 * WINDOW_BATCH, 2)
    make(network).observe_many(embeddings)
    assert network.calls == [(2 * WINDOW_BATCH, 3, TOKENS)] * 2


@pytest.mark.parametrize("bad", [50.0, np.nan, np.inf])
def test_a_frame_that_cannot_be_scored_empties_the_window(bad):
    embeddings, _ = latents(12, 2)
    embeddings[5, 1] = bad
    samples = make().observe_many(embeddings)
    rewards = column(samples, "reward")
    assert np.isfinite(rewards[4])
    assert np.isnan(rewards[5:10]).all()
    assert np.isfinite(rewards[10:]).all()
    if bad == 50.0:
        assert samples[5].uncertainty > 1
    else:
        assert math.isnan(samples[5].uncertainty)
    fresh = make().observe_many(embeddings[6:])
    np.testing.assert_allclose(rewards[6:], column(fresh, "reward"))


def test_a_network_that_gives_no_number_gives_no_reward():
    def broken(codes):
        return np.full(codes.shape[:2], np.nan, np.float32)

    samples = make(broken).observe_many(latents(6)[0])
    assert np.isfinite(column(samples[:4], "uncertainty")).all()
    assert np.isnan(column(samples[4:], "uncertainty")).all()
    assert np.isnan(column(samples[4:], "reward")).all()


def test_uncertainty_is_the_distance_over_the_threshold():
    embeddings, _ = latents(1, 2, noise=0.0)
    embeddings[0, 1] += 0.1
    sample = make().observe(embeddings[0])
    assert sample.uncertainty == pytest.approx(0.1 / float(THRESHOLD), rel=1e-4)


def test_cameras_are_averaged():
    embeddings, _ = latents(8, 2)
    both = column(make().observe_many(embeddings), "raw_reward")
    each = [column(make().observe_many(embeddings[:, [camera]]), "raw_reward") for camera in range(2)]
    np.testing.assert_allclose(both[4:], np.mean(each, axis=0)[4:], atol=1e-4)


def test_the_class_reaches_the_network():
    embeddings, codes = latents(5)
    sample = make(classes=4, label=3).observe_many(embeddings)[-1]
    assert sample.raw_reward == pytest.approx(expected_window(codes, 4, label=3).sum(), abs=1e-3)


def test_begun_windows_as_released():
    embeddings, codes = latents(8)
    reward = make(incomplete="official", mode="conditional")
    assert reward.history == 6
    raw = column(reward.observe_many(embeddings), "raw_reward")
    for end in range(5):
        phase = codes[end % 2 : end + 1 : 2].transpose(1, 0, 2)
        assert raw[end] == pytest.approx(FakeLikelihood()(phase)[0, -1], abs=1e-4)
    joint = column(make(incomplete="official").observe_many(embeddings), "raw_reward")
    np.testing.assert_allclose(joint[:5], np.cumsum(raw[:5]) / np.arange(1, 6), atol=1e-4)
    assert joint[5] == pytest.approx(expected_window(codes, 5).sum(), abs=1e-4)


def test_standardisation_scale_and_clip():
    embeddings, _ = latents(12)
    raw = column(make().observe_many(embeddings), "raw_reward")[4:]
    shaped = make(mean=2.0, std=4.0, scale=0.5, clip=0.6).observe_many(embeddings)
    np.testing.assert_allclose(column(shaped, "reward")[4:], np.clip((raw - 2) / 4 * 0.5, -0.6, 0.6), rtol=1e-5)
    np.testing.assert_array_equal(column(shaped, "raw_reward")[4:], raw)
    low, high = float(np.quantile(raw, 0.2)), float(np.quantile(raw, 0.8))
    mapped = column(make(low=low, high=high).observe_many(embeddings), "reward")
    np.testing.assert_allclose(mapped[4:], np.clip((raw - low) / (high - low), 0, 1), atol=1e-6)
    assert np.isnan(mapped[:4]).all()


def test_the_shape_can_be_changed_between_frames():
    reward = make()
    embeddings, _ = latents(6)
    before = reward.observe_many(embeddings[:5])[-1]
    reward.set_shape(2.0, None)
    after = reward.observe(embeddings[5])
    assert before.reward == before.raw_reward
    assert after.reward == pytest.approx(2 * after.raw_reward)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "length = 0"),
        ({"stride": 0}, "stride = 0"),
        ({"mode": "sum"}, "mode = 'sum'"),
        ({"incomplete": "zero"}, "incomplete = 'zero'"),
        ({"cameras": "max"}, "cameras = 'max'"),
        ({"classes": 4, "label": 4}, "label = 4 of classes = 4"),
        ({"std": 0.0}, r"std = 0\.0"),
        ({"mean": math.nan}, "mean = nan"),
        ({"low": 1.0}, "low = 1.0, high = None"),
        ({"low": 1.0, "high": 1.0}, "the first one smaller"),
        ({"low": 0.0, "high": 1.0, "mean": 2.0}, "give one of the two"),
        ({"scale": -1.0}, "scale = -1.0"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_what_is_missing_is_named():
    tensors = {"codebook": CODEBOOK, "quantization_threshold": THRESHOLD}
    with pytest.raises(ValueError, match="networks have no 'likelihood', only nothing"):
        ViperReward(embed_levels, {}, tensors)
    with pytest.raises(ValueError, match="tensors have no 'codebook', only quantization_threshold"):
        ViperReward(embed_levels, {"likelihood": FakeLikelihood()}, {"quantization_threshold": THRESHOLD})
    with pytest.raises(ValueError, match="quantization_threshold = 0"):
        ViperReward(embed_levels, {"likelihood": FakeLikelihood()}, {**tensors, "quantization_threshold": np.zeros(())})


def test_inputs_of_another_model_are_refused():
    reward = make()
    with pytest.raises(ValueError, match=r"shape \(1, 1, 37\)"):
        reward.observe(np.zeros((1, 37), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        reward.step(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"likelihood gave shape \(1,\)"):
        make(lambda codes: np.zeros(len(codes))).observe_many(latents(5)[0])


def test_a_video_without_a_whole_window():
    frames = np.random.default_rng(3).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    assert np.isnan(make().score(frames[:4]).reward).all()
    with pytest.raises(ValueError, match="5 frames given, a window takes 6"):
        make(incomplete="official").score(frames)


def test_nearest_codes_are_those_of_a_search():
    vectors = np.random.default_rng(5).standard_normal((3, TOKENS * DIM)).astype(np.float32)
    codes, distances = quantize(vectors, CODEBOOK)
    differences = vectors.reshape(3, TOKENS, 1, DIM) - CODEBOOK
    squares = np.square(differences).sum(axis=3)
    np.testing.assert_array_equal(codes, squares.argmin(axis=2))
    np.testing.assert_allclose(distances, np.sqrt(squares.min(axis=2).sum(axis=1) / (TOKENS * DIM)), rtol=1e-5)


def test_torch_is_not_needed():
    import subprocess
    import sys

    program = "import sys, v2r_core.rewards.viper; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
