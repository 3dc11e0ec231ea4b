import dataclasses

import pytest
import torch
from torch.nn import functional

from v2r_core.methods import load_method
from v2r_core.methods.classifier import distillation_loss, labelled_loss
from v2r_core.methods.method import Horizon
from v2r_core.methods.simclr import nt_xent_logits
from v2r_core.methods.simclrv2 import (
    Distill,
    DistillRecipe,
    Finetune,
    FinetuneRecipe,
    SimCLRv2,
    SimCLRv2Recipe,
)

HORIZON = Horizon(steps_per_epoch=10, epochs=4, batch_size=8, examples=80)
SMALL = {"size": 32, "width": 0.125, "batch_size": 8}


def pretraining(**changes):
    torch.manual_seed(0)
    given = SMALL | {"memory": 32, "head_dim": 16} | changes
    return SimCLRv2(dataclasses.replace(SimCLRv2Recipe.tiny(), **given), HORIZON)


def finetuning(**changes):
    given = SMALL | {"classes": 3, "head_dim": 16} | changes
    return Finetune(dataclasses.replace(FinetuneRecipe.tiny(), **given), HORIZON)


def distillation(**changes):
    given = SMALL | {"classes": 3, "teacher_width": 0.125} | changes
    return Distill(dataclasses.replace(DistillRecipe.tiny(), **given), HORIZON)


def images(count=8, seed=0):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def train(method, batch, steps):
    optimizer = method.optimizer()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
            group["weight_decay"] = method.schedule(step)["weight_decay"] * group["wd_scale"]
        optimizer.zero_grad()
        outcome = method(batch, step)
        outcome.loss.backward()
        optimizer.step()
        method.after_step(step)
        losses.append(float(outcome.loss.detach()))
    return losses


def test_registry():
    assert load_method("simclrv2") is SimCLRv2
    assert load_method("simclrv2-finetune") is Finetune
    assert load_method("simclrv2-distill") is Distill


def test_paper_is_as_large_as_it_says():
    recipe = SimCLRv2Recipe.paper()
    assert (recipe.depth, recipe.width, recipe.selective, recipe.head_layers) == (152, 3, True, 3)
    assert recipe.memory % recipe.batch_size == 0


