"""VIP: what it samples, what it starts from, that values grow towards the goal, and what it exports."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from synthetic_video import moving_square

from v2r_core.methods.method import Horizon
from v2r_core.methods.vip import FramePicker, Vip, VipRecipe, rewound, tcn_loss, values, vip_loss
from v2r_core.rewards.quality import voc

HORIZON = Horizon(steps_per_epoch=5, epochs=4, batch_size=8, examples=40)


@pytest.fixture
def recipe():
    return VipRecipe(encoder="resnet18", freeze=False, size=32, dim=8, batch_size=8, lr=1e-3, epochs=4)


def picked(recipe, count, rng):
    frames = torch.from_numpy(np.stack(moving_square(30))).permute(0, 3, 1, 2).float() / 255
    frames = torch.nn.functional.interpolate(frames, size=recipe.size)
    chosen = [FramePicker(recipe.loss, recipe.rewind)(len(frames), rng) for _ in range(count)]
    return {"views": [torch.stack([frames[list(each)] for each in chosen]).transpose(1, 2)], "names": []}


def test_values_grow_towards_the_goal_after_training(recipe):
    torch.manual_seed(0)
    method, rng = Vip(recipe, HORIZON), np.random.default_rng(0)
    optimizer = method.optimizer()
    losses = []
    for _ in range(40):
        step = method(picked(recipe, 8, rng), 0)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    encoder = method.encoder()
    frames = torch.from_numpy(np.stack(moving_square(30)))
    small = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2).float(), size=32).round().byte()
    with torch.inference_mode():
        embedded = encoder(small.permute(0, 2, 3, 1)).numpy()
    distances = np.linalg.norm(embedded - embedded[-1], axis=1)
    assert voc(-distances, np.arange(30.0)) > 0.9
    assert method.reward_export().name == "vip"


def test_a_frozen_encoder_is_not_touched_and_only_the_head_is_trained():
    torch.manual_seed(0)
    method = Vip(dataclasses.replace(VipRecipe.tiny(), size=64), HORIZON)
    method.begin()
    method.train()
    assert not any(module.training for module in method.base.modules())
    frozen = method.frozen()
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = frozen.apply(frames)
        again = method.encoder()(frames)
        assert torch.allclose(method.top(features), again, atol=1e-5)
    before = {key: value.clone() for key, value in method.base.state_dict().items()}
    optimizer = method.optimizer()
    step = method({"features": torch.randn(6, 4, features.shape[1]), "names": []}, 0)
    step.loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in method.base.state_dict().items())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.top.parameters()}


def test_it_starts_from_a_run_of_another_method(tmp_path, recipe):
    from v2r_core.training.checkpoint import save_checkpoint

    torch.manual_seed(1)
    first = Vip(recipe, HORIZON)
    record = {"method": "vip", "recipe": dataclasses.asdict(recipe), "horizon": dataclasses.asdict(HORIZON)}
    (tmp_path / "run.json").write_text(json.dumps(record))
    save_checkpoint(tmp_path, 3, first, first.optimizer(), {}, keep=1)
    second = Vip(VipRecipe(encoder=str(tmp_path), dim=5, hidden=16, batch_size=8), HORIZON)
    second.begin()
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(second.frozen().apply(frames), first.encoder()(frames))
        assert second.encoder()(frames).shape == (2, 5)


@pytest.mark.parametrize(("loss", "slots"), [("vip", 4), ("tcn", 5)])
@pytest.mark.parametrize("rewind", [0.0, 1.0])
def test_samples_are_frames_of_the_video(loss, slots, rewind):
    rng = np.random.default_rng(0)
    for frames in (slots, 6, 40):
        for _ in range(200):
            chosen = FramePicker(loss, rewind)(frames, rng)
            assert len(chosen) == slots
            assert all(0 <= frame < frames for frame in chosen)
            if rewind == 0 and loss == "vip":
                start, goal, k, after = chosen
                assert start <= k < after <= goal


def test_a_rewound_video_turns_once_and_moves_frame_by_frame():
    rng = np.random.default_rng(0)
    for _ in range(100):
        order = np.array(rewound(20, rng))
        steps = np.diff(order)
        assert set(steps.tolist()) == {1, -1}
        assert (np.diff(steps) != 0).sum() == 1
        assert order[0] == 0
        assert order[-1] < order.max()


def test_paper_and_official_negatives_differ_and_agree_without_any():
    phi = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))
    perms = torch.stack([torch.arange(5, -1, -1), torch.arange(6)])
    official, paper = (vip_loss(phi, perms, compat=compat)["loss"] for compat in ("official", "paper"))
    assert abs(float(official - paper)) > 0.1
    plain = [vip_loss(phi, None, compat=compat)["loss"] for compat in ("official", "paper")]
    assert plain[0] == plain[1]


def test_time_contrastive_loss_prefers_an_embedding_that_is_time():
    time = torch.linspace(0, 4, 5).reshape(1, 5, 1).expand(4, 5, 1)
    ordered = time[:, [0, 4, 1, 2, 3]]
    mixed = time[:, [0, 4, 1, 3, 2]]
    assert tcn_loss(ordered, None)["loss"] < tcn_loss(mixed, None)["loss"]
    assert float(tcn_loss(ordered, None)["aligned"]) == 1.0


def test_cosine_values_are_one_at_the_goal_times_the_horizon():
    goal = torch.randn(3, 4)
    assert torch.allclose(values(2 * goal, goal, 0.98, "cosine"), torch.full((3,), 50.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gamma": 1.0}, "gamma is 1.0"),
        ({"negatives": -1}, "negatives -1"),
        ({"encoder": "resnet18", "freeze": True}, "random weights"),
        ({"rewind": 2.0}, "rewind is 2.0"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        VipRecipe(**changes)
