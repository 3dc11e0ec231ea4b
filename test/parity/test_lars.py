"""Our LARS against the released ones (lars checks of sections 2, 3, 4 and 6 of the parity kit)."""

import numpy as np
import pytest
import torch

from v2r_core.nn.lars import LARS

EXCLUDED_BY_SIMCLR = ("bn_gamma", "dense_bias", "head_supervised_kernel")


def trace(stored, check, build):
    """Compares every tensor after each of the three steps; `build` makes the optimizer from named weights."""
    prefix = f"{check}/"
    expected = {
        key.removeprefix(f"{prefix}expected_"): stored[key]
        for key in stored.files
        if key.startswith(f"{prefix}expected_")
    }
    assert expected
    weights = {name: torch.from_numpy(stored[prefix + name]).clone().requires_grad_() for name in expected}
    optimizer = build(weights)
    for step, lr in enumerate(stored[f"{prefix}lr"]):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(stored[f"{prefix}grad_{name}"][step])
        optimizer.step()
        for name, weight in weights.items():
            value = expected[name][step]
            tolerance = 1e-5 * np.abs(expected[name]).max() + 1e-6
            np.testing.assert_allclose(weight.detach().numpy(), value, rtol=0, atol=tolerance, err_msg=f"{name} {step}")


@pytest.mark.parametrize("file", ["mocov3.npz", "dino.npz", "mae.npz"])
def test_learning_rate_outside_the_buffer(parity_file, file):
    stored = parity_file(file)

    def build(weights):
        return LARS(
            list(weights.values()),
            lr=0.0,
            weight_decay=float(stored["lars/weight_decay"]),
            momentum=float(stored["lars/momentum"]),
            trust_coefficient=float(stored["lars/trust_coefficient"]),
        )

    trace(stored, "lars", build)


@pytest.mark.parametrize(("check", "nesterov"), [("lars", False), ("lars_nesterov", True)])
def test_simclr_has_the_learning_rate_inside(parity_file, check, nesterov):
    stored = parity_file("simclr.npz")
    decay = float(stored[f"{check}/weight_decay"])

    def build(weights):
        included = [weight for name, weight in weights.items() if name not in EXCLUDED_BY_SIMCLR]
        excluded = [weights[name] for name in EXCLUDED_BY_SIMCLR]
        return LARS(
            [
                {"params": included, "weight_decay": decay},
                {"params": excluded, "weight_decay": 0.0, "adapt": False},
            ],
            lr=0.0,
            momentum=float(stored[f"{check}/momentum"]),
            trust_coefficient=float(stored[f"{check}/eta"]),
            dialect="simclr",
            nesterov=nesterov,
        )

    trace(stored, check, build)
