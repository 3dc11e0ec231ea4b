"""Batches from videos: which frames, in which order, and what happens to those that cannot be read."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_writer import number_of, numbered, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from v2r_core import CLIPS
from v2r_core.video import VideoError, frame_cache, open_video
from v2r_core.video.augment import View, dino_views, simclr_views
from v2r_core.video.batches import finish, make_loader
from v2r_core.video.clips import ClipDataset, DataSpec, steps_per_epoch
from v2r_core.video.footage import KEPT_OPEN, Reader, Source, find_videos
from v2r_core.video.frame_cache import CacheError, open_cached

SIZE = 48
WHOLE = View(
    SIZE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)
"""The frame as it is, so that its number can be read."""
COLORFUL = replace(dino_views(16, 16, 0)[1], gray=0.3, blur=0.5)


def draw_masks(count, step, generator):
    noise = torch.rand(count, 4, generator=generator)
    return {"noise": noise, "step": torch.tensor(step), "threads": torch.tensor(torch.get_num_threads())}


def collect_garbage(count, step, generator):
    gc.collect()
    return {}


@pytest.fixture
def folder(tmp_path):
    """Three videos of 12, 20 and 9 frames."""
    path = tmp_path / "videos"
    (path / "more").mkdir(parents=True)
    write_video(path / "a.mp4", count=12, size=(SIZE, SIZE))
    write_video(path / "b.mp4", count=20, size=(SIZE, SIZE), options={"g": "5"})
    write_video(path / "more" / "c.mp4", count=9, size=(SIZE, SIZE))
    return path


@pytest.fixture
def images(tmp_path):
    """A folder of ten images, the fifth of which is cut short."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(10):
        Image.fromarray(numbered(number, SIZE, SIZE)).save(path / f"{number}.png")
    whole = (path / "4.png").read_bytes()
    (path / "4.png").write_bytes(whole[: len(whole) // 2])
    return path


def batches(dataset, batch_size, workers=0, **options):
    return [finish(batch, "cpu") for batch in make_loader(dataset, batch_size, workers, **options)]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert one["names"] == other["names"]
        assert one["damaged"] == other["damaged"]
        assert all(torch.equal(a, b) for a, b in zip(one["views"], other["views"], strict=True))
        assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


def numbers_of(view):
    """Frame numbers in an image view (N, 3, h, w) or clip view (N, 3, T, h, w)."""
    view = view[:, :, None] if view.ndim == 4 else view
    return [[number_of((clip[:, t].permute(1, 2, 0) * 255).numpy()) for t in range(clip.shape[1])] for clip in view]


# ---- finding and indexing


def test_find_videos(folder, images, tmp_path):
    bag = tmp_path / "everything" / "bag"
    bag.mkdir(parents=True)
    (bag / "metadata.yaml").touch()
    (bag / "bag_0.mcap").touch()
    (tmp_path / "everything" / "notes.txt").touch()
    (tmp_path / "everything" / ".hidden.mp4").touch()
    (folder / "thumbnail.png").touch()
    found = find_videos([folder, tmp_path / "everything", images, folder / "a.mp4", f"{bag}:/camera"])
    assert found == [
        *(str(folder / name) for name in ("a.mp4", "b.mp4", "more/c.mp4")),
        str(bag),
        str(images),
        f"{bag}:/camera",
    ]


def test_nothing_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        find_videos([tmp_path / "gone.mp4"])
    with pytest.raises(VideoError, match=r"no video in it.*\.mp4"):
        find_videos([tmp_path])
    with pytest.raises(VideoError, match="no path"):
        find_videos([])


def test_every_start_is_an_example(folder):
    spec = DataSpec((WHOLE,), frames=3, stride=2)
    assert spec.span == 5
    dataset = ClipDataset([folder], spec)
    assert len(dataset) == 8 + 16 + 5
    assert dataset.name(dataset.clip(0)) == f"{folder / 'a.mp4'}#0"
    assert dataset.name(dataset.clip(8)) == f"{folder / 'b.mp4'}#0"
    assert list(dataset.clip(9).frames) == [1, 3, 5]
    assert dataset.name(dataset.clip(28)) == f"{folder / 'more' / 'c.mp4'}#4"
    sparse = ClipDataset([folder], spec, every=3)
    assert [sparse.name(sparse.clip(example)).rpartition("#")[2] for example in range(len(sparse))] == [
        *("0", "3", "6"),
        *("0", "3", "6", "9", "12", "15"),
        *("0", "3"),
    ]


def test_bad_sources_are_skipped_and_named(folder):
    (folder / "empty.mp4").touch()
    whole = (folder / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video")
    dataset = ClipDataset([folder], DataSpec((WHOLE,), frames=10))
    assert [(Path(path).name, reason) for path, reason in dataset.skipped if "frames, a clip" in reason] == [
        ("c.mp4", "9 frames, a clip needs 10; lower the frames or the stride of a clip")
    ]
    assert {Path(path).name for path, _ in dataset.skipped} == {"empty.mp4", "cut.mp4", "text.mp4", "c.mp4"}
    assert len(dataset) == 3 + 11


def test_nothing_left(folder):
    with pytest.raises(VideoError, match=r"none of 3 videos.*a\.mp4: 12 frames, a clip needs 100"):
        ClipDataset([folder], DataSpec((WHOLE,), frames=100))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: ClipDataset([data], DataSpec((WHOLE,)), every=0), "every is 0"),
        (lambda data: ClipDataset([data], DataSpec((WHOLE,)), seed=-1), "seed is -1"),
        (lambda data: ClipDataset([data], DataSpec((WHOLE,)), cache=data / "x", cache_side=0), "cache_side is 0"),
        (lambda data: DataSpec(()), "views is empty"),
        (lambda data: DataSpec((WHOLE,), frames=0), "frames is 0"),
        (lambda data: DataSpec((WHOLE,), stride=0), "stride is 0"),
        (lambda data: make_loader(ClipDataset([data], DataSpec((WHOLE,))), 0), "batch_size is 0"),
        (lambda data: make_loader(ClipDataset([data], DataSpec((WHOLE,))), 1, rank=1), "rank 1 of 1"),
        (lambda data: make_loader(ClipDataset([data], DataSpec((WHOLE,))), 21, world=2), "41 examples make no batch"),
    ],
)
def test_errors(folder, call, message):
    with pytest.raises(ValueError, match=message):
        call(folder)


