import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon
from v2r_core.methods.simclr import SimCLR, SimCLRRecipe, nt_xent, nt_xent_logits
from v2r_core.nn.lars import LARS
from v2r_core.nn.projection import ProjectionHead

HORIZON = Horizon(steps_per_epoch=10, epochs=20, batch_size=8, examples=80)


def build(**changes):
    torch.manual_seed(0)
    small = {"size": 32, "width": 0.125, "head_dim": 16, "batch_size": 8}
    return SimCLR(dataclasses.replace(SimCLRRecipe.tiny(), **(small | changes)), HORIZON)


def batch(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"views": [torch.rand(count, 3, 32, 32, generator=generator) for _ in range(2)]}


def naive(z1, z2, temperature):
    """Equation 1 of the paper, row by row, averaged over 2N rows."""
    z = functional.normalize(torch.cat([z1, z2]), dim=1)
    count, total = len(z1), 0.0
    for i in range(2 * count):
        similarity = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * count)]
        total -= math.log(similarity[(i + count) % (2 * count)] / (sum(similarity) - similarity[i]))
    return total / (2 * count)


def test_loss_is_the_papers_and_official_is_twice_that():
    z1, z2 = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = naive(z1, z2, 0.3)
    assert float(nt_xent(z1, z2, 0.3, reduction="mean")) == pytest.approx(expected, rel=1e-5)
    assert float(nt_xent(z1, z2, 0.3)) == pytest.approx(2 * expected, rel=1e-5)
    assert float(nt_xent(5 * z1, z2, 0.3)) == pytest.approx(2 * expected, rel=1e-5)


def test_more_negatives_raise_the_loss():
    z1, z2, others = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    with_memory = nt_xent(z1, z2, 0.3, negatives=functional.normalize(others, dim=1))
    assert float(with_memory) > float(nt_xent(z1, z2, 0.3))
    logits, labels = nt_xent_logits(torch.cat([z1, z2]), 0.3, others)
    assert logits.shape == (10, 15)
    assert labels.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_compat_halves_the_loss():
    official, paper = build(), build(compat="paper")
    views = batch()
    torch.testing.assert_close(paper.loss(views, 0).loss * 2, official.loss(views, 0).loss)


def test_is_in_the_registry():
    assert load_method("simclr") is SimCLR


def test_views_are_not_normalised():
    for preset in SimCLRRecipe.presets().values():
        for view in SimCLR.data(preset).views:
            assert view.mean == (0, 0, 0) and view.std == (1, 1, 1)
            assert view.crop == "tensorflow"
    encoder = build().encoder()
    assert encoder.preprocess.mean == (0, 0, 0) and encoder.preprocess.std == (1, 1, 1)


@pytest.mark.parametrize("optimizer", ["lars", "momentum", "adam"])
def test_learns_to_tell_frames_apart(optimizer):
    method = build(
        optimizer=optimizer, base_lr={"lars": 16.0, "momentum": 1.0, "adam": 0.1}[optimizer], warmup_epochs=0
    )
    stepper = method.optimizer()
    losses = []
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for step in range(15):
        rates = method.schedule(step)
        for group in stepper.param_groups:
            group["lr"], group["weight_decay"] = rates["lr"], rates["weight_decay"] * group["wd_scale"]
        noise = [0.05 * torch.rand(8, 3, 32, 32) for _ in range(2)]
        stepper.zero_grad()
        outcome = method({"views": [images + part for part in noise]}, step)
        outcome.loss.backward()
        stepper.step()
        losses.append(outcome.loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert outcome.features.shape == (16, 16)


def test_lars_leaves_out_biases_and_batch_norms():
    method = build(optimizer="lars")
    stepper = method.optimizer()
    assert isinstance(stepper, LARS) and stepper.dialect == "simclr"
    adapted, plain = sorted(stepper.param_groups, key=lambda group: not group["adapt"])
    assert (adapted["wd_scale"], plain["wd_scale"]) == (1.0, 0.0)
    assert all(weight.ndim > 1 for weight in adapted["params"])
    assert all(weight.ndim == 1 for weight in plain["params"])
    assert len(adapted["params"]) + len(plain["params"]) == len(list(method.parameters()))


def test_learning_rate_scales_and_warms_up():
    linear, root = build(base_lr=0.3, warmup_epochs=2), build(base_lr=0.3, lr_scaling="sqrt", warmup_epochs=2)
    assert linear.schedule(0)["lr"] == 0
    assert linear.schedule(20)["lr"] == pytest.approx(0.3 * 8 / 256)
    assert root.schedule(20)["lr"] == pytest.approx(0.3 * 8**0.5)
    assert linear.schedule(199)["lr"] < 1e-4


def test_encoder_shares_the_weights_and_drops_the_head():
    method = build()
    encoder = method.encoder()
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert encoder(frames).shape == (2, 64) == (2, encoder.embedding_dim)
    first = next(method.backbone.parameters())
    assert next(encoder.backbone.parameters()).data_ptr() == first.data_ptr()
    assert not any("Global" in type(module).__name__ for module in encoder.modules())
    method.eval()
    images = frames.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(encoder(frames), method.backbone(images))


def test_heads():
    assert ProjectionHead(8, 4, 0)(torch.ones(2, 8)).shape == (2, 8)
    assert ProjectionHead(8, 4, 1)(torch.rand(2, 8)).shape == (2, 4)
    head = ProjectionHead(8, 4, 3)
    assert [hidden.shape[1] for hidden in head.hiddens(torch.rand(2, 8))] == [8, 8, 8, 4]
    assert head.layers[0].norm.bias is not None and head.layers[2].norm.bias is None
    assert head.layers[0].dense.bias is None
    with pytest.raises(ValueError, match="-1 layers"):
        ProjectionHead(8, 4, -1)
