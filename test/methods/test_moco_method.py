import dataclasses

import pytest
import torch

from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon
from v2r_core.methods.moco import Moco, MocoRecipe, shuffled_keys
from v2r_core.nn.lars import LARS

HORIZON = Horizon(steps_per_epoch=10, epochs=20, batch_size=8, examples=80)


def recipe(version="v2", **changes):
    small = {"size": 32, "width": 0.125, "dim": 16, "hidden": 32, "queue": 32, "batch_size": 8}
    if version == "v3":
        small["patch"] = 16
    return dataclasses.replace(MocoRecipe.tiny(version), **(small | changes))


def build(version="v2", **changes):
    torch.manual_seed(0)
    return Moco(recipe(version, **changes), HORIZON)


def batch(count=8, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"views": [torch.randn(count, 3, size, size, generator=generator) for _ in range(2)]}


def train(method, steps=1):
    optimizer = method.optimizer()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = method.schedule(step)["lr"] * group["lr_scale"]
            group["weight_decay"] = method.schedule(step)["weight_decay"] * group["wd_scale"]
        optimizer.zero_grad()
        outcome = method(batch(seed=step), step)
        outcome.loss.backward()
        method.adjust_gradients(step)
        optimizer.step()
        method.after_step(step)
    return outcome


@pytest.mark.parametrize("preset", MocoRecipe.presets())
def test_presets_are_recipes(preset):
    found = MocoRecipe.presets()[preset]
    assert found.version == ("v1" if "v1" in preset else "v3" if "v3" in preset else "v2")
    spec = Moco.data(found)
    assert [view.size for view in spec.views] == [found.size] * 2
    assert all(view.scale == (found.crop_min, 1.0) for view in spec.views)


def test_is_in_the_registry():
    assert load_method("moco") is Moco


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_trains_and_gives_an_encoder(version):
    method = build(version)
    before = method.encoder()(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    outcome = train(method, steps=3)
    assert outcome.features.shape == (8, 16)
    torch.testing.assert_close(outcome.features.norm(dim=1), torch.ones(8))
    assert 0 <= float(outcome.metrics["accuracy"]) <= 1
    encoder = method.encoder()
    after = encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert after.shape == (1, encoder.embedding_dim)
    assert not torch.allclose(before, after)
    trained = method.base_encoder if version == "v3" else method.encoder_q
    shared = dict(encoder.backbone.named_parameters())
    assert all(shared[key].data_ptr() == value.data_ptr() for key, value in trained.named_parameters() if key in shared)
    assert not encoder.training


def test_queue_takes_the_keys_after_the_logits():
    method = build()
    old = method.queue.clone()
    torch.testing.assert_close(old.norm(dim=0), torch.ones(32))
    for step in range(5):
        train(method)
        assert int(method.queue_ptr) == (step + 1) * 8 % 32
    torch.testing.assert_close(method.queue.norm(dim=0), torch.ones(32))
    assert not torch.isclose(method.queue, old).all(dim=0).any()


def test_average_moves_before_the_keys_and_once_a_step():
    method = build(momentum=0.5)
    with torch.no_grad():
        for weight in method.encoder_q.parameters():
            weight.add_(1.0)
    start = method.encoder_k.fc[2].bias.clone()
    method.loss(batch(), step=0)
    torch.testing.assert_close(method.encoder_k.fc[2].bias, start + 0.5)
    method.loss(batch(), step=0)
    torch.testing.assert_close(method.encoder_k.fc[2].bias, start + 0.5)
    method.loss(batch(), step=1)
    torch.testing.assert_close(method.encoder_k.fc[2].bias, start + 0.75)
    assert not any(weight.requires_grad for weight in method.encoder_k.parameters())


def test_running_statistics_are_each_networks_own():
    method = build(momentum=1.0)
    views = batch()["views"]
    method.loss({"views": [views[0], 3 * views[1]]}, 0)
    assert not torch.allclose(method.encoder_q.bn1.running_var, method.encoder_k.bn1.running_var)


def test_shuffling_changes_keys_only_if_batch_norm_is_split():
    images = batch()["views"][0]
    permutation = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    for splits, same in ((1, True), (2, False)):
        network = build(bn_splits=splits).encoder_k
        plain, shuffled = shuffled_keys(network, images, None), shuffled_keys(network, images, permutation)
        assert torch.allclose(plain, shuffled, atol=1e-5) is same


def test_a_queue_that_the_batch_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="queue of 36 keys is no multiple of the batch size 8; use a queue of 32 or 40"
    ):
        build(queue=36)
    with pytest.raises(ValueError, match="queue of 4 keys"):
        build(queue=4)


def test_parts_of_a_batch_must_be_equal():
    with pytest.raises(ValueError, match="batch size 8 is no multiple of bn_splits 3"):
        build(bn_splits=3)


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match="MoCo v2 has no 'vit-small'"):
        build(architecture="vit-small")
    with pytest.raises(ValueError, match="vit-mini and the like"):
        build("v3", architecture="convnet")
    with pytest.raises(ValueError, match="depth 20"):
        build(architecture="resnet20")


def test_another_methods_recipe_is_refused():
    from v2r_core.methods.simclr import SimCLRRecipe

    with pytest.raises(ValueError, match="moco takes a MocoRecipe"):
        Moco(SimCLRRecipe.tiny(), HORIZON)


def test_first_version_has_a_linear_head():
    assert isinstance(build("v1").encoder_q.fc, torch.nn.Linear)
    assert [type(part).__name__ for part in build("v2").encoder_q.fc] == ["Linear", "ReLU", "Linear"]


def test_schedules():
    method = build("v1", milestones=(12, 16))
    peak = recipe("v1").base_lr * 8 / 256
    rates = [method.schedule(step)["lr"] for step in (0, 119, 120, 160)]
    assert rates == pytest.approx([peak, peak, peak / 10, peak / 100])
    method = build("v2")
    assert method.schedule(9)["lr"] == method.schedule(0)["lr"] > method.schedule(10)["lr"]
    method = build("v3")
    assert method.schedule(0)["lr"] == 0 < method.schedule(1)["lr"]
    assert method.schedule(0)["momentum"] == pytest.approx(0.99)
    assert method.schedule(199)["momentum"] > 0.9999


def test_patch_embedding_is_frozen():
    method = build("v3")
    before = method.base_encoder.patch_embed.proj.weight.clone()
    train(method, steps=3)
    assert torch.equal(before, method.base_encoder.patch_embed.proj.weight)
    assert build("v3", freeze_patch=False).base_encoder.patch_embed.proj.weight.requires_grad


def test_small_vit_has_twelve_heads():
    assert build("v3", architecture="vit-small").base_encoder.config.heads == 12


def test_resnet_of_version_three():
    method = build("v3", architecture="resnet18", optimizer="lars")
    assert isinstance(method.optimizer(), LARS)
    assert len(method.base_encoder.fc) == 5 and len(method.predictor) == 4
    train(method, steps=2)
    assert method.encoder().embedding_dim == 64


def test_state_resumes():
    method = build()
    train(method, steps=2)
    other = build()
    other.load_state_dict(method.state_dict())
    torch.manual_seed(1)
    expected = method.loss(batch(), 2).loss
    torch.manual_seed(1)
    assert torch.equal(other.loss(batch(), 2).loss, expected)
