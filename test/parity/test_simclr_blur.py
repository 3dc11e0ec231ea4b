"""SimCLR's blur against the numbers of the released code: checks gaussian_blur and batch_blur of simclr.npz."""

import numpy as np
import torch

from v2r_core.video.augment import View
from v2r_core.video.draws import Look
from v2r_core.video.photometric import change_colors, gaussian_blur


def assert_close(actual, expected):
    """Tolerance (F) of the kit."""
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-6


def test_gaussian_blur(parity_file):
    file = parity_file("simclr.npz")
    image = torch.from_numpy(file["gaussian_blur/image"])[None]
    sigma = torch.from_numpy(np.atleast_1d(file["gaussian_blur/sigma"]))
    names = [name for name in file.files if name.startswith("gaussian_blur/expected")]
    assert len(names) == 4
    for name in names:
        kernel = int("".join(filter(str.isdigit, name.rpartition("/")[2])))
        assert_close(gaussian_blur(image, sigma, kernel // 2, "zeros")[0].numpy(), file[name])


def test_batch_blur(parity_file):
    file = parity_file("simclr.npz")
    data = {name.rpartition("/")[2]: file[name] for name in file.files if name.startswith("batch_blur/")}
    view = View(int(data["height"]), blur=float(data["probability"]), blur_kind="simclr")
    images = data["images"]
    count = images.shape[1]
    none = np.zeros(count, bool)
    for images_of_view, sigma, selector, expected in zip(
        images, data["sigma"], data["selector_uniform"], data["expected"], strict=True
    ):
        chosen = np.where(selector < view.blur, sigma, 0).astype(np.float32)
        look = Look(view, none, np.ones((count, 4), np.float32), np.tile(np.arange(4), (count, 1)), none, chosen, none)
        blurred = change_colors(torch.from_numpy(images_of_view.copy())[:, None], look)[:, 0]
        assert_close(blurred.numpy(), expected)
