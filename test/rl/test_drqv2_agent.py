"""The DrQ-v2 agent as a whole: it learns, goes on bit for bit, acts as told, and leaves as ONNX."""

import io
import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from v2r_core.rl.drqv2 import DrQv2Agent, actor_loss, critic_loss, td_target
from v2r_core.rl.drqv2_networks import encode
from v2r_core.rl.drqv2_recipe import PRESETS, DrQv2Recipe, schedule
from v2r_core.rl.random_shift import copied_crops, draw_shifts, gathered_crops, random_shift
from v2r_core.rl.replay import Batch, Layout, ReplayStore, stored_discount
from v2r_core.rl.truncated_normal import ACTION_LIMIT

SMALL = DrQv2Recipe(
    frame_stack=2, channels=4, feature_dim=16, hidden_dim=32, batch_size=16, shift=2, exploration_steps=0,
    noise=(1.0, 0.1, 200), lr=1e-3,
)  # fmt: skip
PIXELS, EMBEDDING = (3, 21, 21), (5,)
FRAMES = pytest.mark.parametrize("frame", [PIXELS, EMBEDDING], ids=["pixels", "embedding"])


def make_batch(frame, count=16, actions=2, stack=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, stack, *frame)

    def frames():
        return rng.integers(0, 256, shape, np.uint8) if len(frame) == 3 else rng.standard_normal(shape, np.float32)

    return Batch(
        frames(),
        rng.uniform(-1, 1, (count, actions)).astype(np.float32),
        rng.standard_normal(count, np.float32),
        np.full(count, 0.97, np.float32),
        frames(),
    )


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# --- learning ---


def episode_of_reaching(agent, rng, step, evaluate, length=15):
    """A point on a line is moved to a goal by steps of at most 0.3; paid by minus its distance."""
    point, goal = rng.uniform(-1, 1, 2)
    frames, actions, rewards = [np.array([point, goal], np.float32)], [], []
    for t in range(length):
        seen = np.stack([frames[-1]] * agent.recipe.frame_stack)
        actions.append(agent.act(seen, step + t, evaluate=evaluate))
        point = np.clip(point + 0.3 * actions[-1][0], -1, 1)
        frames.append(np.array([point, goal], np.float32))
        rewards.append(-abs(point - goal))
    return frames, actions, rewards


def test_learns_to_reach_a_point(tmp_path):
    recipe = replace(
        DrQv2Recipe.preset("tiny"), frame_stack=1, hidden_dim=64, feature_dim=64, batch_size=64,
        noise=(1.0, 0.1, 600), exploration_steps=150, lr=1e-3,
    )  # fmt: skip
    agent, rng = DrQv2Agent(recipe, (2,), 1, seed=2), np.random.default_rng(2)

    def last_distance():
        seeds = np.random.default_rng(99)
        return float(np.mean([-episode_of_reaching(agent, seeds, 0, True)[2][-1] for _ in range(20)]))

    before, step = last_distance(), 0
    with ReplayStore(tmp_path, Layout((2,), "float32", 1)) as store:
        for _ in range(60):
            frames, actions, rewards = episode_of_reaching(agent, rng, step, False)
            store.begin(frames[0])
            for action, reward, frame in zip(actions, rewards, frames[1:], strict=True):
                store.append(action, reward, stored_discount(False, recipe.compat), frame)
            store.end()
            for _ in actions:
                step += 1
                batch = store.sample(recipe.batch_size, rng, nstep=recipe.nstep, gamma=recipe.gamma, stack=1)
                agent.update(batch, step)
    assert before > 0.3
    assert last_distance() < 0.1