def test_memory_fills_with_what_the_average_says():
    method = pretraining(momentum=0.5)
    old = method.queue.clone()
    views = [images(seed=0), images(seed=1)]
    averaged = [weight.clone() for weight in method.averaged.parameters()]
    train(method, {"views": views}, 1)
    assert int(method.queue_ptr) == 8
    assert torch.equal(method.queue[:, 8:], old[:, 8:])
    for before, after, trained in zip(
        averaged,
        method.averaged.parameters(),
        [*method.backbone.parameters(), *method.head.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(after, (before + trained) / 2)


def test_memory_is_among_the_negatives():
    method = pretraining()
    views = [images(seed=0), images(seed=1)]
    queue = method.queue.T.clone()
    loss = method.loss({"views": views}, 0).loss
    z = functional.normalize(method.project({"views": views}), dim=1)
    logits, labels = nt_xent_logits(z, method.recipe.temperature, queue)
    torch.testing.assert_close(loss, 2 * functional.cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)
    assert "queue" not in dict(pretraining(memory=0).named_buffers())
    with pytest.raises(ValueError, match="queue of 20 keys is no multiple of the batch size 8"):
        pretraining(memory=20)


@pytest.mark.parametrize("from_layer", [0, 1, 3])
def test_fine_tuning_begins_in_the_middle_of_the_head(from_layer):
    before = pretraining().eval()
    method = finetuning(from_layer=from_layer)
    method.start(before.state_dict())
    method.eval()
    with torch.no_grad():
        found = method.network.features(images())
        expected = before.head.hiddens(before.backbone(images()))[from_layer]
    torch.testing.assert_close(found, expected)
    encoder = method.encoder()
    assert encoder.embedding_dim == expected.shape[1]
    frames = (images() * 255).to(torch.uint8).permute(0, 2, 3, 1)
    with torch.no_grad():
        assert encoder(frames).shape == expected.shape


def test_fine_tuning_learns_from_what_has_a_label():
    method = finetuning()
    method.start(pretraining().state_dict())
    labels = torch.tensor([0, 1, 2, 0, 1, -1, -1, -1])
    losses = train(method, {"views": [images()], "labels": labels}, 15)
    assert losses[0] == pytest.approx(torch.log(torch.tensor(3.0)).item(), rel=1e-4)
    assert losses[-1] < 0.5 * losses[0]


def test_unlabelled_rows_have_no_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([2, -1, 0, -1])
    labelled_loss(logits, labels).backward()
    assert not logits.grad[[1, 3]].any()
    torch.testing.assert_close(labelled_loss(logits, labels), functional.cross_entropy(logits[[0, 2]], labels[[0, 2]]))
    assert labelled_loss(logits, torch.full((4,), -1)) == 0


def test_missing_and_wrong_labels_are_named():
    method = finetuning()
    method.start(pretraining().state_dict())
    with pytest.raises(ValueError, match="needs labels"):
        method.loss({"views": [images()]}, 0)
    with pytest.raises(ValueError, match="labels from 0 to 7, but there are 3 classes"):
        method.loss({"views": [images()], "labels": torch.arange(8)}, 0)


def test_weights_of_the_run_before_are_needed_and_must_fit():
    with pytest.raises(ValueError, match="begins with the weights of a run of simclrv2; name it"):
        finetuning().begin()
    with pytest.raises(ValueError, match="begins with the weights of a run of simclrv2-finetune"):
        distillation().begin()
    with pytest.raises(ValueError, match=r"of another network: backbone\.conv1\.weight"):
        finetuning(width=0.25).start(pretraining().state_dict())
    with pytest.raises(ValueError, match=r"layers\.2\.dense\.weight"):
        finetuning(head_layers=4, from_layer=3).start(pretraining().state_dict())
    with pytest.raises(ValueError, match="from_layer is 4"):
        finetuning(from_layer=4)


def test_lars_decays_but_does_not_scale_the_classifier():
    method = finetuning(optimizer="lars")
    groups = {(group["wd_scale"], group["adapt"]): group["params"] for group in method.optimizer().param_groups}
    assert groups[(1.0, False)][0] is method.network.classifier.weight
    assert any(weight is method.network.classifier.bias for weight in groups[(0.0, False)])


def test_student_learns_what_the_teacher_says():
    tuned = finetuning()
    tuned.start(pretraining().state_dict())
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    train(tuned, {"views": [images()], "labels": labels}, 10)
    method = distillation()
    method.start(tuned.state_dict())
    teacher = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    losses = train(method.train(), {"views": [images()]}, 20)
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, teacher[key]) for key, value in method.teacher.state_dict().items())
    assert method.encoder().embedding_dim == 64


def test_student_teaches_the_next_one():
    method = distillation(width=0.25, from_layer=1)
    following = distillation(teacher_width=0.25, teacher_layers=1)
    following.start(method.state_dict())
    expected = method.network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in following.teacher.state_dict().items())


def test_distillation_loss():
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = -(functional.softmax(teacher / 2, 1) * functional.log_softmax(student / 2, 1)).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0, scaled=False), expected)
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0, scaled=True), 4 * expected)


def test_labels_share_the_loss_with_the_teacher():
    method = distillation(alpha=0.25)
    method.start(finetuning().state_dict())
    labels = torch.tensor([0, 1, 2, 0, 1, 2, -1, -1])
    batch = {"views": [images()], "labels": labels}
    loss = method.loss(batch, 0).loss
    logits, taught = method.network(images()), method.teacher(images())
    expected = 0.25 * distillation_loss(logits, taught, 1.0, True) + 0.75 * labelled_loss(logits, labels)
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="needs labels"):
        method.loss({"views": [images()]}, 0)
    with pytest.raises(ValueError, match="alpha is 2"):
        distillation(alpha=2)


def test_start_survives_a_checkpoint():
    tuned = finetuning()
    tuned.start(pretraining().state_dict())
    other = finetuning()
    other.load_state_dict(tuned.state_dict())
    other.loss({"views": [images()], "labels": torch.zeros(8, dtype=torch.long)}, 0)
