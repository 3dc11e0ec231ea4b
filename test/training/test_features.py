"""Features of a frozen part: every frame once, from the cache the second time, and none where a frame is damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clip_writer import number_of, write_video

from v2r_core.methods.method import FrozenPart
from v2r_core.training.features import frame_features
from v2r_core.video.augment import whole_view
from v2r_core.video.batches import finish, make_loader
from v2r_core.video.clips import ClipDataset, DataSpec
from v2r_core.video.resize import Preprocess


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", count=12)
    write_video(tmp_path / "videos" / "b.mp4", count=7)
    return tmp_path / "videos"


class Counting:
    """A frozen part that reads the number of a frame and counts its calls."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        self.frames += len(frames)
        return torch.tensor([[number_of(frame.numpy())] for frame in frames])


def part(counting: Counting, name: str = "numbers") -> FrozenPart:
    return FrozenPart(name, Preprocess(size=96), counting)


def pick(frames: int, rng: np.random.Generator) -> list[int]:
    return rng.integers(0, frames, 3).tolist()


def test_every_frame_is_applied_once_and_found_in_the_cache_afterwards(folder: Path, tmp_path: Path) -> None:
    dataset = ClipDataset([folder], DataSpec((whole_view(32),), frames=3, picker=pick, samples=8))
    counting = Counting()
    tables = frame_features(part(counting), dataset, torch.device("cpu"), tmp_path / "cache")
    assert [table.flatten().tolist() for table in tables] == [list(range(12)), list(range(7))]
    assert counting.frames == 19
    again = frame_features(part(counting), dataset, torch.device("cpu"), tmp_path / "cache")
    assert counting.frames == 19
    assert all(torch.equal(one, other) for one, other in zip(tables, again, strict=True))
    frame_features(part(counting, "another network"), dataset, torch.device("cpu"), tmp_path / "cache")
    assert counting.frames == 38


def test_a_batch_has_the_features_of_the_frames_it_names(folder: Path) -> None:
    dataset = ClipDataset([folder], DataSpec((whole_view(32),), frames=3, picker=pick, samples=8), seed=3)
    assert len(dataset) == 8
    dataset.features = frame_features(part(Counting()), dataset, torch.device("cpu"))
    batches = [finish(batch) for batch in make_loader(dataset, 4, workers=2, steps=4)]
    for batch in batches:
        assert "views" not in batch
        assert torch.equal(batch["features"][..., 0], batch["frames"])
        firsts = [int(name.rpartition("#")[2]) for name in batch["names"]]
        assert firsts == batch["frames"][:, 0].tolist()
        lengths = [12 if "a.mp4" in name else 7 for name in batch["names"]]
        assert lengths == batch["lengths"].tolist()
    resumed = finish(next(iter(make_loader(dataset, 4, start_step=2, steps=1))))
    assert resumed["names"] == batches[2]["names"]
    # Another epoch has other frames of the same videos.
    assert sorted(batches[0]["names"] + batches[1]["names"]) != sorted(batches[2]["names"] + batches[3]["names"])


def test_picked_frames_are_the_pixels_of_the_video(folder: Path) -> None:
    dataset = ClipDataset([folder], DataSpec((whole_view(96),), frames=3, picker=pick, samples=8), seed=3)
    batch = finish(next(iter(make_loader(dataset, 4, steps=1))))
    views = batch["views"][0]
    assert views.shape == (4, 3, 3, 96, 96)
    levels = ((views + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
    found = [[number_of(frame.numpy()) for frame in sample] for sample in levels]
    assert found == batch["frames"].tolist()


def test_a_video_shorter_than_a_sample_needs_is_left_out(folder: Path) -> None:
    dataset = ClipDataset([folder], DataSpec((whole_view(32),), frames=3, picker=pick, shortest=8))
    assert len(dataset.sources) == 1
    assert "7 frames, a clip needs 8" in dataset.skipped[0][1]
