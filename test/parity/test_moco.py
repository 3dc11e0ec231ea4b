"""Our MoCo v1 and v2 against the released code (section 1 of the parity kit)."""

import dataclasses

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state
from torch import nn

from v2r_core.methods.method import Horizon
from v2r_core.methods.moco import Moco, MocoRecipe, moco_logits, moco_loss, shuffled_keys
from v2r_core.nn.batch_norm import SplitBatchNorm
from v2r_core.nn.ema import copy_for_ema
from v2r_core.nn.queue import enqueue


def assert_close(found, expected, scale=1e-4):
    found = found.detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * np.abs(expected).max() + 1e-6)


def assert_norm_close(found, expected, limit=1e-3):
    found = found.detach().numpy()
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)


def below(stored, prefix):
    return {key.removeprefix(prefix): torch.tensor(stored[key]) for key in stored.files if key.startswith(prefix)}


class TinyEncoder(nn.Module):
    def __init__(self, state, splits=1):
        super().__init__()
        out, width = state["body.weight"].shape
        self.body = nn.Linear(width, out)
        self.bn = SplitBatchNorm(out, splits)
        self.fc = nn.Sequential(nn.Linear(out, out), nn.ReLU(), nn.Linear(out, len(state["fc.2.weight"])))
        self.load_state_dict(state)

    def forward(self, rows):
        hidden = self.bn(self.body(rows)[..., None, None])[..., 0, 0]
        return self.fc(torch.relu(hidden))


def tiny_moco(stored, check, splits=1):
    """The method with the kit's networks and queue in place of its own."""
    queue = torch.tensor(stored[f"{check}/queue"])
    recipe = dataclasses.replace(
        MocoRecipe.tiny(),
        dim=queue.shape[0],
        queue=queue.shape[1],
        momentum=float(stored[f"{check}/m"]),
        temperature=float(stored[f"{check}/T"]),
        bn_splits=splits,
    )
    batch = stored[f"{check}/x_q"].reshape(-1, stored[f"{check}/x_q"].shape[-1]).shape[0]
    moco = Moco(recipe, Horizon(1, 1, batch, batch))
    moco.encoder_q = TinyEncoder(below(stored, f"{check}/weights_q/"), splits)
    moco.encoder_k = copy_for_ema(TinyEncoder(below(stored, f"{check}/weights_k/"), splits))
    moco.queue.copy_(queue)
    moco.queue_ptr.fill_(int(stored[f"{check}/queue_ptr"]))
    return moco


def test_one_step(parity_file):
    stored = parity_file("moco.npz")
    moco = tiny_moco(stored, "forward")
    outcome = moco.loss({"views": [torch.tensor(stored["forward/x_q"]), torch.tensor(stored["forward/x_k"])]}, 0)
    outcome.loss.backward()
    assert_close(outcome.loss, stored["forward/expected_loss"])
    assert_close(moco.queue, stored["forward/expected_queue"])
    assert int(moco.queue_ptr) == int(stored["forward/expected_queue_ptr"])
    for side, network in (("q", moco.encoder_q), ("k", moco.encoder_k)):
        expected = below(stored, f"forward/expected_weights_{side}/")
        assert expected.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            assert_close(value, expected[key].numpy())
    gradients = below(stored, "forward/expected_grad/")
    parameters = dict(moco.encoder_q.named_parameters())
    assert gradients.keys() == parameters.keys()
    for key, gradient in gradients.items():
        assert_close(parameters[key].grad, gradient.numpy())


def test_logits_of_one_step(parity_file):
    stored = parity_file("moco.npz")
    moco = tiny_moco(stored, "forward")
    q = nn.functional.normalize(moco.encoder_q(torch.tensor(stored["forward/x_q"])), dim=1)
    moco._average(moco.encoder_k, moco.encoder_q, 0)
    k = shuffled_keys(moco.encoder_k, torch.tensor(stored["forward/x_k"]), None)
    logits = moco_logits(q, k, moco.queue, float(stored["forward/T"]))
    assert_close(logits, stored["forward/expected_logits"])
    labels = torch.tensor(stored["forward/expected_labels"])
    assert_close(moco_loss(logits), nn.functional.cross_entropy(logits, labels).detach().numpy())


def test_shuffled_batch_norm_in_parts_of_one_batch(parity_file):
    """Two parts of one batch are what two ranks are; `test_distributed_contrastive.py` has the two ranks."""
    stored = parity_file("moco.npz")
    ranks, rows = stored["shuffle_bn/x_q"].shape[:2]
    temperature = float(stored["shuffle_bn/T"])
    moco = tiny_moco(stored, "shuffle_bn", splits=ranks)
    x_q, x_k = (torch.tensor(stored[f"shuffle_bn/{name}"]).flatten(0, 1) for name in ("x_q", "x_k"))
    q = nn.functional.normalize(moco.encoder_q(x_q), dim=1)
    moco._average(moco.encoder_k, moco.encoder_q, 0)
    keys = shuffled_keys(moco.encoder_k, x_k, torch.tensor(stored["shuffle_bn/permutation"]))
    logits = moco_logits(q, keys, moco.queue, temperature)
    enqueue(moco.queue, moco.queue_ptr, keys)
    assert_close(logits.reshape(ranks, rows, -1), stored["shuffle_bn/expected_logits"])
    assert_close(moco.queue, stored["shuffle_bn/expected_queue"])
    assert int(moco.queue_ptr) == int(stored["shuffle_bn/expected_queue_ptr"])
    # The parts' running statistics are averaged.
    assert_close(moco.encoder_k.bn.running_mean, stored["shuffle_bn/expected_key_bn_running_mean"].mean(axis=0))
    assert_close(moco.encoder_k.bn.running_var, stored["shuffle_bn/expected_key_bn_running_var"].mean(axis=0))
    weight = moco.encoder_q.body.weight
    for rank, part in enumerate(logits.chunk(ranks)):
        loss = moco_loss(part)
        assert_close(loss, stored["shuffle_bn/expected_loss"][rank])
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert_close(gradient, stored["shuffle_bn/expected_grad_body_weight"][rank])


@pytest.fixture(scope="module")
def full_size():
    return Moco(MocoRecipe.paper("v2"), Horizon(1, 1, 256, 256))


def test_resnet50_v2(parity_file, full_size):
    stored = parity_file("moco.npz")
    seed = int(stored["checkpoint_resnet50_v2/fill_seed"])
    network = full_size.encoder_q
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(fill_state(shapes, seed, "module.encoder_q."))
    images = fill_input(seed, (2, 3, 64, 64))
    with torch.inference_mode():
        pooled = full_size.encoder().backbone(images)
        embedding = network.eval()(images)
    assert_norm_close(pooled, stored["checkpoint_resnet50_v2/expected_pooled"])
    assert_norm_close(embedding, stored["checkpoint_resnet50_v2/expected_embedding"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_state_has_the_released_names(checkpoint_keys, full_size, version):
    moco = full_size if version == "v2" else Moco(MocoRecipe.paper("v1"), Horizon(1, 1, 256, 256))
    expected = {key: tuple(shape) for key, shape in checkpoint_keys[f"moco_{version}_resnet50"]["keys"].items()}
    assert {f"module.{key}": tuple(value.shape) for key, value in moco.state_dict().items()} == expected
