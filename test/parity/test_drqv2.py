"""DrQ-v2 against the released agent (the kit's README, section 3)."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from weights import generate_weights

from v2r_core.rl.drqv2 import Draws, DrQv2Agent
from v2r_core.rl.drqv2_networks import encode
from v2r_core.rl.drqv2_recipe import DrQv2Recipe, schedule
from v2r_core.rl.random_shift import draw_shifts, random_shift
from v2r_core.rl.replay import Batch, Layout, ReplayStore, draw_start, nstep_return
from v2r_core.rl.truncated_normal import normal_entropy, normal_log_prob, truncated_normal

MODULES = ("encoder", "actor", "critic", "critic_target")


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("drqv2.npz")


@pytest.fixture
def agent(stored):
    agent = DrQv2Agent(replace(DrQv2Recipe(), hidden_dim=64), (3, 84, 84), 4)
    shapes = {key: tensor.shape for key, tensor in agent.networks.state_dict().items()}
    filled = generate_weights(shapes, int(stored["salt"]))
    agent.networks.load_state_dict({key: torch.from_numpy(value) for key, value in filled.items()})
    return agent


def update_inputs(stored):
    names = ("obs", "action", "reward", "discount", "next_obs")
    batch = Batch(*(stored[f"update/{name}"] for name in names))
    draws = Draws(
        *(torch.from_numpy(stored[f"update/{name}"]) for name in ("shift_obs_xy", "shift_next_obs_xy")),
        *(torch.from_numpy(stored[f"update/{name}"]) for name in ("noise_next_action", "noise_actor_action")),
    )
    return batch, draws


def close(found, expected, rel):
    """The kit's "rel": |a - b| <= rel * max(1, |b|)."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == np.shape(expected)
    assert (np.abs(found - expected) <= rel * np.maximum(1, np.abs(expected))).all(), np.abs(found - expected).max()


def sum_l2(tensor):
    exact = tensor.detach().double()
    return float(exact.sum()), float(exact.norm())


# 3.1


@pytest.mark.parametrize("case", ["aug", "aug64"])
def test_random_shift(stored, case):
    images, shifts = torch.from_numpy(stored[f"{case}/images"]), torch.from_numpy(stored[f"{case}/shifts_xy"])
    moved = random_shift(images, shifts, 4)
    assert moved.dtype == torch.uint8
    assert np.abs(moved[:, :1].numpy() - stored[f"{case}/expected"]).max() <= 5e-3
    if case == "aug":
        for image, expected in zip(moved, stored["aug/expected_sum_l2"], strict=True):
            close(sum_l2(image), expected, 1e-4)
        assert np.abs(moved[:, :1].numpy() - stored["aug/expected"]).max() <= stored["aug/max_abs_diff_to_crop"] + 1e-6


def test_shifts_are_drawn_as_in_the_release(stored):
    generator = torch.Generator().manual_seed(int(stored["aug/rng_seed"]))
    assert np.array_equal(draw_shifts(6, 4, generator).numpy(), stored["aug/rng_shifts_xy"])


# 3.2


@pytest.mark.parametrize(("case", "clip"), [("clip0.3", 0.3), ("clip0.1", 0.1), ("noclip", None)])
def test_truncated_normal(stored, case, clip):
    loc, std, noise = (torch.from_numpy(stored[f"tn/{name}"]) for name in ("loc", "std", "noise"))
    loc.requires_grad_()
    sample = truncated_normal(loc, std, noise, clip)
    sample.sum().backward()
    assert np.abs(sample.detach().numpy() - stored[f"tn/{case}/expected_sample"]).max() <= 1e-6
    assert np.abs(loc.grad.numpy() - stored[f"tn/{case}/expected_grad_loc"]).max() <= 1e-6
    close(normal_log_prob(sample, loc, std), stored[f"tn/{case}/expected_log_prob"], 2e-4)
    assert np.abs(normal_entropy(std).numpy() - stored["tn/expected_entropy"]).max() <= 1e-6


# 3.3


def test_schedules(stored):
    steps = stored["sched/steps"].tolist()
    cases = {"linear": stored["sched/expected_linear"], "step_linear": stored["sched/expected_step_linear"]}
    for name, expected in cases.items():
        for values, row in zip(stored[f"sched/{name}_params"].tolist(), expected, strict=True):
            found = [schedule(values, step) for step in steps]
            assert np.abs(np.array(found) - row).max() <= 1e-12
    assert [schedule((0.25,), step) for step in steps] == stored["sched/expected_constant_0.25"].tolist()


# 3.4


@pytest.fixture
def episode(stored, tmp_path):
    names = ("observation", "action", "reward", "discount")
    observation, action, reward, discount = (stored[f"nstep/episode_{name}"] for name in names)
    store = ReplayStore(tmp_path, Layout((5,), "uint8", 3))
    store.begin(observation[0])
    for row in range(1, len(observation)):
        store.append(action[row], float(reward[row, 0]), float(discount[row, 0]), observation[row])
    store.end()
    yield store
    store.close()


@pytest.mark.parametrize("case", ["n1", "n3", "n5"])
def test_nstep_transitions(stored, episode, case):
    nstep, gamma, index = int(case[1:]), float(stored[f"nstep/{case}/gamma"]), stored[f"nstep/{case}/index"]
    batch = episode.at(np.zeros_like(index), index, nstep, gamma, 1)
    assert np.array_equal(batch.observation[:, 0], stored[f"nstep/{case}/expected_obs"])
    assert np.array_equal(batch.next_observation[:, 0], stored[f"nstep/{case}/expected_next_obs"])
    assert np.array_equal(batch.action, stored[f"nstep/{case}/expected_action"])
    close(batch.reward[:, None], stored[f"nstep/{case}/expected_reward"], 1e-5)
    close(batch.discount[:, None], stored[f"nstep/{case}/expected_discount"], 1e-5)


