"""Weights and tolerances that the checks of whole networks share."""

from __future__ import annotations

import numpy as np
import torch

FORMULA, NETWORK, FULL = "formula", "network", "full"


def weights(stored, prefix):
    """Arrays under a prefix, by the key that follows it."""
    return {key.removeprefix(prefix): torch.from_numpy(stored[key]) for key in stored if key.startswith(prefix)}


def tensor(stored, key):
    return torch.from_numpy(stored[key])


def assert_close(found, expected, kind):
    """Tolerances (F), (M) and (C) of the kit's README, section 0; returns the error in units of the tolerance."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == expected.shape
    difference = found.astype(np.float64) - expected
    if kind == FULL:
        error = np.linalg.norm(difference) / np.linalg.norm(expected)
        assert error <= 1e-3
        return error
    allowed = (1e-5 if kind == FORMULA else 1e-4) * np.abs(expected).max() + 1e-6
    worst = np.abs(difference).max()
    assert worst <= allowed, f"largest difference {worst:.3g}, {allowed:.3g} allowed"
    return worst / allowed


def assert_gradients(network, stored, prefix):
    """Gradients of a network's parameters against the arrays under a prefix."""
    parameters = dict(network.named_parameters())
    names = [key.removeprefix(prefix) for key in stored if key.startswith(prefix)]
    assert names
    for name in names:
        assert_close(parameters[name].grad, stored[prefix + name], NETWORK)
