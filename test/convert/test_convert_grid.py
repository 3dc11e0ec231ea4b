from __future__ import annotations

import math
from array import array
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from v2r_core.convert.bag_index import BagIndex, Boundary, Track
from v2r_core.convert.grid import NONE, SECOND_NS, median_rate, newest_at, runs, sample_instants, summed
from v2r_core.convert.joints import Streams
from v2r_core.convert.parts import LeftOut
from v2r_core.convert.plan import Planner, oldest
from v2r_core.convert.topics import Part, Topics

MS = 1_000_000
stamps_of = st.lists(st.integers(0, 3000), min_size=1, max_size=40).map(lambda ms: np.array(sorted(ms), np.int64) * MS)
fps_of = st.integers(1, 60)


@given(stamps_of, stamps_of)
def test_the_newest_message_is_the_one_that_a_plain_search_finds(stamps, instants):
    for instant, found in zip(instants, newest_at(stamps, instants), strict=True):
        at_or_before = [number for number, stamp in enumerate(stamps) if stamp <= instant]
        assert found == (at_or_before[-1] if at_or_before else NONE)


@given(stamps_of, fps_of)
def test_instants_keep_to_the_grid_and_reach_from_the_first_image_to_the_last(stamps, fps):
    instants = sample_instants(stamps, fps)
    step = SECOND_NS / fps
    off = instants - np.arange(len(instants)) * step
    assert off.max() - off.min() <= step + 4
    assert (np.diff(instants) >= 0).all()
    assert 0 <= instants[0] - stamps[0] <= step
    assert -step / 2 - 2 <= stamps[-1] - instants[-1] <= step + 2
    # Where an image is within half a step of a point of the grid, that image is meant, and not a moment near it.
    rate = median_rate(stamps)
    near = min(step, step if math.isnan(rate) else SECOND_NS / rate) / 2
    on_an_image = np.isin(instants, stamps)
    for instant in instants[~on_an_image]:
        assert np.abs(stamps - instant).min() >= near - 2


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=60), fps_of)
def test_a_camera_that_trembles_loses_no_image_and_repeats_none(trembling, fps):
    step = SECOND_NS / fps
    stamps = np.rint((np.arange(len(trembling)) + np.array(trembling)) * step).astype(np.int64)
    assert np.array_equal(sample_instants(stamps, fps), stamps)


def test_a_slower_grid_takes_images_and_a_faster_one_repeats_them():
    stamps = np.arange(9) * SECOND_NS // 30
    assert np.array_equal(sample_instants(stamps, 10), stamps[::3])
    faster = sample_instants(stamps, 60)
    assert len(faster) == 17
    assert np.array_equal(newest_at(stamps, faster), np.arange(17) // 2)


def test_a_camera_of_29_97_frames_does_not_drift_away_from_a_grid_of_30():
    stamps = np.rint(np.arange(3000) * SECOND_NS / 29.97).astype(np.int64)
    instants = sample_instants(stamps, 30)
    assert len(instants) in (3002, 3003, 3004)  # 100.07 s
    assert len(set(instants.tolist())) >= 2999


def test_rates():
    assert median_rate(np.array([0, 100, 200, 900]) * MS) == 10
    assert math.isnan(median_rate(np.array([5])))
    assert math.isnan(median_rate(np.array([5, 5])))
    assert oldest(np.array([0, 100, 200]) * MS, None) == 400 * MS
    assert oldest(np.array([0, 1, 2]) * MS, None) == 200 * MS
    assert oldest(np.array([0]), None) == math.inf
    assert oldest(np.array([0]), 0.05) == 50 * MS


@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_the_stretches_of_true(wanted):
    found = [False] * len(wanted)
    slices = list(runs(np.array(wanted, bool)))
    for piece in slices:
        assert piece.stop > piece.start
        found[piece] = [True] * (piece.stop - piece.start)
    assert found == wanted
    assert all(a.stop < b.start for a, b in pairwise(slices))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.data())
def test_rewards_are_kept_whatever_the_rate(rewards, data):
    chosen = np.array(sorted(data.draw(st.lists(st.integers(0, len(rewards) - 1), min_size=1, max_size=30))))
    found = summed(np.array(rewards, float), chosen)
    assert found[0] == rewards[chosen[0]]
    assert found[1:].sum() == sum(rewards[chosen[0] + 1 : chosen[-1] + 1])


def test_a_reward_that_is_not_available_is_not_0():
    found = summed(np.array([1.0, math.nan, 2.0, 3.0]), np.array([0, 2, 2, 3]))
    assert np.array_equal(found, [1, math.nan, 0, 3], equal_nan=True)


def _index(images: list[int], others: list[int], camera_places: list[int]) -> BagIndex:
    """A bag of images and states with stamps in milliseconds, in an order of recording."""
    places = set(camera_places)
    state_places = [each for each in range(len(images) + len(others)) if each not in places]

    def track(stamps: list[int], at: list[int]) -> Track:
        return Track(array("q", [0] * len(stamps)), array("q", [MS * stamp for stamp in stamps]), array("q", at))

    tracks = {"/camera": track(images, camera_places), "/state": track(others, state_places)}
    return BagIndex(Streams(Path("bag"), ()), tracks, [Boundary(0, None)])


@settings(max_examples=200)
@given(st.data())
def test_frames_are_made_as_a_plain_reference_makes_them_and_never_of_the_future(data):
    stamps = st.lists(st.integers(1, 2000), min_size=1, max_size=25)
    images, others = sorted(data.draw(stamps)), data.draw(stamps)
    camera_places = sorted(data.draw(st.permutations(range(len(images) + len(others))))[: len(images)])
    fps, max_age = data.draw(st.integers(2, 40)), data.draw(st.integers(10, 500))
    topics = Topics({"observation.images.c": "/camera"}, {"action": [Part("/state")]}, None, None, None)
    left_out = LeftOut()
    planner = Planner(_index(images, others, camera_places), topics, fps, "header", max_age / 1000, None)
    pieces = planner.pieces(left_out)

    wanted = []
    for instant in sample_instants(np.array(images) * MS, fps).tolist():
        frame = []
        for each in (images, others):
            past = [(stamp * MS, number) for number, stamp in enumerate(each) if stamp * MS <= instant]
            newest = max(past, default=None)
            frame.append(None if newest is None or instant - newest[0] > max_age * MS else newest[1])
        wanted.append((instant, *frame))
    found = {
        (int(t), int(piece.numbers["/camera"][k]), int(piece.numbers["/state"][k]))
        for piece in pieces
        for k, t in enumerate(piece.instants)
    }
    assert sum(left_out.frames.values()) + sum(len(piece.instants) for piece in pieces) == len(wanted)
    whole = [frame for frame in wanted if None not in frame]
    assert found <= set(whole)
    assert (
        len(whole) - sum(len(piece.instants) for piece in pieces)
        == left_out.frames["alone, with no frame before or after"]
    )
    for instant, image, state in found:
        assert images[image] * MS <= instant
        assert others[state] * MS <= instant
    assert left_out.cuts == max(len(pieces) - 1, 0)
    assert all(len(piece.instants) > 1 for piece in pieces)
