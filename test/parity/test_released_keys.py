"""Every released format loads strictly: the authors' key lists, filled with random weights, through our own loader."""

import argparse
import math

import numpy as np
import pytest
import torch

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.encoders.released import identify_released, load_released

FAMILIES = {
    "dino_vit_small16": "dino",
    "dino_vit_small16_full_teacher": "dino",
    "dinov2_vits14": "dinov2",
    "dinov2_vits14_reg4": "dinov2",
    "ijepa_vit_huge14_encoder": "ijepa",
    "mae_vit_base16_encoder": "mae",
    "mae_vit_base16_full": "mae",
    "moco_v1_resnet50": "moco",
    "moco_v2_resnet50": "moco",
    "mocov3_resnet50": "mocov3",
    "mocov3_vit_small": "mocov3",
    "simclr_resnet50_1x_sk0": "simclr",
    "vjepa2_vit_large_encoder": "vjepa2",
    "vjepa_vit_large16_encoder": "vjepa",
}
PREDICTORS = ("ijepa_vit_huge14_predictor", "vjepa2_vit_large_predictor", "vjepa_vit_large16_predictor")
SMALLEST = (
    "dino_vit_small16",
    "dino_vit_small16_full_teacher",
    "dinov2_vits14_reg4",
    "moco_v2_resnet50",
    "mocov3_vit_small",
)


def random_state(listed, name, seed=0):
    """Tensors of the listed shapes; fixed tables get the one row that tells them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = listed[name]["keys"]
    # Each tensor is another piece of one long row of random numbers, so that a file of a huge network stays small.
    longest = max(math.prod(shape) for shape in shapes.values())
    row = torch.randn(longest + 10_000, generator=generator) * 0.02
    state = {}
    for number, (key, shape) in enumerate(shapes.items()):
        start = 7 * number
        state[key] = row[start : start + math.prod(shape)].reshape(shape)
        if key.endswith("pos_embed") and name.startswith("vjepa_"):
            state[key] = state[key].clone()
            state[key][0, 0] = (torch.arange(shape[-1]) % 2).float()
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
    return state


def write(listed, name, folder, state):
    """A file as the authors wrote it, with what lies beside the weights."""
    entry = listed[name]["entry"].split(" ")[0]
    if name.startswith("simclr"):
        file = folder / "simclr.npz"
        np.savez(file, **{key: value.numpy() for key, value in state.items()})
        return file
    file = folder / "released.pth"
    if not entry:
        torch.save(state, file)
        return file
    beside = {key.split(" ")[0]: {} for key in listed[name]["top_level"]}
    beside |= {"epoch": 3, "args": argparse.Namespace(lr=0.1)} if "args" in beside else {}
    torch.save({**beside, entry: state}, file)
    return file


def test_every_encoder_of_the_kit_is_covered(checkpoint_keys):
    assert set(FAMILIES) | set(PREDICTORS) == set(checkpoint_keys)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_is_used(checkpoint_keys, name, tmp_path):
    state = random_state(checkpoint_keys, name)
    file = write(checkpoint_keys, name, tmp_path, state)
    assert identify_released(file) == FAMILIES[name]
    encoder = load_released(file)
    loaded = encoder.backbone.state_dict()
    if name.startswith(("vjepa", "simclr")):
        assert sum(value.numel() for value in loaded.values()) > 1e7
    else:
        # Every tensor of ours is one of theirs, untouched.
        theirs = {key.rpartition("module.")[2]: value for key, value in state.items()}
        for key, value in loaded.items():
            found = [other for their, other in theirs.items() if their == key or their.endswith(f"_q.{key}")]
            found += [theirs[f"{part}.{key}"] for part in ("base_encoder", "backbone") if f"{part}.{key}" in theirs]
            assert any(torch.equal(value, other) for other in found), key


@pytest.mark.parametrize("name", SMALLEST)
def test_missing_and_surplus_keys_are_named(checkpoint_keys, name, tmp_path):
    state = random_state(checkpoint_keys, name)
    wanted = {"moco_v2_resnet50": "encoder_q.layer1.0.bn1.bias", "mocov3_vit_small": "base_encoder.norm.bias"}
    victim = next(key for key in state if key.endswith(wanted.get(name, "norm1.bias")))
    del state[victim]
    file = write(checkpoint_keys, name, tmp_path, state)
    with pytest.raises(CheckpointError, match=r"missing .*bias"):
        load_released(file)
    state = random_state(checkpoint_keys, name)
    state[victim.removesuffix("bias") + "surplus"] = torch.zeros(1)
    file = write(checkpoint_keys, name, tmp_path, state)
    with pytest.raises(CheckpointError, match="surplus"):
        load_released(file)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_is_no_encoder(checkpoint_keys, name, tmp_path):
    file = tmp_path / "predictor.pth"
    torch.save({"encoder": random_state(checkpoint_keys, name)}, file)
    with pytest.raises(CheckpointError):
        load_released(file)


def test_another_family_than_asked_for(checkpoint_keys, tmp_path):
    file = write(checkpoint_keys, "dino_vit_small16", tmp_path, random_state(checkpoint_keys, "dino_vit_small16"))
    with pytest.raises(CheckpointError, match="mae asked for, but its keys are those of dino"):
        load_released(file, family="mae")


def test_another_size_bakes_the_table(checkpoint_keys, tmp_path):
    file = write(checkpoint_keys, "dino_vit_small16", tmp_path, random_state(checkpoint_keys, "dino_vit_small16"))
    encoder = load_released(file, size=96)
    assert encoder.backbone.pos_embed.shape[1] == 37
    assert encoder(torch.zeros(1, 96, 96, 3, dtype=torch.uint8)).shape == (1, 384)
