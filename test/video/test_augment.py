"""Views: what may stand in them, boxes, and colours held to torchvision's operations sample by sample."""

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from v2r_core.video import photometric
from v2r_core.video.augment import (
    View,
    dino_views,
    dinov2_views,
    ijepa_view,
    mae_view,
    moco_v1_views,
    moco_v2_views,
    moco_v3_views,
    simclr_views,
    vjepa_view,
)
from v2r_core.video.cutting import resized_crop
from v2r_core.video.draws import draw_boxes, draw_look, uniforms_needed
from v2r_core.video.photometric import change_colors, gaussian_blur, render

ALMOST_ONE = 1 - 2**-53
JITTER = (0.4, 0.4, 0.2, 0.1)


@pytest.fixture
def clips():
    """Random colours, smooth and rough, three samples of two frames: float32 (3, 2, 3, 20, 24) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 3, 20, 24, generator=generator)
    x[1] = torch.nn.functional.avg_pool2d(x[1], 5, 1, 2)
    x[2, :, :, :4] = 0.5
    x[2, :, :, 4:6] = torch.tensor([0.9, 0.9, 0.1])[:, None, None]
    return x


def look_of(view, count, seed=0):
    rng = np.random.default_rng(seed)
    return draw_look(view, rng.random((count, uniforms_needed(view))), rng.random())


# ---- what may stand in a view


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 1.1)),
        ("scale", (0.6, 0.5)),
        ("scale", (math.nan, 1.0)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (1.0, math.inf)),
        ("interpolation", "nearest"),
        ("crop", "center"),
        ("flip", 1.1),
        ("flip", math.nan),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("jitter", (0.4, 0.4, -0.1, 0.1)),
        ("jitter", (0.4, 0.4, 0.4)),
        ("jitter_p", -0.1),
        ("jitter_kind", "pil"),
        ("gray", 2.0),
        ("blur", -1.0),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (2.0, 1.0)),
        ("blur_kind", "box"),
        ("solarize", 1.5),
        ("order", "blur_first"),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, math.inf, 0.5)),
        ("std", (0.2, 0.0, 0.2)),
    ],
)
def test_errors_name_the_field_and_its_value(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is ") as error:
        View(**{"size": 32, field: value})
    assert str(value) in str(error.value)


def test_a_view_must_be_larger_than_what_its_blur_mirrors():
    with pytest.raises(ValueError, match=r"size is 4.*mirrors 4 pixels"):
        View(4, blur=0.5, blur_kind="torchvision")


unit = st.floats(0, 1)
intervals = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair)))
views = st.builds(
    View,
    size=st.integers(5, 12),
    scale=intervals,
    ratio=st.tuples(st.floats(0.1, 8), st.floats(0.1, 8)).map(lambda pair: tuple(sorted(pair))),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    crop=st.sampled_from(["torchvision", "tensorflow"]),
    flip=unit,
    jitter=st.none() | st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.floats(0, 0.5)),
    jitter_p=unit,
    jitter_kind=st.sampled_from(["torchvision", "simclr"]),
    gray=unit,
    blur=unit,
    blur_kind=st.sampled_from(["pil", "torchvision", "simclr"]),
    solarize=unit,
    order=st.sampled_from(["jitter_first", "gray_first"]),
)


@given(view=views, height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_any_view_of_any_frame(view, height, width, seed):
    rng = np.random.default_rng(seed)
    frame = torch.from_numpy(rng.integers(0, 256, (height, width, 3), np.uint8))
    uniforms = rng.random((3, uniforms_needed(view)))
    boxes = draw_boxes(view, uniforms, np.full(3, height), np.full(3, width))
    pixels = [resized_crop(frame, boxes.box[row], bool(boxes.flip[row]), view) for row in range(3)]
    view_made = render(torch.stack(pixels)[:, None], draw_look(view, uniforms, rng.random()))
    assert view_made.shape == (3, 3, 1, view.size, view.size)
    assert view_made.dtype == torch.float32
    unit_made = view_made * torch.tensor(view.std)[:, None, None, None] + torch.tensor(view.mean)[:, None, None, None]
    assert -1e-5 <= unit_made.min() <= unit_made.max() <= 1 + 1e-5


# ---- boxes


@given(
    crop=st.sampled_from(["torchvision", "tensorflow"]),
    scale=intervals,
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(lambda pair: tuple(sorted(pair))),
    sides=st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=4),
    fill=st.sampled_from(["random", 0.0, 0.5, ALMOST_ONE]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_boxes_lie_inside_their_frames(crop, scale, ratio, sides, fill, seed):
    view = View(8, crop=crop, scale=scale, ratio=ratio)
    shape = (len(sides), uniforms_needed(view))
    uniforms = np.random.default_rng(seed).random(shape) if fill == "random" else np.full(shape, fill)
    heights, widths = np.array(sides).T
    top, left, height, width = draw_boxes(view, uniforms, heights, widths).box.T
    assert (height >= 1).all() and (width >= 1).all()
    assert (top >= 0).all() and (top + height <= heights).all()
    assert (left >= 0).all() and (left + width <= widths).all()


def test_torchvision_boxes_are_distributed_as_torchvisions():
    view = View(8, scale=(0.2, 1.0))
    count = 4000
    uniforms = np.random.default_rng(0).random((count, uniforms_needed(view)))
    ours = draw_boxes(view, uniforms, np.full(count, 90), np.full(count, 120)).box
    torch.manual_seed(0)
    image = torch.empty(3, 90, 120)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    for column in range(4):
        quantiles = [np.quantile(boxes[:, column], np.linspace(0.05, 0.95, 10)) for boxes in (ours, theirs)]
        assert np.abs(quantiles[0] - quantiles[1]).max() <= 3


def test_a_frame_that_no_try_fits_gives_the_largest_centred_box():
    view = View(8, scale=(1.0, 1.0))
    uniforms = np.random.default_rng(0).random((2, uniforms_needed(view)))
    boxes = draw_boxes(view, uniforms, np.array([30, 300]), np.array([300, 30])).box
    assert boxes.tolist() == [[0, 130, 30, 40], [130, 0, 40, 30]]


def test_tensorflow_boxes_keep_their_limits():
    view = View(8, crop="tensorflow")
    count = 2000
    uniforms = np.random.default_rng(0).random((count, uniforms_needed(view)))
    top, _, height, width = draw_boxes(view, uniforms, np.full(count, 240), np.full(count, 320)).box.T
    area = height * width / (240 * 320)
    assert 0.1 <= area.min() < 0.12, "smaller ones cover too little of the frame"
    assert 0.85 < area.max() <= 1
    assert (width / height).min() > 0.74 and (width / height).max() < 1.35
    # Heights are uniform, so that areas are not: their median lies below the middle of the allowed ones.
    assert 0.25 < np.median(area) < 0.45
    assert (top + height)[height < 240].max() < 240, "TensorFlow's last row starts no box"


def test_tensorflow_takes_the_whole_frame_if_nothing_fits():
    view = View(8, crop="tensorflow", scale=(0.9, 1.0))
    uniforms = np.random.default_rng(0).random((1, uniforms_needed(view)))
    assert draw_boxes(view, uniforms, np.array([50]), np.array([500])).box.tolist() == [[0, 0, 50, 500]]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("flip", [False, True])
def test_resized_crop_is_torchvisions(interpolation, flip):
    frame = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = View(24, interpolation=interpolation)
    ours = resized_crop(frame, (3, 7, 40, 51), flip, view)
    theirs = reference.resized_crop(
        frame.permute(2, 0, 1), 3, 7, 40, 51, [24, 24], InterpolationMode(interpolation), antialias=True
    )
    theirs = reference.horizontal_flip(theirs) if flip else theirs
    assert torch.equal(ours.permute(2, 0, 1), theirs)


# ---- colours, one operation at a time


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (photometric.brightness, reference.adjust_brightness, (0.0, 0.7, 1.6)),
        (photometric.contrast, reference.adjust_contrast, (0.0, 0.7, 1.6)),
        (photometric.saturation, reference.adjust_saturation, (0.0, 0.7, 1.6)),
        (photometric.hue, reference.adjust_hue, (-0.5, 0.07, 0.31)),
    ],
)
def test_operations_are_torchvisions(clips, ours, theirs, values):
    changed = ours(clips.clone(), torch.tensor(values))
    for sample, value in enumerate(values):
        torch.testing.assert_close(changed[sample], theirs(clips[sample], value), atol=1e-5, rtol=0)


def test_hue_and_saturation_in_hsv_are_those_of_the_standard_library(clips):
    factors = (0.3, 1.0, 2.5)
    turned = photometric.hue(clips.clone(), torch.tensor([-0.4, 0.1, 0.25]))
    saturated = photometric.saturation_hsv(clips.clone(), torch.tensor(factors))
    for sample, shift in enumerate((-0.4, 0.1, 0.25)):
        for row, column in ((0, 0), (5, 3), (19, 23)):
            h, s, v = colorsys.rgb_to_hsv(*clips[sample, 0, :, row, column].tolist())
            expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
            assert turned[sample, 0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)
            expected = colorsys.hsv_to_rgb(h, min(s * factors[sample], 1), v)
            assert saturated[sample, 0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_tensorflow_contrast_is_about_each_channels_mean(clips):
    changed = photometric.contrast_by_channel(clips.clone(), torch.tensor([0.5, 1.0, 1.7]))
    for sample, factor in enumerate((0.5, 1.0, 1.7)):
        mean = clips[sample].mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(changed[sample], ((clips[sample] - mean) * factor + mean).clamp(0, 1))


def test_grey_and_solarize_are_torchvisions(clips):
    grey = photometric.to_gray(clips).expand_as(clips)
    torch.testing.assert_close(grey[0], reference.rgb_to_grayscale(clips[0], 3), atol=1e-6, rtol=0)
    assert torch.equal(photometric.solarize(clips), reference.solarize(clips, 128 / 255))
    levels = torch.tensor([127, 128], dtype=torch.float32).div(255).expand(1, 3, 1, 2)
    assert (photometric.solarize(levels) * 255).round()[0, 0, 0].tolist() == [127, 127]


def test_blur_is_torchvisions(clips):
    sigmas = (0.1, 1.3, 2.0)
    blurred = gaussian_blur(clips, torch.tensor(sigmas), 4, "reflect")
    for sample, sigma in enumerate(sigmas):
        expected = reference.gaussian_blur(clips[sample], [9, 9], [sigma, sigma])
        torch.testing.assert_close(blurred[sample], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.6, 1.2, 2.0])
def test_blur_is_near_pillows(sigma):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    image = Image.fromarray(noise).resize((80, 80), Image.Resampling.BICUBIC)
    view = View(80, blur=1.0, blur_sigma=(sigma, sigma), jitter=None)
    pixels = torch.from_numpy(np.array(image))[None, None]
    ours = render(pixels, look_of(replace(view, mean=(0, 0, 0), std=(1, 1, 1)), 1))[0, :, 0].permute(1, 2, 0) * 255
    difference = np.abs(ours.numpy() - np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), np.float32))
    # Pillow's is three box filters, each of which repeats the edges; noise is the worst picture for that.
    assert difference.mean() < 2
    assert difference[6:-6, 6:-6].max() < 8


# ---- colours, all of a view


@pytest.mark.parametrize("order", ["jitter_first", "gray_first"])
def test_whole_chain_is_torchvisions_with_each_samples_own_choices(order):
    view = View(20, jitter=(0.4, 0.4, 0.4, 0.2), gray=0.3, blur=0.5, blur_kind="torchvision", solarize=0.4, order=order)
    count = 24
    x = torch.rand(count, 2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    look = look_of(view, count)
    assert len({tuple(row) for row in look.order.tolist()}) > 8, "the orders differ"
    for chosen in (look.jitter, look.gray, look.sigma > 0, look.solarize):
        assert 0 < chosen.sum() < count
    changed = change_colors(x.clone(), look)
    operations = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    for sample in range(count):
        y = x[sample]

        def grey(y, sample=sample):
            return reference.rgb_to_grayscale(y, 3) if look.gray[sample] else y

        y = grey(y) if order == "gray_first" else y
        for number in look.order[sample] if look.jitter[sample] else ():
            y = operations[number](y, float(look.factors[sample, number]))
        y = y if order == "gray_first" else grey(y)
        if look.sigma[sample] > 0:
            y = reference.gaussian_blur(y, [9, 9], [float(look.sigma[sample])] * 2)
        # A level that rounding puts on the other side of the threshold is inverted by one and not by the other.
        near = (y - photometric.SOLARIZE_FROM).abs() < 1e-5
        y = reference.solarize(y, photometric.SOLARIZE_FROM) if look.solarize[sample] else y
        assert (changed[sample] - y).abs()[~near].max() < 2e-5


def test_render_does_not_depend_on_which_samples_are_rendered_together(monkeypatch):
    view = replace(dino_views(20, 20, 1)[1], gray=0.5, blur=0.5, solarize=0.5)
    pixels = torch.randint(0, 256, (10, 2, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    look = look_of(view, 10)
    together = render(pixels, look)
    monkeypatch.setattr(photometric, "GROUP_PIXELS", 3 * 2 * 20 * 20)
    assert torch.equal(render(pixels, look), together)
    rows = np.array([7, 2])
    assert torch.equal(render(pixels[rows], look.rows(rows)), together[rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("view", [dino_views(32, 32, 1)[1], simclr_views(32)[0]])
def test_a_gpu_renders_the_same(view):
    view = replace(view, gray=0.5, blur=0.5, solarize=0.5)
    pixels = torch.randint(0, 256, (10, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    look = look_of(view, 10)
    ours, theirs = (render(pixels.to(device), look).cpu() for device in ("cpu", "cuda"))
    # A level next to solarisation's threshold, or a hue next to a sector's edge, may fall on its other side.
    assert ((ours - theirs).abs() > 1e-4).float().mean() < 1e-3


def test_all_frames_of_a_clip_look_alike():
    view = View(20, jitter=JITTER, jitter_p=1.0, blur=0.5, gray=0.2, solarize=0.2)
    still = torch.randint(0, 256, (6, 1, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = render(still.expand(-1, 3, -1, -1, -1), look_of(view, 6))
    assert clip.shape == (6, 3, 3, 20, 20)
    assert torch.equal(clip, clip[:, :, :1].expand_as(clip))


def test_normalisation():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = reference.normalize(pixels[0, 0].permute(2, 0, 1).float() / 255, mean, std)
    for view in (View(16, mean=mean, std=std), View(16, mean=mean, std=std, solarize=1e-9)):
        assert view.keeps_colors == (view.solarize == 0)
        torch.testing.assert_close(render(pixels, look_of(view, 1))[0, :, 0], expected, atol=1e-6, rtol=0)


def test_probabilities():
    count = 4000
    view = View(32, jitter=JITTER, jitter_p=0.8, gray=0.2, blur=0.5, solarize=0.1)
    look = look_of(view, count)
    for chosen, p in ((look.jitter, 0.8), (look.gray, 0.2), (look.sigma > 0, 0.5), (look.solarize, 0.1)):
        assert chosen.mean() == pytest.approx(p, abs=0.03)
    for number, strength in enumerate(JITTER[:3]):
        assert look.factors[:, number].min() == pytest.approx(1 - strength, abs=0.01)
        assert look.factors[:, number].max() == pytest.approx(1 + strength, abs=0.01)
    assert np.abs(look.factors[:, 3]).max() == pytest.approx(0.1, abs=0.001)
    assert look.sigma[look.sigma > 0].min() >= 0.1 and look.sigma.max() <= 2
    nothing = look_of(View(32), count)
    assert not (nothing.jitter.any() or nothing.gray.any() or nothing.sigma.any() or nothing.solarize.any())


def test_simclr_has_one_sigma_for_a_batch():
    sigma = look_of(simclr_views(32)[0], 200).sigma
    assert len(np.unique(sigma[sigma > 0])) == 1
    assert (sigma > 0).mean() == pytest.approx(0.5, abs=0.15)
    assert len(np.unique(look_of(moco_v2_views(32)[0], 200).sigma)) > 50


# ---- the papers


def test_presets():
    v1, v2 = moco_v1_views()[0], moco_v2_views()[0]
    assert (v1.order, v1.jitter, v1.jitter_p, v1.blur) == ("gray_first", (0.4,) * 4, 1.0, 0.0)
    assert (v2.order, v2.jitter, v2.jitter_p, v2.blur) == ("jitter_first", (0.4, 0.4, 0.4, 0.1), 0.8, 0.5)
    assert [(view.blur, view.solarize) for view in moco_v3_views(crop_min=0.2)] == [(1.0, 0.0), (0.1, 0.2)]
    assert moco_v3_views(crop_min=0.2)[0].scale == (0.2, 1.0)
    first, _ = simclr_views(32, 0.5, blur=False)
    assert (first.jitter, first.blur, first.mean, first.std) == ((0.4, 0.4, 0.4, 0.1), 0.0, (0, 0, 0), (1, 1, 1))
    assert [view.size for view in dino_views()] == [224] * 2 + [96] * 8
    assert [view.blur for view in dino_views(local_count=1)] == [1.0, 0.1, 0.5]
    assert [view.blur for view in dinov2_views(local_count=1)] == [0.0, 0.9, 0.5]
    assert [view.blur for view in dinov2_views(local_count=1, blur="published")] == [1.0, 0.1, 0.5]
    assert {view.blur_kind for view in dinov2_views()} == {"torchvision"}
    assert mae_view()[0].keeps_colors and ijepa_view()[0].flip == 0 and vjepa_view()[0].ratio == (0.75, 1.35)
    with pytest.raises(ValueError, match=r"blur is 'both'"):
        dinov2_views(blur="both")
