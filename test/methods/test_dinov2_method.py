import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.methods import load_method
from v2r_core.methods.dinov2 import DinoV2, DinoV2Recipe
from v2r_core.methods.method import Horizon
from v2r_core.nn.dino_losses import crossed_entropy, koleo_loss, sinkhorn_knopp
from v2r_core.training.loop import set_rates

HORIZON = Horizon(steps_per_epoch=4, epochs=8, batch_size=4, examples=16)
SMALL = {
    "batch_size": 4,
    "epochs": 8,
    "size": 32,
    "local_size": 16,
    "local_count": 3,
    "prototypes": 24,
    "head_hidden": 16,
    "head_bottleneck": 8,
    "teacher_warmup_epochs": 2,
}


def recipe(**changes):
    return dataclasses.replace(DinoV2Recipe.tiny(), **(SMALL | changes))


def build(**changes):
    torch.manual_seed(0)
    return DinoV2(recipe(**changes), HORIZON)


def batch(method, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spec = DinoV2.data(method.recipe)
    views = [torch.randn(4, 3, view.size, view.size, generator=generator) for view in spec.views]
    return {"views": views, **spec.masks(4, seed, generator)}


def train(method, steps, first=0, optimizer=None):
    optimizer = optimizer or method.optimizer()
    method.train()
    for step in range(first, first + steps):
        set_rates(optimizer, method, step)
        outcome = method(batch(method, step), step)
        outcome.loss.backward()
        method.adjust_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
    return outcome, optimizer


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("preset", DinoV2Recipe.presets())
def test_presets(preset):
    made = DinoV2Recipe.presets()[preset]
    spec = DinoV2.data(made)
    assert [view.size for view in spec.views] == [made.size] * 2 + [made.local_size] * made.local_count
    assert spec.masks.grid == (made.size // made.patch,) * 2
    assert [view.blur for view in spec.views[:2]] == [0.0, 0.9]


def test_published_blur():
    assert [view.blur for view in DinoV2.data(recipe(compat="paper")).views[:2]] == [1.0, 0.1]


def test_the_papers_settings():
    short, long = DinoV2Recipe.paper("short"), DinoV2Recipe.paper("long")
    assert (short.patch, short.prototypes, short.centering, short.separate_heads) == (16, 65536, "center", False)
    assert (long.patch, long.prototypes, long.centering, long.separate_heads) == (14, 131072, "sinkhorn", True)
    assert (short.layer_decay, long.layer_decay, long.head_bottleneck) == (0.9, 1.0, 384)


def test_is_in_the_registry():
    assert load_method("dinov2") is DinoV2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"centering": "center"},
        {"separate_heads": True, "swiglu": True, "registers": 2},
        {"drop_path": 0.3, "koleo_weight": 0.0},
        {"local_count": 0},
        {"mask_probability": 0.0},
    ],
)
def test_trains_and_gives_an_encoder(changes):
    method = build(**changes)
    outcome, _ = train(method, 3)
    assert torch.isfinite(outcome.loss)
    assert outcome.features.shape == (8, 192) and not outcome.features.requires_grad
    torch.testing.assert_close(outcome.teacher_probs.sum(dim=1), torch.ones(8))
    assert all(weight.isfinite().all() for weight in method.parameters())
    encoder = method.encoder()
    assert encoder(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 192)