@pytest.mark.parametrize("case", ["n1", "n3", "n5"])
def test_nstep_return_and_draws(stored, case):
    nstep, gamma, index = int(case[1:]), float(stored[f"nstep/{case}/gamma"]), stored[f"nstep/{case}/index"]
    rows = index[:, None] + np.arange(nstep)
    reward, discount = (stored[f"nstep/episode_{name}"][rows, 0] for name in ("reward", "discount"))
    total, left = nstep_return(reward, discount, gamma)
    close(total[:, None], stored[f"nstep/{case}/expected_reward"], 1e-5)
    close(left[:, None], stored[f"nstep/{case}/expected_discount"], 1e-5)
    rng = np.random.RandomState(int(stored[f"nstep/{case}/draw_seed"]))
    expected = stored[f"nstep/{case}/expected_draw_index"]
    assert [draw_start(14, nstep, rng.randint) for _ in expected] == expected.tolist()


# 3.5


def test_keys_are_the_released_ones(stored, agent):
    state = agent.networks.state_dict()
    assert sorted({key.partition(".")[0] for key in state}) == sorted(MODULES)
    assert [zlib.crc32(key.encode()) for key in sorted(state)] == stored["keys/agent/crc32"].tolist()
    for key, shape in zip(sorted(state), stored["keys/agent/shape"], strict=True):
        assert list(state[key].shape) == [size for size in shape if size >= 0]


def test_networks_before_the_update(stored, agent):
    batch, _ = update_inputs(stored)
    nets = agent.networks
    with torch.no_grad():
        features = encode(nets.encoder, torch.from_numpy(batch.observation))
        assert torch.allclose(features, nets.encoder(torch.from_numpy(batch.observation)), atol=1e-6)
        values = torch.cat(nets.critic(features, torch.from_numpy(batch.action)), dim=1)
        mean = nets.actor(features)
    expected = stored["update/expected_encoder_features_unaugmented_slice"]
    assert np.abs(features[:, ::400].numpy() - expected).max() <= 1e-5
    close(sum_l2(features), stored["update/expected_encoder_features_unaugmented_sum_l2"], 1e-5)
    assert np.abs(mean.numpy() - stored["update/expected_actor_mean_unaugmented"]).max() <= 1e-5
    assert np.abs(values.numpy() - stored["update/expected_q1_q2_unaugmented"]).max() <= 1e-5


@pytest.mark.parametrize("source", ["stored", "seed"])
def test_update(stored, agent, source):
    batch, draws = update_inputs(stored)
    agent.generator.manual_seed(int(stored["update/seed"]))
    metrics = agent.update(batch, int(stored["update/step"]), draws if source == "stored" else None)
    for name, value in metrics.items():
        close(value, float(stored[f"update/expected_{name}"]), 1e-4)
    assert len(metrics) == 8
    state = agent.networks.state_dict()
    for key, (total, norm) in zip(sorted(state), stored["update/expected_param_sum_l2"], strict=True):
        found = sum_l2(state[key])
        close(found[1], norm, 1e-5)
        assert abs(found[0] - total) <= 0.02
    parameters = dict(agent.networks.named_parameters())
    for key, (_, norm) in zip(sorted(state), stored["update/expected_grad_sum_l2"], strict=True):
        if np.isnan(norm):
            assert parameters[key].grad is None
        else:
            assert abs(sum_l2(parameters[key].grad)[1] - norm) <= 1e-4 * abs(norm) + 1e-6, key
    if source == "seed":
        assert np.abs(torch.rand(3, generator=agent.generator).numpy() - stored["update/next_rand_after"]).max() <= 1e-6


def test_draws_are_made_as_in_the_release(stored, agent):
    _, expected = update_inputs(stored)
    agent.generator.manual_seed(int(stored["update/seed"]))
    found = agent.draw(6)
    assert torch.equal(found.shift, expected.shift)
    assert torch.equal(found.next_shift, expected.next_shift)
    assert torch.allclose(found.next_noise, expected.next_noise, atol=2e-6, rtol=0)
    assert torch.allclose(found.noise, expected.noise, atol=2e-6, rtol=0)


# 3.6


@pytest.mark.parametrize(
    ("name", "step", "evaluate"),
    [("eval", 20_000, True), ("train_step20000", 20_000, False), ("train_step500", 500, False)],
)
def test_acting(stored, agent, name, step, evaluate):
    agent.generator.manual_seed(int(stored["act/seed"]))
    found = [agent.act(observation, step, evaluate=evaluate) for observation in stored["act/obs"]]
    assert np.abs(np.stack(found) - stored[f"act/expected_{name}"]).max() <= 1e-5


def test_acting_with_given_noise(stored, agent):
    with torch.no_grad():
        mean = agent.networks.actor(agent.networks.encoder(torch.from_numpy(stored["act/obs"])))
    std = schedule(agent.recipe.noise, 20_000)
    assert std == pytest.approx(0.82)
    found = truncated_normal(mean, std, torch.from_numpy(stored["act/noise"]))
    assert np.abs(found.numpy() - stored["act/expected_train_step20000"]).max() <= 1e-5
