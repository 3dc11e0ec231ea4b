"""The networks of Diffusion Reward with the kit's weights, and its tolerances."""

from __future__ import annotations

import numpy as np
import torch
from weights import generate_weights

from v2r_core.nn.denoiser import DenoiserConfig, DiffusionModel
from v2r_core.nn.taming_vqgan import TamingConfig, TamingVQGAN

STEPS, CODES, GRID, LATENT = 100, 32, 8, 16


def tensor(stored, key):
    return torch.from_numpy(stored[key])


def fill(module, stored, prefix):
    """Gives a module the kit's weights; buffers that the kit does not generate stay."""
    state = module.state_dict()
    kept = ("mask", "log_", "Lt_")
    shapes = {prefix + key: value.shape for key, value in state.items() if not key.rpartition(".")[2].startswith(kept)}
    drawn = generate_weights(shapes, int(stored["salt"]))
    state |= {key.removeprefix(prefix): torch.from_numpy(value) for key, value in drawn.items()}
    module.load_state_dict(state)
    return module.eval()


def assert_relative(found, expected, tolerance):
    """The kit's "rel": |a - b| <= tol * max(1, |b|)."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    assert found.shape == np.shape(expected)
    error = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= tolerance, f"largest relative error {error.max():.2e}"


def make_vqgan(stored):
    config = TamingConfig(channels=(32, 32, 64, 64), latent=LATENT, codes=CODES)
    return fill(TamingVQGAN(config), stored, "vqgan.")


def make_model(stored):
    config = DenoiserConfig(codes=CODES, grid=GRID, width=32, depth=2, heads=4, condition_width=24, steps=STEPS)
    return fill(DiffusionModel(config), stored, "transformer.")


def latents_of(stored, vqgan):
    images = tensor(stored, "vq/video").permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        return vqgan.encode(images)


def uniforms(levels):
    return ((levels.astype(np.float64) + 0.5) / 65536).astype(np.float32)
