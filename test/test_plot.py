"""Pictures of scored videos: they show what there is and survive what there is not."""

import numpy as np
import pytest
from PIL import Image

from v2r_core.plot import Clip, draw_comparison, draw_curve, draw_subgoals
from v2r_core.rewards.reward import RewardCurve, RewardSample
from v2r_core.rewards.uvd import Decomposition

GREY, GREEN, BLUE, VERMILION = (228, 228, 228), (0, 158, 115), (0, 114, 178), (213, 94, 0)


def frame(index):
    image = np.full((48, 64, 3), 200, np.uint8)
    image[:, : index + 1] = (250, 0, 250)
    return image


def curve(count=40, progress=True, strange=(), stages=1):
    samples = []
    for i in range(count):
        done = i / max(count - 1, 1)
        samples.append(
            RewardSample(
                reward=float("nan") if i == 0 else 0.1 * (-1) ** i,
                raw_reward=0.1,
                value=float("nan") if i in strange else done - 1,
                progress=done if progress and i not in strange else float("nan"),
                subgoal_index=min(int(done * stages), stages - 1),
                subgoal_count=stages,
                uncertainty=2.0 if i in strange else 0.1,
            )
        )
    return RewardCurve.from_samples(samples)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share(picture, colour, tolerance=6):
    return float((np.abs(picture - np.array(colour)).max(axis=-1) <= tolerance).mean())


def test_curve_shows_strip_lines_and_strangers(tmp_path):
    stamps = 1.7e9 + np.arange(40) / 10
    draw_curve(tmp_path / "a.png", frame, stamps, curve(strange=range(10, 20), stages=3), "a title")
    picture = pixels(tmp_path / "a.png")
    assert picture.shape[1] == 1430
    assert share(picture, (250, 0, 250)) > 0.02
    assert share(picture, GREEN, 40) > 0.0005
    draw_curve(tmp_path / "b.png", frame, stamps, curve(stages=3), "a title")
    assert share(picture, GREY, 12) > 4 * share(pixels(tmp_path / "b.png"), GREY, 12)


def test_every_reward_has_its_bar(tmp_path):
    draw_curve(tmp_path / "a.png", frame, np.arange(40.0), curve(), "rewards that alternate")
    picture = pixels(tmp_path / "a.png")
    # Three quarters opaque on white.
    bars = [share(picture, tuple(255 - 0.75 * (255 - np.array(colour))), 8) for colour in (BLUE, VERMILION)]
    assert min(bars) > 0.005
    assert bars[0] == pytest.approx(bars[1], rel=0.3)


def test_only_a_few_frames_are_read(tmp_path):
    read = []

    def counting(index):
        read.append(index)
        return frame(index % 60)

    draw_curve(tmp_path / "a.png", counting, np.arange(5000.0), curve(5000), "long")
    assert len(read) <= 12
    assert read == sorted(read)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("progress", [True, False])
def test_short_videos(tmp_path, count, progress):
    draw_curve(tmp_path / "a.png", frame, np.arange(count) / 10, curve(count, progress), "x" * 500)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("shape", [(48, 64), (1080, 1920), (640, 360), (37, 37)])
def test_any_shape_of_frame(tmp_path, shape):
    draw_curve(tmp_path / "a.png", lambda _: np.zeros((*shape, 3), np.uint8), np.arange(40.0), curve(), "shape")
    assert pixels(tmp_path / "a.png").shape[0] < 1200


def test_nothing_is_available(tmp_path):
    nothing = curve(20, progress=False, strange=range(20))
    draw_curve(tmp_path / "a.png", frame, np.arange(20.0), nothing, "all unlike the demonstration")


def test_comparison(tmp_path):
    clips = [Clip(f"clip {i}", frame, np.arange(n) / 10, curve(n)) for i, n in enumerate((40, 25))]
    draw_comparison(tmp_path / "a.png", clips, "two")
    picture = pixels(tmp_path / "a.png")
    assert share(picture, BLUE, 12) > 0.0005
    assert share(picture, VERMILION, 12) > 0.0005
    draw_comparison(tmp_path / "b.png", [Clip("one", frame, np.arange(9.0), curve(9, progress=False))])


@pytest.mark.parametrize("shape", [(48, 64), (64, 36)])
def test_labels_of_subgoals_stay_inside_their_pictures(tmp_path, shape):
    last = 39
    split = Decomposition(np.array([12, 25, last]), [np.linspace(1, 0, last + 1)], np.full(last + 1, last))
    colour = (250, 0, 250)
    draw_subgoals(tmp_path / "a.png", lambda _: np.full((*shape, 3), colour, np.uint8), np.arange(40.0), split, "three")
    picture = pixels(tmp_path / "a.png")
    # The bar left of the subgoals is whole, from its first to its last row.
    bar = np.abs(picture - np.array(GREEN)).max(axis=-1) <= 6
    columns = np.flatnonzero(bar.any(axis=0))[1:10]
    rows = np.flatnonzero(bar[:, columns[0]])[1:-1]
    assert len(rows) > 50
    assert bar[rows[0] : rows[-1] + 1, columns].all()
    # So are the edges of each picture, the first of which the bar covers.
    shown = (np.abs(picture - np.array(colour)).max(axis=-1) <= 6)[rows[10] : rows[-10]]
    filled = shown.mean(axis=0)
    edges = np.flatnonzero(np.diff((filled > 0).astype(int)))
    assert len(edges) == 6
    assert (filled[edges[2::2] + 2] == 1).all() and (filled[edges[1::2] - 1] == 1).all()
    assert ((filled > 0) & (filled < 1)).sum() > 3 * 30, "there are labels"


def test_the_same_numbers_give_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curve(tmp_path / name, frame, np.arange(40.0), curve(), "same")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="7 clips"):
        draw_comparison(tmp_path / "a.png", [Clip("c", frame, np.arange(9.0), curve(9))] * 7)
    with pytest.raises(ValueError, match="39"):
        draw_curve(tmp_path / "a.png", frame, np.arange(39.0), curve(40), "lengths")
    with pytest.raises(ValueError, match="one sample at least"):
        draw_curve(tmp_path / "a.png", frame, np.zeros(0), curve(0), "empty")