def test_learns_from_pixels():
    """One step, and the brightness of the picture is the action that pays."""
    recipe = replace(SMALL, frame_stack=1, channels=8, hidden_dim=64, batch_size=64, noise=(0.3,))
    agent, rng = DrQv2Agent(recipe, (3, 17, 17), 1), np.random.default_rng(0)

    def pictures(wanted):
        grey = np.clip(128 + 100 * wanted, 0, 255)[:, None, None, None, None]
        return np.broadcast_to(grey, (len(wanted), 1, 3, 17, 17)).astype(np.uint8)

    first = agent.networks.encoder.convnet[0].weight.detach().clone()
    for step in range(400):
        wanted = rng.uniform(-0.9, 0.9, 64).astype(np.float32)
        action = rng.uniform(-1, 1, (64, 1)).astype(np.float32)
        seen, zero = pictures(wanted), np.zeros(64, np.float32)
        agent.update(Batch(seen, action, -((action[:, 0] - wanted) ** 2), zero, seen), step)
    assert not torch.equal(first, agent.networks.encoder.convnet[0].weight)
    wanted = np.linspace(-0.8, 0.8, 9, dtype=np.float32)
    found = [agent.act(picture, 0, evaluate=True)[0] for picture in pictures(wanted)]
    assert np.abs(np.array(found) - wanted).max() < 0.25


def test_only_the_right_parts_are_updated():
    agent = DrQv2Agent(SMALL, PIXELS, 2)
    before = {key: value.clone() for key, value in agent.networks.state_dict().items()}
    agent.update(make_batch(PIXELS), 0)
    state = agent.networks.state_dict()
    rate = SMALL.target_rate
    for key, value in state.items():
        if key.startswith("critic_target."):
            source = state[key.replace("critic_target.", "critic.")]
            assert torch.allclose(value, rate * source + (1 - rate) * before[key], atol=1e-7)
            assert not agent.networks.get_parameter(key).requires_grad
        else:
            assert not torch.equal(value, before[key]), key


def test_a_terminal_discount_reaches_the_target():
    batch = make_batch(EMBEDDING)
    agent = DrQv2Agent(replace(SMALL, target_rate=1.0), EMBEDDING, 2)
    draws = agent.draw(16)
    state = agent.state_dict()
    ended = batch._replace(discount=np.full(16, stored_discount(True, "paper"), np.float32))
    assert agent.update(ended, 0, draws)["critic_target_q"] == pytest.approx(batch.reward.mean(), abs=1e-6)
    agent = DrQv2Agent(replace(SMALL, target_rate=1.0), EMBEDDING, 2)
    agent.load_state_dict(state)
    ignored = batch._replace(discount=np.full(16, stored_discount(True, "official"), np.float32))
    assert agent.update(ignored, 0, draws)["critic_target_q"] != pytest.approx(batch.reward.mean(), abs=1e-3)


# --- state ---


@FRAMES
def test_resumes_bit_for_bit(frame):
    agent = DrQv2Agent(SMALL, frame, 2, seed=1)
    batches = [make_batch(frame, seed=seed) for seed in range(6)]
    for step in range(3):
        agent.update(batches[step], step)
        agent.act(batches[step].observation[0], step)
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    again = DrQv2Agent(SMALL, frame, 2, seed=2)
    again.load_state_dict(torch.load(file, weights_only=True))

    def go_on(one):
        said = [one.update(batches[step], step) for step in range(3, 6)]
        return said, [one.act(batches[0].observation[0], step).tolist() for step in (3, 150)]

    assert go_on(agent) == go_on(again)
    assert equal(agent.state_dict(), again.state_dict())


def test_seeds_decide_everything_and_touch_nothing_else():
    before = torch.get_rng_state()
    batch = make_batch(PIXELS)

    def run(seed):
        agent = DrQv2Agent(SMALL, PIXELS, 2, seed=seed)
        metrics = agent.update(batch, 0)
        return metrics, agent.act(batch.observation[0], 1).tolist()

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert torch.equal(before, torch.get_rng_state())


def test_foreign_state_is_refused():
    state = DrQv2Agent(SMALL, EMBEDDING, 2).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        DrQv2Agent(SMALL, (6,), 2).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"encoder\.convnet\.0\.weight"):
        DrQv2Agent(SMALL, PIXELS, 2).load_state_dict(state)


