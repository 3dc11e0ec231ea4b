"""The generator of reference weights against the values stored beside the reference numbers."""

import zlib

import numpy as np
import pytest
from weights import generate_weights


def test_weights_equal_the_stored_heads(parity_file):
    stored = parity_file("vip.npz")
    shapes = {
        int(crc): [n for n in shape if n >= 0]
        for crc, shape in zip(stored["keys/resnet18_8/crc32"], stored["keys/resnet18_8/shape"], strict=True)
    }
    checks = [name for name in stored.files if name.startswith("weights_check/")]
    assert checks
    for name in checks:
        key = name.removeprefix("weights_check/")
        weight = generate_weights({key: shapes[zlib.crc32(key.encode())]}, stored["salt"])[key]
        np.testing.assert_array_equal(weight.ravel()[: stored[name].size], stored[name])


@pytest.mark.parametrize("key", ["gpt/Dense_0/kernel", "gpt/LayerNorm_0/scale", "gpt/Dense_0/bias"])
def test_flax_scale_follows_the_last_component(key):
    weight = generate_weights({key: (400, 25)}, salt=0, style="flax")[key]
    centre, spread = {"kernel": (0, 1 / 20), "scale": (1, 0.1), "bias": (0, 0.1)}[key.rsplit("/", 1)[-1]]
    assert weight.dtype == np.float32
    assert weight.mean() == pytest.approx(centre, abs=0.01)
    assert weight.std() == pytest.approx(spread, rel=0.05)
