import dataclasses
import math

import pytest
import torch

from v2r_core.methods import load_method
from v2r_core.methods.dino import Dino, DinoNetwork, DinoRecipe, clip_each
from v2r_core.methods.method import Horizon
from v2r_core.nn.dino_losses import centred_probabilities, dino_loss
from v2r_core.nn.lars import LARS
from v2r_core.training.loop import set_rates

HORIZON = Horizon(steps_per_epoch=4, epochs=6, batch_size=4, examples=16)
SMALL = {
    "batch_size": 4,
    "epochs": 6,
    "size": 32,
    "local_size": 16,
    "local_count": 3,
    "prototypes": 24,
    "head_hidden": 16,
    "head_bottleneck": 8,
}


def recipe(**changes):
    return dataclasses.replace(DinoRecipe.tiny(), **(SMALL | changes))


def build(**changes):
    torch.manual_seed(0)
    return Dino(recipe(**changes), HORIZON)


def batch(method, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = Dino.data(method.recipe).views
    return {"views": [torch.randn(4, 3, view.size, view.size, generator=generator) for view in views]}


def train(method, steps, first=0, optimizer=None):
    optimizer = optimizer or method.optimizer()
    for step in range(first, first + steps):
        set_rates(optimizer, method, step)
        outcome = method(batch(method, step), step)
        outcome.loss.backward()
        method.adjust_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
    return outcome, optimizer


def naive_loss(student, teacher, center, student_temperature, teacher_temperature, batch_size):
    """Pair by pair, as equation 3 is written."""
    crops = student.double().split(batch_size)
    targets = ((teacher.double() - center.double()) / teacher_temperature).softmax(dim=-1).split(batch_size)
    terms = [
        -(target * (crop / student_temperature).log_softmax(dim=-1)).sum(dim=-1).mean()
        for i, target in enumerate(targets)
        for v, crop in enumerate(crops)
        if i != v
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("crops", [2, 3, 10])
def test_loss_is_the_mean_over_pairs(crops):
    student, teacher, center = torch.randn(crops * 5, 12), torch.randn(10, 12), torch.randn(1, 12)
    loss, moved = dino_loss(student, teacher, center, 0.1, 0.04, 0.9)
    assert float(loss) == pytest.approx(float(naive_loss(student, teacher, center, 0.1, 0.04, 5)), rel=1e-5)
    torch.testing.assert_close(moved, 0.9 * center + 0.1 * teacher.mean(dim=0, keepdim=True))


@pytest.mark.parametrize("rows", [(4, 5), (7, 6), (3, 6), (0, 0)])
def test_rows_that_are_no_crops(rows):
    with pytest.raises(ValueError, match=f"{rows[0]} student rows and {rows[1]} of the teacher"):
        dino_loss(torch.randn(rows[0], 8), torch.randn(rows[1], 8), torch.zeros(1, 8), 0.1, 0.04, 0.9)


def test_uniform_collapse_costs_log_k():
    loss, _ = dino_loss(torch.zeros(8, 32), torch.zeros(4, 32), torch.zeros(1, 32), 0.1, 0.04, 0.9)
    assert float(loss) == pytest.approx(math.log(32), rel=1e-5)


def test_clipping_without_limit_changes_nothing():
    gradients = [torch.randn(3, 4), torch.zeros(2)]
    before = [gradient.clone() for gradient in gradients]
    norms = clip_each(gradients, float("inf"))
    torch.testing.assert_close(gradients, before)
    torch.testing.assert_close(norms[0], before[0].norm())


@pytest.mark.parametrize("preset", DinoRecipe.presets())
def test_presets(preset):
    made = DinoRecipe.presets()[preset]
    views = Dino.data(made).views
    assert [view.size for view in views] == [made.size] * 2 + [made.local_size] * made.local_count
    assert [view.blur for view in views[:2]] == [1.0, 0.1] and views[1].solarize == 0.2 and not views[0].solarize
    assert all(view.flip == made.flip for view in views)


def test_the_papers_settings():
    made = DinoRecipe.paper()
    assert (made.architecture, made.patch, made.local_count, made.prototypes) == ("vit-small", 16, 8, 65536)
    assert (made.teacher_temperature, made.teacher_warmup_epochs, made.batch_size) == (0.07, 30, 1024)


def test_is_in_the_registry():
    assert load_method("dino") is Dino


@pytest.mark.parametrize("architecture", ["vit-mini", "resnet18"])
def test_trains_and_gives_an_encoder(architecture):
    method = build(architecture=architecture)
    outcome, _ = train(method, 3)
    assert torch.isfinite(outcome.loss)
    assert outcome.teacher_probs.shape == (8, 24)
    torch.testing.assert_close(outcome.teacher_probs.sum(dim=1), torch.ones(8))
    assert not outcome.features.requires_grad and len(outcome.features) == 8
    encoder = method.encoder()
    assert not encoder.training and encoder.preprocess.size == 32
    assert encoder(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, encoder.embedding_dim)


def test_first_teacher_is_the_student():
    method = build(drop_path=0.3)
    for name, weight in method.teacher.named_parameters():
        assert torch.equal(weight, method.student.get_parameter(name)) and not weight.requires_grad
    assert all(block.rate == 0 for block in method.teacher.backbone.blocks)
    assert method.student.backbone.blocks[-1].rate == pytest.approx(0.3)


def test_one_pass_for_each_size(monkeypatch):
    method = build()
    sizes, heads = [], []
    backbone, head = type(method.student.backbone), type(method.student.head)
    plain = backbone.class_tokens
    monkeypatch.setattr(backbone, "class_tokens", lambda self, x: sizes.append(tuple(x.shape)) or plain(self, x))
    monkeypatch.setattr(head, "__call__", lambda self, x: heads.append(len(x)) or self.forward(x), raising=False)
    method(batch(method), 0)
    assert sizes == [(8, 3, 32, 32), (8, 3, 32, 32), (12, 3, 16, 16)]
    assert heads == [8, 20]


def test_student_rows_come_crop_by_crop():
    method = build()
    views = batch(method)["views"]
    features, logits = method.student(views)
    assert isinstance(method.student, DinoNetwork)
    for number, view in enumerate(views):
        torch.testing.assert_close(features[4 * number : 4 * number + 4], method.student([view])[0])
        torch.testing.assert_close(logits[4 * number : 4 * number + 4], method.student([view])[1])


def test_prototypes_are_frozen_at_first():
    method = build(freeze_last_layer=1)
    before = method.student.head.last_layer.weight_v.detach().clone()
    _, optimizer = train(method, 4)
    assert torch.equal(method.student.head.last_layer.weight_v, before)
    # No gradient, hence no moments either: AdamW does not know them yet.
    assert method.student.head.last_layer.weight_v not in optimizer.state
    train(method, 1, first=4, optimizer=optimizer)
    assert not torch.equal(method.student.head.last_layer.weight_v, before)
    assert torch.equal(method.student.head.last_layer.weight_g, torch.ones(24, 1))


def test_lengths_learn_if_asked_to():
    method = build(norm_last_layer=False, freeze_last_layer=0)
    train(method, 2)
    assert not torch.equal(method.student.head.last_layer.weight_g, torch.ones(24, 1))


def test_every_gradient_is_clipped_by_itself():
    method = build(clip=1e-4, freeze_last_layer=0)
    method(batch(method), 0).loss.backward()
    numbers = method.adjust_gradients(0)
    norms = torch.stack([weight.grad.norm() for weight in method.student.parameters() if weight.grad is not None])
    assert norms.max() <= 1.001e-4 and (norms > 0.9e-4).sum() > 5
    assert numbers["grad_norm"] > 1e-3


def test_center_and_teacher_move():
    method = build(momentum=0.9)
    weight = method.teacher.head.mlp[0].weight.clone()
    with torch.no_grad():
        _, taught = method.teacher(batch(method)["views"][:2])
    outcome, _ = train(method, 1)
    torch.testing.assert_close(method.center, 0.1 * taught.mean(dim=0, keepdim=True))
    expected = 0.9 * weight + 0.1 * method.student.head.mlp[0].weight
    torch.testing.assert_close(method.teacher.head.mlp[0].weight, expected)
    # The loss used the old center.
    told = centred_probabilities(taught, torch.zeros(1, 24), method.schedule(0)["teacher_temperature"])
    torch.testing.assert_close(outcome.teacher_probs, told)


def test_state_has_everything():
    method = build()
    train(method, 2)
    other = build()
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other(batch(other), 3).loss, method(batch(method), 3).loss)
    torch.testing.assert_close(other.center, method.center)


def test_schedules():
    method = build(
        base_lr=0.64, warmup_epochs=1, teacher_warmup_epochs=3, teacher_temperature=0.07, teacher_temperature_start=0.04
    )
    rates = [method.schedule(step)["lr"] for step in range(24)]
    assert rates[0] == 0 and rates[3] == rates[4] == pytest.approx(0.01) and rates[-1] > method.recipe.min_lr
    temperatures = [method.schedule(step)["teacher_temperature"] for step in range(24)]
    assert temperatures[:4] == [0.04] * 4 and temperatures[4] == pytest.approx(0.055) and temperatures[8] == 0.07
    assert method.schedule(0)["momentum"] == method.recipe.momentum < method.schedule(23)["momentum"] < 1
    assert method.schedule(0)["weight_decay"] == pytest.approx(0.04)


def test_groups():
    method = build()
    decayed, plain = method.optimizer().param_groups
    assert (decayed["wd_scale"], plain["wd_scale"]) == (1.0, 0.0)
    assert any(weight is method.student.backbone.cls_token for weight in decayed["params"])
    assert all(weight.ndim == 1 for weight in plain["params"])


@pytest.mark.parametrize("name, kind", [("sgd", torch.optim.SGD), ("lars", LARS), ("adamw", torch.optim.AdamW)])
def test_optimizers(name, kind):
    method = build(optimizer=name)
    outcome, optimizer = train(method, 2)
    assert isinstance(optimizer, kind) and torch.isfinite(outcome.loss)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pools(pool):
    encoder = build(pool=pool).encoder()
    frames = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    tokens = encoder.backbone.tokens((frames.permute(0, 3, 1, 2) / 255 - encoder.mean) / encoder.std)
    torch.testing.assert_close(encoder(frames), tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"local_size": 20}, "crops of 32 and 20 pixels are no multiples of the patch, 8"),
        ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0"),
        ({"architecture": "lstm"}, "architecture is 'lstm'"),
        ({"warmup_epochs": 7}, "warm-up takes 28 of 24 iterations"),
    ],
)
def test_settings_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        build(**changes)


def test_without_local_crops():
    outcome, _ = train(build(local_count=0), 1)
    assert torch.isfinite(outcome.loss)