# --- acting ---


@FRAMES
def test_acting(frame):
    agent = DrQv2Agent(replace(SMALL, exploration_steps=100), frame, 2)
    observation = make_batch(frame).observation[0]
    state = agent.generator.get_state()
    mean = agent.act(observation, 500, evaluate=True)
    assert torch.equal(state, agent.generator.get_state())
    assert (mean.dtype, mean.shape) == (np.float32, (2,))
    joined = observation.reshape(-1, *frame[1:])
    joined.setflags(write=False)
    assert np.array_equal(mean, agent.act(joined, 500, evaluate=True))
    noisy = np.stack([agent.act(observation, 500) for _ in range(400)])
    assert np.abs(noisy.mean(0) - mean).max() < 0.03
    assert np.abs(noisy.std(0) - 0.1).max() < 0.02
    uniform = np.stack([agent.act(observation, 99) for _ in range(800)])
    assert np.abs(uniform.mean(0)).max() < 0.1
    assert np.abs(uniform.std(0) - 1 / math.sqrt(3)).max() < 0.04
    early = np.stack([agent.act(observation, 100) for _ in range(200)])
    assert np.abs(early).max() == pytest.approx(ACTION_LIMIT, abs=1e-7)
    assert early.std() > 3 * noisy.std()


@FRAMES
def test_refused_observations(frame):
    agent = DrQv2Agent(SMALL, frame, 2)
    good = make_batch(frame).observation[0]
    with pytest.raises(ValueError, match=r"observations are .* expected"):
        agent.act(good[:1], 0)
    with pytest.raises(ValueError, match=r"observations are .* expected"):
        agent.act(good.astype(np.float32) if frame == PIXELS else good.astype(np.uint8), 0)
    batch = make_batch(frame)
    with pytest.raises(ValueError, match=r"observations are .* expected"):
        agent.update(batch._replace(next_observation=batch.next_observation[:, :1]), 0)


@pytest.mark.parametrize("frame", [(3, 14, 14), (3, 20, 21), (3, 20), ()])
def test_refused_frames(frame):
    with pytest.raises(ValueError, match=r"expected"):
        DrQv2Agent(SMALL, frame, 2)


def test_a_loss_that_is_not_finite_changes_nothing():
    agent = DrQv2Agent(SMALL, EMBEDDING, 2)
    before = {key: value.clone() for key, value in agent.networks.state_dict().items()}
    batch = make_batch(EMBEDDING)
    with pytest.raises(FloatingPointError, match="nan at step 7"):
        agent.update(batch._replace(reward=batch.reward * np.nan), 7)
    assert equal(before, dict(agent.networks.state_dict()))


# --- parts ---


def test_losses():
    q1, q2 = torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [2.0]])
    target = td_target(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.5], [0.5]]), q1, q2)
    assert target.tolist() == [[1.5], [2.0]]
    assert critic_loss(q1, q2, target).item() == pytest.approx((0.25 + 4) / 2 + (2.25 + 0) / 2)
    assert actor_loss(q1, q2).item() == -1.5


def test_shifts_are_crops_of_the_padded_image():
    images = torch.randint(0, 256, (40, 6, 9, 9), dtype=torch.uint8)
    shifts = draw_shifts(40, 3, torch.Generator().manual_seed(0))
    assert sorted(set(shifts.flatten().tolist())) == list(range(7))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    moved = random_shift(images, shifts, 3)
    for found, source, (x, y) in zip(moved.numpy(), padded, shifts.tolist(), strict=True):
        assert np.array_equal(found, source[:, y : y + 9, x : x + 9])
    for way in (copied_crops, gathered_crops):  # what a CPU takes, and what a GPU takes
        for kind in (torch.uint8, torch.float32):
            found = way(images.to(kind), shifts, 3)
            assert (found.dtype, found.is_contiguous()) == (kind, True)
            assert torch.equal(found, moved.to(kind))
        assert torch.equal(way(images, torch.zeros(40, 2, dtype=torch.int64), 0), images)
    assert torch.equal(random_shift(images, torch.zeros(40, 2, dtype=torch.int64), 0), images)
    for bad in (shifts + 4, shifts - 3, shifts[:-1]):
        with pytest.raises(ValueError, match="from 0 to 6"):
            random_shift(images, bad, 3)