# ---- which frames, in which order


def test_frames_are_those_of_the_name(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE, WHOLE)), seed=3)
    for batch in batches(dataset, 8, steps=5):
        first, second = batch["views"]
        assert first.shape == (8, 3, SIZE, SIZE)
        expected = [[int(name.rpartition("#")[2])] for name in batch["names"]]
        assert numbers_of(first) == expected
        assert torch.equal(first, second)


def test_clips_have_their_frames_in_order(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE,), frames=3, stride=2))
    for batch in batches(dataset, 8, steps=3):
        assert batch["views"][0].shape == (8, 3, 3, SIZE, SIZE)
        starts = [int(name.rpartition("#")[2]) for name in batch["names"]]
        assert numbers_of(batch["views"][0]) == [[start, start + 2, start + 4] for start in starts]


def test_an_epoch_has_each_example_once_and_another_order_than_the_next(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE,)))
    assert steps_per_epoch(len(dataset), 8) == 5
    names = [name for batch in make_loader(dataset, 8, steps=10) for name in batch["names"]]
    for epoch in (names[:40], names[40:]):
        assert len(set(epoch)) == 40
    assert names[:40] != names[40:]
    other = ClipDataset([folder], DataSpec((WHOLE,)), seed=1)
    assert next(iter(make_loader(other, 8)))["names"] != names[:8]


