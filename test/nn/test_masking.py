"""Samplers of masks: what must hold for any seed, step and batch."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v2r_core.nn.masking import BlockKind, MultiBlock, MultiBlock3d, RandomNoise, cut, kept, shuffle

SEEDS = st.integers(0, 2**31 - 1)
STEPS = st.integers(0, 10_000)
BATCHES = st.integers(1, 6)
COMPAT = st.sampled_from(["official", "paper"])
SMALL = settings(max_examples=30, deadline=None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def assert_ascending(indices, patches):
    assert indices.dtype == torch.int64
    assert (indices.diff(dim=-1) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < patches


@SMALL
@given(SEEDS, st.integers(1, 5), st.integers(4, 80), st.floats(0.0, 0.74))
def test_a_shuffle_is_a_permutation_with_the_least_noise_in_front(seed, batch, patches, ratio):
    noise = RandomNoise(patches)(batch, 0, generator(seed))["noise"]
    order, count = shuffle(noise, ratio)
    assert count == kept(patches, ratio)
    assert torch.equal(order.sort(dim=1).values, torch.arange(patches).expand(batch, -1))
    assert (noise.gather(1, order).diff(dim=1) >= 0).all()


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"keeps none of 4 patches"):
        shuffle(torch.rand(1, 4), 0.9)


@SMALL
@given(SEEDS, STEPS, BATCHES, COMPAT)
def test_contexts_and_targets_are_apart_and_large_enough(seed, step, batch, compat):
    sampler = MultiBlock((10, 12), min_keep=1, compat=compat)
    found = sampler(batch, step, generator(seed))
    context, targets = found["context"], found["targets"]
    assert context.shape[0] == batch
    assert targets.shape[:2] == (sampler.targets, batch)
    assert_ascending(context, 120)
    assert_ascending(targets, 120)
    assert min(context.shape[1], targets.shape[2]) > sampler.min_keep
    for row, blocks in zip(context, targets.transpose(0, 1), strict=True):
        assert not set(row.tolist()) & set(blocks.flatten().tolist())


@SMALL
@given(SEEDS, STEPS, BATCHES, COMPAT)
def test_contexts_and_targets_of_clips_share_nothing(seed, step, batch, compat):
    grid = (4, 6, 8)
    sampler = MultiBlock3d(
        grid, (BlockKind(4, (0.15, 0.15)), BlockKind(1, (0.5, 0.7), (0.5, 1.0), (0.5, 2.0), 0.75)), compat
    )
    found = sampler(batch, step, generator(seed))
    assert set(found) == {"context_0", "target_0", "context_1", "target_1"}
    for kind in range(2):
        context, target = found[f"context_{kind}"], found[f"target_{kind}"]
        assert len(context) == len(target) == batch
        for rows in (context, target):
            assert_ascending(rows, 4 * 6 * 8)
        assert all(not set(c.tolist()) & set(t.tolist()) for c, t in zip(context, target, strict=True))


@pytest.mark.parametrize("sampler", [RandomNoise(16), MultiBlock((8, 8), min_keep=4), MultiBlock3d((2, 8, 8))])
def test_seeded_alike_samplers_draw_alike_also_after_pickling(sampler):
    again = pickle.loads(pickle.dumps(sampler))  # noqa: S301
    first, second = sampler(3, 5, generator(1)), again(3, 5, generator(1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = sampler(3, 5, generator(2))
    assert any(first[n].shape != other[n].shape or not torch.equal(first[n], other[n]) for n in first)


def test_sizes_depend_on_the_step_only():
    sampler = MultiBlock((16, 16))
    lengths = {sampler(2, 3, generator(seed))["targets"].shape for seed in range(5)}
    assert len(lengths) == 1
    assert len({sampler(2, step, generator(0))["targets"].shape for step in range(20)}) > 1


def usage(sampler, name, grid, batch=8, steps=40):
    """How often each patch is in a list."""
    counts = torch.zeros(torch.Size(grid).numel())
    positions = generator(0)
    for step in range(steps):
        found = sampler(batch, step, positions)[name].flatten()
        counts += torch.bincount(found, minlength=len(counts))
    return counts.reshape(grid)


def test_only_the_paper_uses_the_last_row_and_column():
    grid = (8, 8)
    for name in ("context", "targets"):
        official = usage(MultiBlock(grid, min_keep=4), name, grid)
        assert official[-1].sum() == official[:, -1].sum() == 0
        ours = usage(MultiBlock(grid, min_keep=4, compat="paper"), name, grid)
        assert min(ours[-1].sum(), ours[:, -1].sum()) > 0


def test_cutting_at_the_end_starves_the_bottom_and_cutting_by_lot_does_not():
    grid = (16, 16)
    official = usage(MultiBlock(grid), "context", grid).sum(dim=1)
    ours = usage(MultiBlock(grid, compat="paper"), "context", grid).sum(dim=1)
    assert official[-4:-1].sum() < 0.5 * official[:3].sum()
    assert ours[-3:].sum() > 0.7 * ours[:3].sum()


def test_cutting_at_the_end_starves_the_late_frames_and_cutting_by_lot_does_not():
    grid = (8, 14, 14)
    official = usage(MultiBlock3d(grid), "target_0", grid, steps=8).sum(dim=(1, 2))
    ours = usage(MultiBlock3d(grid, compat="paper"), "target_0", grid, steps=8).sum(dim=(1, 2))
    assert official[-1] < 0.5 * official[0]
    assert ours[-1] > 0.9 * ours[0]


def test_lists_are_cut_to_the_shortest():
    lists = [torch.arange(5).numpy(), torch.arange(10, 13).numpy()]
    assert cut(lists, "official", generator(0)).tolist() == [[0, 1, 2], [10, 11, 12]]
    found = cut(lists, "paper", generator(0))
    assert_ascending(found, 13)
    assert found[1].tolist() == [10, 11, 12]


def test_blocks_that_can_be_too_small_are_refused_at_once():
    with pytest.raises(ValueError, match="lower min_keep"):
        MultiBlock((4, 4), min_keep=10)


def test_blocks_that_leave_no_context_are_refused():
    with pytest.raises(ValueError, match="mask fewer or smaller blocks"):
        MultiBlock3d((1, 4, 4), (BlockKind(2, (1.0, 1.0), aspect=(1.0, 1.0)),))(1, 0, generator(0))