def test_encoding_in_parts_is_encoding():
    agent = DrQv2Agent(SMALL, PIXELS, 2)
    encoder = agent.networks.encoder
    images = torch.randint(0, 256, (70, 6, 21, 21), dtype=torch.uint8)
    whole, parts = encoder(images), encode(encoder, images)
    assert parts.shape == (70, encoder.features)
    assert torch.allclose(whole, parts, atol=1e-6)
    gradients = [torch.autograd.grad((features**2).sum(), list(encoder.parameters())) for features in (whole, parts)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_presets():
    assert DrQv2Recipe.preset("paper") == DrQv2Recipe()
    for name in PRESETS:
        recipe = DrQv2Recipe.preset(name)
        frame = (128,) if name == "tiny" else (3, recipe.size, recipe.size)
        agent = DrQv2Agent(replace(recipe, hidden_dim=32), frame, 4)
        assert agent.input_shape[0] == 3 * frame[0]
    assert DrQv2Agent(DrQv2Recipe(hidden_dim=8), (3, 84, 84), 1).networks.encoder.features == 39_200
    count = sum(p.numel() for p in DrQv2Agent(DrQv2Recipe(), (3, 84, 84), 6).networks.parameters() if p.requires_grad)
    assert 7.2e6 < count < 7.4e6
    tiny = DrQv2Recipe.preset("tiny")
    assert schedule(tiny.noise, 0) == 1.0
    assert schedule(tiny.noise, 6_000 // tiny.action_repeat) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="paper-hard"):
        DrQv2Recipe.preset("large")


@pytest.mark.parametrize(
    "change",
    [{"gamma": 0.0}, {"lr": 0.0}, {"nstep": 0}, {"shift": -1}, {"target_rate": 1.5}, {"noise": (1.0, 0.1)},
     {"noise": (1.0, 0.1, 0.0)}, {"noise": ()}],
)  # fmt: skip
def test_refused_settings(change):
    with pytest.raises(ValueError, match=r"expected|belong"):
        DrQv2Recipe(**change)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_numbers():
    agents = [DrQv2Agent(SMALL, PIXELS, 2, device=device) for device in ("cpu", "cuda")]
    for step in range(3):
        ours, theirs = (agent.update(make_batch(PIXELS, seed=step), step) for agent in agents)
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-2)


@FRAMES
def test_policy_leaves_as_onnx(frame, tmp_path):
    agent = DrQv2Agent(SMALL, frame, 2)
    agent.update(make_batch(frame), 0)
    policy = agent.policy_network()
    batch = make_batch(frame, count=3).observation.reshape(3, *agent.input_shape)
    file = tmp_path / "actor.onnx"
    torch.onnx.export(
        policy,
        (torch.from_numpy(batch[:2].copy()),),
        file,
        dynamo=True,
        opset_version=18,
        input_names=["observation"],
        output_names=["action"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected = np.stack([agent.act(row, 0, evaluate=True) for row in batch])
    for rows in (slice(0, 1), slice(0, 3)):
        (found,) = session.run(["action"], {"observation": batch[rows]})
        assert (found.dtype, found.shape) == (np.float32, expected[rows].shape)
        assert np.abs(found - expected[rows]).max() < 1e-5
    agent.update(make_batch(frame, seed=5), 1)  # the policy is a copy
    with torch.no_grad():
        assert np.abs(policy(torch.from_numpy(batch)).numpy() - expected).max() < 1e-5
