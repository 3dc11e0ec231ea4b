"""MoCo and SimCLR on two real processes (gloo, CPU): the kit's numbers, and the single process on the joined batch."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_moco import tiny_moco

from v2r_core.methods import moco as moco_module
from v2r_core.methods.method import Horizon
from v2r_core.methods.moco import Moco, MocoRecipe
from v2r_core.methods.mocov3 import mocov3_loss
from v2r_core.methods.simclr import SimCLR, SimCLRRecipe, nt_xent
from v2r_core.nn.distributed import gather

RANKS = 2


def run_ranks(tmp_path, work, *given):
    """Runs `work(rank, *given)` in two processes and returns what each of them returned."""
    mp.spawn(_rank, (str(tmp_path), work, given), RANKS)
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _rank(rank, folder, work, given):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.save(work(rank, *given), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def assert_close(found, expected, scale=1e-4, least=1e-6):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * np.abs(expected).max() + least)


class Stored(dict):
    """Arrays of a file of the kit, which can go to another process."""

    @property
    def files(self):
        return list(self)


def only(stored, check):
    return Stored({key: stored[key] for key in stored.files if key.startswith(f"{check}/")})


def shuffled_batch_norm(rank, stored):
    method = tiny_moco(stored, "shuffle_bn")
    method._permutation = lambda keys: torch.tensor(stored["shuffle_bn/permutation"])
    seen = []
    plain_loss = moco_module.moco_loss
    moco_module.moco_loss = lambda logits: seen.append(logits.detach()) or plain_loss(logits)
    views = [torch.tensor(stored[f"shuffle_bn/{name}"][rank]) for name in ("x_q", "x_k")]
    loss = method.loss({"views": views}, 0).loss
    loss.backward()
    return {
        "loss": loss.detach(),
        "logits": seen[0],
        "queue": method.queue,
        "queue_ptr": method.queue_ptr,
        "key_bn_running_mean": method.encoder_k.bn.running_mean,
        "key_bn_running_var": method.encoder_k.bn.running_var,
        "grad_body_weight": method.encoder_q.body.weight.grad,
    }


def test_shuffled_batch_norm(parity_file, tmp_path):
    stored = only(parity_file("moco.npz"), "shuffle_bn")
    for rank, found in enumerate(run_ranks(tmp_path, shuffled_batch_norm, stored)):
        assert int(found.pop("queue_ptr")) == int(stored["shuffle_bn/expected_queue_ptr"])
        assert_close(found.pop("queue"), stored["shuffle_bn/expected_queue"])
        for name, value in found.items():
            assert_close(value, stored[f"shuffle_bn/expected_{name}"][rank])


def two_replicas(rank, z, temperature):
    own = torch.tensor(z[rank], requires_grad=True)
    loss = nt_xent(*own.chunk(2), temperature)
    loss.backward()
    return {"loss": loss.detach(), "grad": own.grad}


def test_nt_xent_of_two_replicas(parity_file, tmp_path):
    stored = only(parity_file("simclr.npz"), "nt_xent_two_replicas")
    z, temperature = stored["nt_xent_two_replicas/z"], float(stored["nt_xent_two_replicas/T"])
    for rank, found in enumerate(run_ranks(tmp_path, two_replicas, z, temperature)):
        for name, value in found.items():
            assert_close(value, stored[f"nt_xent_two_replicas/expected_{name}"][rank], 1e-5)


def contrast_two_ranks(rank, q, k, temperature):
    return mocov3_loss(torch.tensor(q[rank]), gather(torch.tensor(k[rank])), temperature, rank * len(q[rank]))


def test_moco_v3_of_two_ranks(parity_file, tmp_path):
    stored = only(parity_file("mocov3.npz"), "contrastive_two_ranks")
    given = (stored[f"contrastive_two_ranks/{name}"] for name in ("q", "k"))
    found = run_ranks(tmp_path, contrast_two_ranks, *given, float(stored["contrastive_two_ranks/T"]))
    assert_close(torch.stack(found), stored["contrastive_two_ranks/expected_loss"], 1e-5)


def build(name, batch_size):
    torch.manual_seed(0)
    horizon = Horizon(10, 10, batch_size, 10 * batch_size)
    small = {"size": 32, "batch_size": batch_size}
    if name == "simclr":
        return SimCLR(dataclasses.replace(SimCLRRecipe.tiny(), **small, width=0.125, head_dim=16), horizon)
    small |= {"dim": 16, "hidden": 32, "momentum": 0.9}
    if name == "moco":
        return Moco(dataclasses.replace(MocoRecipe.tiny(), **small, width=0.125, queue=32), horizon)
    return Moco(dataclasses.replace(MocoRecipe.tiny("v3"), **small, patch=16, architecture="vit-mini"), horizon)


def views_of(step, rank=None, rows=4):
    """Two views of two ranks' examples, or of one rank's."""
    generator = torch.Generator().manual_seed(step)
    views = torch.rand(2, RANKS * rows, 3, 32, 32, generator=generator)
    return list(views if rank is None else views[:, rank * rows :][:, :rows])


def train(name, rank=None, steps=2):
    """A few steps of SGD with gradients averaged over processes; what a process knows in the end."""
    # In double precision, since a ReLU may turn a rounding error into another gradient.
    method = build(name, 8).double()
    method._permutation = lambda keys: torch.tensor([3, 6, 1, 4, 7, 0, 2, 5])
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = method({"views": [view.double() for view in views_of(step, rank)]}, step).loss
        loss.backward()
        mean = loss.detach().clone()
        if rank is not None:
            for tensor in (mean, *(weight.grad for weight in trained)):
                dist.all_reduce(tensor)
                tensor.div_(RANKS)
        optimizer.step()
        losses.append(mean)
    gradients = {f"grad {key}": value.grad for key, value in method.named_parameters() if value.requires_grad}
    return {"losses": torch.stack(losses)} | gradients | method.state_dict()


def train_rank(rank, name):
    return train(name, rank)


@pytest.mark.parametrize("name", ["simclr", "moco", "moco-v3"])
def test_two_processes_do_what_one_does_with_the_joined_batch(tmp_path, name):
    first, second = run_ranks(tmp_path, train_rank, name)
    alone = train(name)
    for key, expected in alone.items():
        if not (name == "moco" and "running_" in key):
            # Each process has batch norms of its own in MoCo; nothing else differs.
            assert torch.equal(first[key], second[key]), key
            assert_close(first[key], expected, 1e-7, 1e-10)
    if name == "moco":
        for key in (key for key in alone if "running_" in key):
            assert_close((first[key] + second[key]) / 2, alone[key], 1e-7, 1e-10)


def draw_order(rank):
    torch.manual_seed(rank)
    method = build("moco", 8)
    torch.manual_seed(rank)
    orders = [method._permutation(torch.zeros(4, 3)) for _ in range(3)]
    method.loss({"views": views_of(0, rank)}, 0)
    return {"orders": torch.stack(orders), "queue": method.queue}


def test_both_processes_draw_the_same_order_and_have_the_same_queue(tmp_path):
    first, second = run_ranks(tmp_path, draw_order)
    assert torch.equal(first["orders"], second["orders"])
    assert torch.equal(first["queue"], second["queue"])
    assert first["orders"].sort(dim=1).values.tolist() == [list(range(8))] * 3
    assert not torch.equal(first["orders"][0], first["orders"][1])
