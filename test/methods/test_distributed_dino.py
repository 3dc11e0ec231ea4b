"""DINO and DINOv2 on two real processes (gloo, CPU) against one process with the joined batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_dino_method import build as build_dino
from test_dinov2_method import batch as batch_of
from test_dinov2_method import build as build_dinov2
from torch.nn.parallel import DistributedDataParallel

from v2r_core.nn.dino_losses import dino_loss, moved_center, sinkhorn_knopp

RANKS = 2
COUNTS = {"crops": [6, 6], "masked patches": [5, 9], "none masked": [0, 8]}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes computes; they are started once, which takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    results = {"loss": dino_on_a_rank(rank)}
    results |= {name: teacher_on_a_rank(rank, counts) for name, counts in COUNTS.items()}
    results |= {name: method_on_a_rank(rank, name) for name in ("dino", "dinov2")}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def logits(rows, seed=0):
    """Like cosines, with prototypes of different popularity."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(rows, 24, generator=generator) + torch.linspace(0, 0.5, 24)


def joined_loss():
    return logits(30, seed=1), logits(12, seed=2), logits(1, seed=3)


def dino_on_a_rank(rank):
    student, teacher, center = joined_loss()
    # Crop by crop: each process has half of the images of every crop.
    mine = [part.unflatten(0, (-1, 6))[:, 3 * rank : 3 * rank + 3].flatten(0, 1) for part in (student, teacher)]
    loss, moved = dino_loss(*mine, center, 0.1, 0.05, 0.9)
    return {"loss": loss, "center": moved}


def test_dino(found):
    loss, moved = dino_loss(*joined_loss(), 0.1, 0.05, 0.9)
    for result in found:
        torch.testing.assert_close(result["loss"]["center"], moved)
    torch.testing.assert_close(sum(result["loss"]["loss"] for result in found) / RANKS, loss)


def teacher_on_a_rank(rank, counts):
    mine = logits(sum(counts)).split(counts)[rank]
    return {"assigned": sinkhorn_knopp(mine, 0.05), "center": moved_center(torch.ones(1, 24), mine, 0.9)}


@pytest.mark.parametrize("name", COUNTS)
def test_sinkhorn_and_centers(found, name):
    rows = logits(sum(COUNTS[name]))
    assigned = torch.cat([result[name]["assigned"] for result in found])
    torch.testing.assert_close(assigned, sinkhorn_knopp(rows, 0.05), rtol=1e-5, atol=1e-6)
    for result in found:
        torch.testing.assert_close(result[name]["center"], moved_center(torch.ones(1, 24), rows, 0.9))


def method_on_a_rank(rank, name):
    method = build_dino() if name == "dino" else build_dinov2(centering="center", separate_heads=True)
    given = batch_of(method, seed=rank) if name == "dinov2" else _half(method, rank)
    if name == "dinov2" and rank == 0:
        nothing = torch.zeros(0)
        given |= {"mask": torch.zeros_like(given["mask"]), "mask_indices": nothing.long(), "mask_weights": nothing}
    wrapped = DistributedDataParallel(method, broadcast_buffers=False)
    outcome = wrapped(given, 0)
    outcome.loss.backward()
    method.adjust_gradients(0)
    weight = method.student.backbone.blocks[0].attn.qkv.weight
    centers = {key: value for key, value in method.named_buffers() if key.endswith("center")}
    return {"loss": outcome.loss.detach(), "gradient": weight.grad, **centers}


def _joined(method):
    generator = torch.Generator().manual_seed(0)
    sizes = [view.size for view in method.data(method.recipe).views]
    return [torch.randn(8, 3, size, size, generator=generator) for size in sizes]


def _half(method, rank):
    return {"views": [view[4 * rank : 4 * rank + 4] for view in _joined(method)]}


def test_dino_as_a_whole(found):
    method = build_dino()
    outcome = method({"views": _joined(method)}, 0)
    outcome.loss.backward()
    method.adjust_gradients(0)
    for result in (every["dino"] for every in found):
        torch.testing.assert_close(result["center"], method.center)
        gradient = method.student.backbone.blocks[0].attn.qkv.weight.grad
        torch.testing.assert_close(result["gradient"], gradient, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(sum(every["dino"]["loss"] for every in found) / RANKS, outcome.loss.detach())


def test_dinov2_agrees_between_processes_where_one_has_no_mask(found):
    first, second = (every["dinov2"] for every in found)
    for key in ("gradient", "dino_center", "ibot_center"):
        assert torch.equal(first[key], second[key])
    assert first["ibot_center"].abs().sum() > 0
