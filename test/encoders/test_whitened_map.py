from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic_video import moving_square

from v2r_core.encoders.encoder import Encoder
from v2r_core.encoders.whitened_map import FeatureMap, whitened_map
from v2r_core.encoders.zoo import create_encoder
from v2r_core.video.resize import Preprocess, resize_frame

SIZE = 64


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return create_encoder("random:efficientnet_lite0", size=SIZE)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    shown = [resize_frame(frame, Preprocess(SIZE)) for frame in moving_square()]
    noisy = [np.clip(frame + rng.normal(0, 20, frame.shape), 0, 255).astype(np.uint8) for frame in shown for _ in "ab"]
    return np.stack(noisy)


def test_components_are_white_and_the_largest_of_the_map(encoder: Encoder, frames: np.ndarray) -> None:
    fitted = whitened_map(encoder, np.array_split(frames, 3), stride=16, dim=8)
    found = fitted(torch.from_numpy(frames)).numpy()
    assert found.shape == (len(frames), 8)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(found.T), np.eye(8), atol=1e-3)
    with torch.inference_mode():
        images = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - encoder.mean) / encoder.std
        maps = FeatureMap(encoder.backbone, 16)(images).numpy()
    centred = maps - maps.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    cosines = np.abs(np.sum(left[:, :8] * found / np.linalg.norm(found, axis=0), axis=0))
    # Components of nearly equal variance may turn in their plane; the first two are far apart here.
    assert values[0] > 1.05 * values[1]
    assert cosines[0] > 0.999


def test_the_map_ends_where_the_stride_says(encoder: Encoder) -> None:
    images = torch.zeros(1, 3, SIZE, SIZE)
    widths = {stride: FeatureMap(encoder.backbone, stride)(images).shape[1] for stride in (8, 16, 32)}
    assert widths == {8: 40 * 8 * 8, 16: 112 * 4 * 4, 32: 320 * 2 * 2}


def test_refusals(encoder: Encoder, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"no map of stride 5; this network has strides \[2, 4, 8, 16, 32\]"):
        FeatureMap(encoder.backbone, 5)
    with pytest.raises(ValueError, match="Linear has no maps"):
        FeatureMap(torch.nn.Linear(2, 2), 16)
    with pytest.raises(ValueError, match="10 frames for 10 components; give more frames"):
        whitened_map(encoder, [frames[:10]], dim=10)
