"""VIP's encoder against the released one: pre-processing, normalisation, network, checkpoint format."""

import zlib

import numpy as np
import pytest
import torch
from torch import nn
from weights import generate_weights

from v2r_core.encoders import checkpoints
from v2r_core.encoders.zoo import create_encoder
from v2r_core.video.resize import resize_frame_unit

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("vip.npz")


@pytest.fixture(scope="module")
def encoder(stored, tmp_path_factory):
    """ResNet-18 with the kit's weights, through a file in the released format and our own loader."""
    outputs = stored["enc/expected_224_u8"].shape[1]
    network = checkpoints.resnet_backbone("resnet18", outputs)
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    weights = generate_weights(shapes, int(stored["salt"]))
    file = tmp_path_factory.mktemp("vip") / "model.pt"
    state = {f"module.convnet.{key}": torch.from_numpy(value) for key, value in weights.items()}
    torch.save({"vip": state}, file)
    return create_encoder("vip:resnet18", file)


def assert_close(ours, expected):
    """The kit's "rel": |a - b| <= tol * max(1, |b|)."""
    error = np.abs(ours - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= RELATIVE, f"largest relative error {error.max():.2e}"


def embed(encoder, unit):
    with torch.inference_mode():
        return encoder.embed_unit(unit).numpy()


def channels_last(images):
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def prepare(encoder, images):
    return torch.from_numpy(np.stack([resize_frame_unit(i, encoder.preprocess) for i in channels_last(images)]))


def assert_key_list(network, prefix, crc32, shape):
    state = {prefix + key: tensor for key, tensor in network.state_dict().items()}
    assert [zlib.crc32(key.encode()) for key in sorted(state)] == crc32.tolist()
    padded = [[*state[key].shape, *[-1] * (4 - state[key].ndim)] for key in sorted(state)]
    assert padded == shape.tolist()


def test_the_generated_weights_are_the_reference_ones(stored, encoder):
    state = encoder.backbone.state_dict()
    checks = [name for name in stored.files if name.startswith("weights_check/")]
    assert checks
    for name in checks:
        ours = state[name.removeprefix("weights_check/")].flatten()[:6].numpy()
        np.testing.assert_array_equal(ours, stored[name])


def test_uint8_frames_of_the_right_size(stored, encoder):
    frames = torch.from_numpy(channels_last(stored["enc/img_224"]))
    with torch.inference_mode():
        assert_close(encoder(frames).numpy(), stored["enc/expected_224_u8"])


@pytest.mark.parametrize("size", ["224", "240x320", "480x640"])
def test_frames_of_any_size(stored, encoder, size):
    expected = stored["enc/expected_224_u8" if size == "224" else f"enc/expected_{size}_u8"]
    assert_close(embed(encoder, prepare(encoder, stored[f"enc/img_{size}"])), expected)


def test_the_kit_would_notice_a_missing_antialias(stored, encoder):
    ours = embed(encoder, prepare(encoder, stored["enc/img_480x640"]))
    assert np.abs(ours - stored["enc/info_480x640_without_antialias"]).max() > 100 * RELATIVE


def test_images_that_were_scaled_before(stored, encoder):
    images = torch.from_numpy(channels_last(stored["enc/img_224"])) / 255.0
    for compat in (checkpoints.official_unit_range(images), images):
        assert_close(embed(encoder, compat), stored["enc/expected_224_unit"])


def test_the_official_quirk_on_dark_images(stored, encoder):
    dark = torch.from_numpy(channels_last(stored["enc/img_dark_224"])).float()
    expected = stored["enc/expected_dark_224_float"]
    assert_close(embed(encoder, checkpoints.official_unit_range(dark, compat="official")), expected)
    # The documented range, and our own uint8 contract, do not have the quirk, and agree with each other.
    ours = embed(encoder, checkpoints.official_unit_range(dark, compat="paper"))
    with torch.inference_mode():
        assert_close(encoder(dark.to(torch.uint8)).numpy(), ours)
    assert np.abs(ours - expected).max() > 100 * RELATIVE


def test_keys_of_the_small_network(stored, encoder):
    assert_key_list(encoder.backbone, "", stored["keys/resnet18_8/crc32"], stored["keys/resnet18_8/shape"])


def test_the_released_format_is_accepted_exactly(stored, tmp_path):
    crc32, shape = stored["keys/released_resnet50_1024/crc32"], stored["keys/released_resnet50_1024/shape"]
    official = nn.Module()
    official.module = nn.Module()
    official.module.convnet = checkpoints.resnet_backbone("resnet50", 1024)
    assert_key_list(official, "", crc32, shape)
    file = tmp_path / "model.pt"
    torch.save({"vip": official.state_dict()}, file)
    loaded = create_encoder("vip:resnet50", file)
    assert loaded.embedding_dim == 1024
    for key, tensor in official.module.convnet.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[key], tensor), key