def test_ranks_share_a_global_batch(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE,)))
    alone = [batch["names"] for batch in make_loader(dataset, 8, steps=5)]
    ranks = [[batch["names"] for batch in make_loader(dataset, 4, steps=5, rank=rank, world=2)] for rank in range(2)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("spec", [DataSpec((COLORFUL, WHOLE), 2, 2, draw_masks), DataSpec(simclr_views(16))])
def test_starting_in_the_middle_gives_the_same_batches_bit_for_bit(folder, spec, workers):
    dataset = ClipDataset([folder], spec, seed=5)
    whole = batches(dataset, 8, steps=9)
    assert len(whole) == 9
    for start in (3, 7):
        assert_equal(batches(dataset, 8, workers, start_step=start, steps=9 - start), whole[start:])


def test_augmentation_depends_on_the_epoch(folder):
    dataset = ClipDataset([folder], DataSpec((COLORFUL,)))
    first, second = ({}, {})
    for step, batch in enumerate(batches(dataset, 8, steps=10)):
        (first if step < 5 else second).update(zip(batch["names"], batch["views"][0], strict=True))
    both = first.keys() & second.keys()
    assert len(both) > 30
    assert not any(torch.equal(first[name], second[name]) for name in both)


def test_masks_depend_on_seed_step_and_rank(folder):
    def noise(seed=0, step=0, rank=0):
        dataset = ClipDataset([folder], DataSpec((WHOLE,), masks=draw_masks), seed=seed)
        batch = next(iter(make_loader(dataset, 4, start_step=step, rank=rank, world=2)))
        assert batch["step"] == step
        return batch["noise"]

    assert torch.equal(noise(), noise())
    assert not any(torch.equal(noise(), noise(**other)) for other in ({"seed": 1}, {"step": 1}, {"rank": 1}))


def test_one_thread_a_worker_and_the_callers_own_number_afterwards(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE,), masks=draw_masks))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for workers in (0, 1):
            assert batches(dataset, 4, workers, steps=1)[0]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_global_random_state_is_left_alone(folder):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(ClipDataset([folder], DataSpec((COLORFUL,), masks=draw_masks)), 8, 1, steps=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_worker_is_not_stopped_by_decoders_that_its_parent_left_behind(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE,), masks=collect_garbage))
    gc.disable()
    try:
        for source in find_videos([folder]) * 3:
            video = open_video(source)
            assert number_of(video[3]) == 3
            # Garbage in a cycle, which no reference count frees.
            cycle = [video]
            cycle.append(cycle)
            del video, cycle
        assert len(batches(dataset, 8, 1, steps=2)) == 2
    finally:
        gc.enable()
        gc.collect()