def test_loss_is_the_sum_of_its_terms():
    method = build(koleo_weight=0.2, ibot_weight=0.5, dino_weight=2.0)
    outcome = method(batch(method), 0)
    parts = {name: float(value) for name, value in outcome.metrics.items()}
    expected = 2 * parts["dino_loss"] + 0.5 * parts["ibot_loss"] + 0.2 * parts["koleo_loss"]
    assert float(outcome.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_class_tokens_answer_as_in_dino():
    """Without masks the first loss is DINO's: the mean over pairs of different crops."""
    method = build(mask_probability=0.0, koleo_weight=0.0).eval()
    given = batch(method)
    temperature = method.schedule(0)["teacher_temperature"]
    with torch.no_grad():
        taught = method.teacher.dino_head(method.teacher.backbone.class_tokens(torch.cat(given["views"][:2])))
        answers = [method.student.dino_head(method.student.backbone.class_tokens(view)) for view in given["views"]]
    told = sinkhorn_knopp(taught, temperature).chunk(2)
    terms = [
        float(crossed_entropy(answer[None], target[None], 0.1))
        for i, target in enumerate(told)
        for v, answer in enumerate(answers)
        if i != v
    ]
    assert float(method(given, 0).metrics["dino_loss"]) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_student_does_not_see_masked_patches():
    method = build()
    given = batch(method)
    row, place = divmod(int(given["mask_indices"][0]), 16)
    views = [view.clone() for view in given["views"]]
    top, left = 8 * (place // 4), 8 * (place % 4)
    views[row // 4][row % 4, :, top : top + 8, left : left + 8] += 3
    torch.manual_seed(0)
    before = method._features(method.student, torch.cat(given["views"][:2]), given["mask"], given["mask_indices"])
    after = method._features(method.student, torch.cat(views[:2]), given["mask"], given["mask_indices"])
    torch.testing.assert_close(after, before)
    told = method._features(method.teacher, torch.cat(given["views"][:2]), None, given["mask_indices"])
    told_after = method._features(method.teacher, torch.cat(views[:2]), None, given["mask_indices"])
    assert not torch.allclose(told[1], told_after[1])


def test_teacher_stays_in_evaluation_mode():
    method = build(drop_path=0.4).train()
    assert method.student.training and not method.teacher.training
    assert all(not module.training for module in method.teacher.modules())


def test_centers_take_effect_at_the_next_call():
    method = build(centering="center")
    given = batch(method)
    first = method(given, 0).teacher_probs
    assert method.dino_center.abs().sum() > 0 and method.ibot_center.abs().sum() > 0
    second = method(given, 0).teacher_probs
    assert not torch.allclose(first, second)
    assert not torch.equal(method.dino_center, method.ibot_center)


def test_sinkhorn_uses_all_prototypes_equally():
    torch.manual_seed(0)
    told = sinkhorn_knopp(torch.randn(64, 16) * 0.3 + torch.linspace(0, 1, 16), 0.1, iterations=100)
    torch.testing.assert_close(told.mean(dim=0), torch.full((16,), 1 / 16), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(told.sum(dim=1), torch.ones(64))


def test_koleo_spreads_features():
    torch.manual_seed(0)
    features = (torch.randn(32, 8) * 0.1 + 1).requires_grad_()
    before = float(koleo_loss(features).detach())
    optimizer = torch.optim.SGD([features], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        koleo_loss(features).backward()
        optimizer.step()
    assert float(koleo_loss(features).detach()) < before - 0.5


def test_koleo_needs_neighbours():
    with pytest.raises(ValueError, match="1 images in the batch have no neighbours"):
        koleo_loss(torch.randn(1, 4))


def test_prototypes_have_rate_zero_at_first():
    method = build(freeze_last_layer=1, koleo_weight=0.0)
    before = snapshot(method.student.dino_head)
    _, optimizer = train(method, 4)
    assert not {name for name in moved(before, snapshot(method.student.dino_head)) if "last_layer" in name}
    # The moments are there, unlike DINO's.
    assert method.student.dino_head.last_layer.weight_v in optimizer.state
    train(method, 1, first=4, optimizer=optimizer)
    assert {"last_layer.weight_v", "last_layer.weight_g"} <= moved(before, snapshot(method.student.dino_head))


def test_clips_each_part():
    method = build(clip=1e-3)
    method(batch(method), 0).loss.backward()
    numbers = method.adjust_gradients(0)
    assert set(numbers) == {"grad_norm_backbone", "grad_norm_dino_head"}
    for part in (method.student.backbone, method.student.dino_head):
        norm = torch.stack([weight.grad.norm() for weight in part.parameters() if weight.grad is not None]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_rates_fall_towards_the_input():
    method = build(layer_decay=0.5, patch_embed_scale=0.2)
    rates = {}
    names = {id(weight): name for name, weight in method.student.named_parameters()}
    optimizer = method.optimizer()
    for group in optimizer.param_groups:
        rates |= {names[id(weight)]: (group["lr_scale"], group["wd_scale"]) for weight in group["params"]}
    assert set(rates) == set(names.values())
    assert rates["backbone.norm.weight"] == (1.0, 0.0)
    assert rates["backbone.blocks.3.mlp.fc1.weight"] == (0.5, 1.0)
    assert rates["backbone.blocks.0.ls1.gamma"] == (0.5**4, 0.0)
    assert rates["backbone.cls_token"] == (0.5**5, 1.0)
    assert rates["backbone.patch_embed.proj.weight"] == (pytest.approx(0.2 * 0.5**5), 1.0)
    assert rates["dino_head.mlp.0.weight"] == (1.0, 1.0)


def test_schedules():
    method = build(base_lr=1.0, warmup_epochs=1)
    rates = [method.schedule(step) for step in range(32)]
    # The square root of 4 / 1024.
    assert rates[3]["lr"] == rates[4]["lr"] == pytest.approx(1 / 16)
    assert [step["last_layer_lr"] for step in rates[:4]] == [0.0] * 4 and rates[4]["last_layer_lr"] == rates[4]["lr"]
    assert [step["backbone_lr"] for step in rates] == [step["lr"] for step in rates]
    assert rates[0]["teacher_temperature"] == 0.04 and rates[7]["teacher_temperature"] == pytest.approx(0.07)
    assert rates[31]["teacher_temperature"] == 0.07


def released_file(folder, side=6, **changes):
    """A backbone as it was released, made for larger images."""
    torch.manual_seed(7)
    other = DinoV2(recipe(size=8 * side, **changes), HORIZON).student.backbone
    torch.save(other.state_dict(), folder / "dinov2_pretrain.pth")
    return other, str(folder / "dinov2_pretrain.pth")


def test_begins_with_a_released_backbone(tmp_path):
    other, path = released_file(tmp_path)
    method = build(init_from=path, head_warmup_epochs=1, warmup_epochs=1, backbone_lr_scale=0.5)
    method.begin()
    table = other.position_table((1, 4, 4))
    for network in (method.student, method.teacher):
        torch.testing.assert_close(network.backbone.pos_embed, table)
        assert torch.equal(network.backbone.blocks[2].mlp.fc1.weight, other.blocks[2].mlp.fc1.weight)
    before, heads = snapshot(method.student.backbone), snapshot(method.student.dino_head)
    _, optimizer = train(method, 4)
    assert not moved(before, snapshot(method.student.backbone))
    assert "mlp.0.weight" in moved(heads, snapshot(method.student.dino_head))
    rates = [method.schedule(step)["backbone_lr"] for step in range(32)]
    assert rates[:5] == [0.0] * 5 and rates[7] == pytest.approx(0.5 * method.schedule(3)["lr"])
    train(method, 2, first=4, optimizer=optimizer)
    assert "blocks.0.attn.qkv.weight" in moved(before, snapshot(method.student.backbone))


def test_a_backbone_of_another_kind_is_refused(tmp_path):
    _, path = released_file(tmp_path, registers=2)
    with pytest.raises(CheckpointError, match="not expected register_tokens"):
        build(init_from=path).begin()


def test_goes_on_at_high_resolution(tmp_path):
    method = build(centering="center")
    train(method, 3)
    path = tmp_path / "method.safetensors"
    save_file({name: value.contiguous() for name, value in method.state_dict().items()}, path)
    larger = build(centering="center", size=64, continue_from=str(path))
    larger.begin()
    torch.testing.assert_close(larger.dino_center, method.dino_center)
    torch.testing.assert_close(larger.teacher.backbone.pos_embed, method.teacher.backbone.position_table((1, 8, 8)))
    changed = moved(snapshot(method.teacher.dino_head), snapshot(larger.teacher.dino_head))
    assert not changed
    outcome, _ = train(larger, 1)
    assert torch.isfinite(outcome.loss)


def test_one_beginning_only():
    with pytest.raises(ValueError, match="init_from and continue_from are both given"):
        recipe(init_from="a", continue_from="b")


def test_missing_file():
    with pytest.raises(CheckpointError, match="no such file"):
        build(init_from="/nowhere/dinov2.pth").begin()


def test_state_has_everything():
    method = build(centering="center")
    train(method, 2)
    other = build(centering="center")
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other(batch(other), 3).loss, method(batch(method), 3).loss)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"size": 36}, "crops of 36 and 16 pixels are no multiples of the patch, 8"),
        ({"student_temperature": 0.0}, "student_temperature is 0.0"),
        ({"head_warmup_epochs": 7, "warmup_epochs": 2}, "warm-up takes 8 of 4 iterations"),
    ],
)
def test_settings_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        build(**changes)
