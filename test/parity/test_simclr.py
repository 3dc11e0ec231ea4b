"""Our SimCLR against the released code (section 3 of the parity kit).

Its LARS and schedules are tested in `test_lars.py` and `test_schedules.py`, its blur where the other views are.
"""

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state

from v2r_core.methods.simclr import nt_xent, nt_xent_logits
from v2r_core.nn.projection import ProjectionHead
from v2r_core.nn.resnet import SimCLRResNet, max_pool_same, simclr_from_tensorflow

NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def assert_close(found, expected, scale=1e-5):
    found = found.detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize(("check", "normalise"), [("nt_xent", True), ("nt_xent_unnormalised", False)])
def test_loss(parity_file, check, normalise):
    stored = parity_file("simclr.npz")
    temperature = float(stored[f"{check}/T"])
    z1, z2 = (torch.tensor(stored[f"{check}/{name}"], requires_grad=True) for name in ("z1", "z2"))
    loss = nt_xent(z1, z2, temperature, normalise)
    loss.backward()
    assert_close(loss, stored[f"{check}/expected_loss"])
    assert_close(z1.grad, stored[f"{check}/expected_grad_z1"])
    assert_close(z2.grad, stored[f"{check}/expected_grad_z2"])
    views = torch.cat([z1, z2])
    logits, _ = nt_xent_logits(torch.nn.functional.normalize(views, dim=1) if normalise else views, temperature)
    assert_close(logits[: len(z1), len(z1) :], stored[f"{check}/expected_logits_ab"])


def test_loss_of_two_replicas(parity_file):
    """In one process; `test_distributed_contrastive.py` has two."""
    stored = parity_file("simclr.npz")
    z = torch.tensor(stored["nt_xent_two_replicas/z"], requires_grad=True)
    views = torch.nn.functional.normalize(z, dim=-1)
    temperature = float(stored["nt_xent_two_replicas/T"])
    losses = []
    for place, own in enumerate(views):
        logits, labels = nt_xent_logits(own, temperature, joined=views.flatten(0, 1), place=place)
        losses.append(2 * torch.nn.functional.cross_entropy(logits, labels))
    torch.stack(losses).sum().backward()
    assert_close(torch.stack(losses), stored["nt_xent_two_replicas/expected_loss"])
    assert_close(z.grad, stored["nt_xent_two_replicas/expected_grad"])


@pytest.mark.parametrize("check", ["max_pool_same_8x9", "max_pool_same_9x10"])
def test_max_pool(parity_file, check):
    stored = parity_file("simclr.npz")
    found = max_pool_same(
        torch.tensor(stored[f"{check}/x"]), int(stored[f"{check}/kernel"]), int(stored[f"{check}/stride"])
    )
    np.testing.assert_array_equal(found.numpy(), stored[f"{check}/expected"])


def head_state(stored, prefix):
    """TensorFlow's arrays under our names: `layer<j>/dense/kernel` (in, out), `layer<j>/batch_norm/gamma`, ..."""
    state = {}
    for key in stored.files:
        if key.startswith(prefix):
            layer, part, name = key.removeprefix(prefix).split("/")
            number = layer.removeprefix("layer")
            value = torch.tensor(stored[key])
            if part == "dense":
                state[f"layers.{number}.dense.weight"] = value.T
            else:
                state[f"layers.{number}.norm.{NAMES[name]}"] = value
    return state


@pytest.mark.parametrize("layers", [3, 2])
def test_projection_head(parity_file, layers):
    stored = parity_file("simclr.npz")
    check = f"projection_head_{layers}_layers"
    x = torch.tensor(stored[f"{check}/x"], requires_grad=True)
    head = ProjectionHead(x.shape[1], stored[f"{check}/expected_output"].shape[1], layers)
    state = head_state(stored, f"{check}/weights/")
    state |= {key: value for key, value in head.state_dict().items() if key.endswith("num_batches_tracked")}
    head.load_state_dict(state)
    for layer in head.layers:
        layer.norm.eps = float(stored[f"{check}/bn_eps"])
        layer.norm.momentum = 1 - float(stored[f"{check}/bn_momentum_tf"])

    hiddens = head.hiddens(x)
    (hiddens[-1].square() * torch.tensor(stored[f"{check}/grad_column_weights"])).sum().backward()

    assert_close(hiddens[-1], stored[f"{check}/expected_output"], 1e-4)
    assert_close(hiddens[1], stored[f"{check}/expected_fine_tune_hidden"], 1e-4)
    assert_close(x.grad, stored[f"{check}/expected_grad_x"], 2e-2)
    after = head.state_dict()
    for key, value in head_state(stored, f"{check}/expected_after/").items():
        assert_close(after[key], value.numpy(), 1e-4)
    assert_close(head.eval()(x), stored[f"{check}/expected_eval_output"], 1e-4)


def test_resnet50(parity_file, checkpoint_keys):
    stored = parity_file("simclr.npz")
    seed = int(stored["checkpoint_resnet50_1x/fill_seed"])
    variables = fill_state(checkpoint_keys["simclr_resnet50_1x_sk0"]["keys"], seed, kernels_in_last=True)
    network = SimCLRResNet(50).eval()
    network.load_state_dict(simclr_from_tensorflow(variables, "kit"))
    images = fill_input(seed, (2, 64, 64, 3), kind="uniform").permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = network(images).numpy()
    expected = stored["checkpoint_resnet50_1x/expected_features"]
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)