def test_a_worker_that_collects_garbage_before_anything_else(folder):
    program = (
        "import gc, os, sys\n"
        "from v2r_core.video import open_video\n"
        "from v2r_core.video.augment import View\n"
        "from v2r_core.video.batches import make_loader\n"
        "from v2r_core.video.clips import ClipDataset, DataSpec\n"
        "from v2r_core.video.footage import find_videos\n"
        "dataset = ClipDataset([sys.argv[1]], DataSpec((View(size=8),)))\n"
        "gc.disable()\n"
        "for source in find_videos([sys.argv[1]]):\n"
        "    video = open_video(source); video[3]\n"
        "    cycle = [video]; cycle.append(cycle); del video, cycle\n"
        "os.register_at_fork(after_in_child=gc.collect)\n"
        "print(len(list(make_loader(dataset, 8, 1, steps=2))))\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "2\n", done.stderr


def test_endless(folder):
    loader = make_loader(ClipDataset([folder], DataSpec((WHOLE,))), 20)
    assert len(list(islice(loader, 7))) == 7
    with pytest.raises(TypeError, match="never ends"):
        len(loader)
    assert len(make_loader(ClipDataset([folder], DataSpec((WHOLE,))), 20, start_step=5, steps=4)) == 4


def test_pixels_for_another_device_finish_to_the_same(folder):
    dataset = ClipDataset([folder], DataSpec((COLORFUL, WHOLE), masks=draw_masks))
    there = list(make_loader(dataset, 8, device="meta", steps=2))
    assert {view.dtype for batch in there for view in batch["views"]} == {torch.uint8}
    assert_equal([finish(batch, "cpu") for batch in there], batches(dataset, 8, steps=2))
    (colorful, _) = next(iter(make_loader(dataset, 8)))["views"]
    assert colorful.dtype == torch.float32, "a worker finishes what changes colours for a CPU"


@given(examples=st.integers(0, 300), batch=st.integers(1, 20), world=st.integers(1, 4))
@settings(deadline=None)
def test_steps_per_epoch(examples, batch, world):
    if examples < batch * world:
        with pytest.raises(ValueError, match=f"{examples} examples make no batch"):
            steps_per_epoch(examples, batch, world)
    else:
        left = examples - steps_per_epoch(examples, batch, world) * batch * world
        assert 0 <= left < batch * world


# ---- damaged frames


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_damaged_frames_are_replaced_and_named(images, workers, device):
    dataset = ClipDataset([images], DataSpec((WHOLE, COLORFUL), frames=2))
    assert not dataset.skipped
    seen = [finish(batch, "cpu") for batch in make_loader(dataset, 9, workers, device=device, steps=2)]
    for batch in seen:
        starts = [int(name.rpartition("#")[2]) for name in batch["names"]]
        assert len(starts) == 9
        assert set(starts) == {0, 1, 2, 5, 6, 7, 8}
        assert numbers_of(batch["views"][0]) == [[start, start + 1] for start in starts]
        assert len(batch["damaged"]) == 2
        assert {text.partition(":")[0] for text in batch["damaged"]} == {f"{images}#3", f"{images}#4"}
        assert all("4.png: cannot be read" in text for text in batch["damaged"])
        for start in {start for start in starts if starts.count(start) > 1}:
            same = [view for view, other in zip(batch["views"][1], starts, strict=True) if other == start]
            assert torch.equal(same[0], same[1]), "a replacement is a copy"
    assert_equal(seen, batches(dataset, 9, steps=2))


def test_a_batch_of_nothing_but_damage_takes_another_example(images):
    dataset = ClipDataset([images], DataSpec((WHOLE,)))
    seen = batches(dataset, 1, steps=10)
    damaged = [batch for batch in seen if batch["damaged"]]
    assert len(damaged) == 1
    assert damaged[0]["names"] != [f"{images}#4"]
    assert numbers_of(damaged[0]["views"][0]) == [[int(damaged[0]["names"][0].rpartition("#")[2])]]
    assert_equal(seen[5:], batches(dataset, 1, start_step=5, steps=5))


def test_nothing_readable_any_more(images):
    dataset = ClipDataset([images], DataSpec((WHOLE,)))
    for image in images.iterdir():
        image.write_bytes(b"")
    with pytest.raises(VideoError, match=r"step 0: all 4 samples are damaged"):
        batches(dataset, 4, steps=1)


def test_a_file_that_is_gone_counts_as_damaged(folder):
    dataset = ClipDataset([folder], DataSpec((WHOLE,)))
    (folder / "a.mp4").unlink()
    (batch,) = batches(dataset, 41, steps=1)
    assert len(batch["damaged"]) == 12
    assert all("a.mp4" in text for text in batch["damaged"])
    assert not any("a.mp4" in name for name in batch["names"])


def test_a_reader_keeps_few_videos_open(folder):
    sources = [Source(str(folder / "a.mp4"), 12, SIZE, SIZE)] * (KEPT_OPEN + 3)
    reader = Reader(sources)
    for source in range(len(sources)):
        assert number_of(reader.frame(source, source % 12)) == source % 12
    assert len(reader._open) == KEPT_OPEN


# ---- the cache


def test_cached_frames_are_those_of_the_video(folder, tmp_path):
    source = str(folder / "b.mp4")
    with open_video(source) as video, open_cached(source, tmp_path / "cache", SIZE) as cached:
        assert len(cached) == 20
        assert cached.name == video.name
        assert cached.fps == pytest.approx(video.fps)
        assert (cached.stamps == video.stamps).all()
        assert all((cached[index] == frame).all() for index, frame in enumerate(video))
        assert (cached[-1] == list(cached)[19]).all()
        with pytest.raises(IndexError):
            cached[20]


@pytest.mark.parametrize(("size", "expected"), [((48, 96), (24, 48)), ((96, 48), (48, 24)), ((20, 60), (20, 60))])
def test_cached_frames_are_shrunk_by_their_shorter_side(tmp_path, size, expected):
    source = str(write_video(tmp_path / "a.mp4", count=3, size=size))
    assert open_cached(source, tmp_path / "cache", 24)[0].shape == (*expected, 3)


def test_a_cache_is_built_once_and_again_when_the_video_changes(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    built = []
    build = frame_cache._build
    monkeypatch.setattr(
        frame_cache, "_build", lambda source, *rest: (built.append(Path(source).name), build(source, *rest))
    )
    spec = DataSpec((COLORFUL,))
    first = batches(ClipDataset([folder], spec, cache=cache, cache_side=SIZE), 8, steps=3)
    assert built == ["a.mp4", "b.mp4", "c.mp4"]
    assert_equal(batches(ClipDataset([folder], spec, cache=cache, cache_side=SIZE), 8, 2, steps=3), first)
    assert_equal(batches(ClipDataset([folder], spec), 8, steps=3), first)
    assert len(built) == 3
    write_video(folder / "a.mp4", count=5, size=(SIZE, SIZE))
    assert len(ClipDataset([folder], spec, cache=cache, cache_side=SIZE)) == 5 + 20 + 9
    os.utime(folder / "b.mp4", ns=(1, 1))
    ClipDataset([folder], spec, cache=cache, cache_side=SIZE)
    assert built[3:] == ["a.mp4", "b.mp4"]
    ClipDataset([folder], spec, cache=cache, cache_side=8)
    assert len(built) == 8
    assert len(list(cache.glob("*.npy"))) == 6, "what is out of date is removed"


def test_damaged_frames_in_a_cache(images, tmp_path):
    spec = DataSpec((WHOLE,))
    plain = batches(ClipDataset([images], spec), 10, steps=1)
    assert_equal(batches(ClipDataset([images], spec, cache=tmp_path / "cache"), 10, steps=1), plain)
    assert plain[0]["damaged"]
    (about,) = (tmp_path / "cache").glob("*.json")
    assert list(json.loads(about.read_text())["damaged"]) == ["4"]


def test_bad_sources_are_skipped_with_a_cache_too(folder, tmp_path):
    (folder / "empty.mp4").touch()
    dataset = ClipDataset([folder], DataSpec((WHOLE,)), cache=tmp_path / "cache")
    assert [Path(path).name for path, _ in dataset.skipped] == ["empty.mp4"]
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {"", ".npy", ".json"}


def test_a_full_disk_leaves_no_half_cache(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frame_cache.npy, "write_array_header_1_0", full)
    cache = tmp_path / "cache"
    with pytest.raises(CacheError, match=r"cache: decoded frames cannot be kept.*No space left.*make room"):
        ClipDataset([folder], DataSpec((WHOLE,)), cache=cache)
    assert [file.name for file in cache.iterdir()] == ["lock"]
    monkeypatch.undo()
    assert len(ClipDataset([folder], DataSpec((WHOLE,)), cache=cache)) == 41


def test_a_cache_folder_that_is_a_file(folder):
    with pytest.raises(CacheError, match=r"a\.mp4: decoded frames cannot be kept"):
        ClipDataset([folder / "b.mp4"], DataSpec((WHOLE,)), cache=folder / "a.mp4")


# ---- the shipped clips


def test_shipped_clips():
    dataset = ClipDataset([CLIPS], DataSpec(dino_views(32, 16, 2)), every=10)
    assert len(dataset) == 5 * 18
    batch = batches(dataset, 6, steps=1)[0]
    assert [tuple(view.shape) for view in batch["views"]] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 2
    assert all(view.isfinite().all() and view.std() > 0.3 for view in batch["views"])
