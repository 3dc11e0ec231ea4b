import pickle
import random

import numpy as np
import pytest
import torch

from v2r_core.nn.block_masking import BlockMasking, collate, draw_block_mask


def sampler(**changes):
    return BlockMasking((14, 14), **changes)


def draw(seed=0, batch=6, **changes):
    return sampler(**changes)(batch, 0, torch.Generator().manual_seed(seed))


def test_a_mask_keeps_to_its_target():
    rng = random.Random(0)
    for target in (0, 1, 4, 20, 90):
        for _ in range(20):
            mask = draw_block_mask(rng, (14, 14), target, 98)
            assert mask.dtype == bool and mask.shape == (14, 14)
            assert mask.sum() <= target


def test_masked_patches_are_neighbours():
    rng = random.Random(1)
    masks = np.stack([draw_block_mask(rng, (14, 14), 30, 98) for _ in range(50)])
    beside = masks[:, :, :-1] & masks[:, :, 1:]
    # Patches drawn one by one would have a masked neighbour on the right in 15 of 100 cases.
    assert beside.sum() / masks[:, :, :-1].sum() > 0.6


def test_sampler_says_what_the_loss_needs():
    found = draw()
    mask, indices, shares = found["mask"], found["mask_indices"], found["mask_weights"]
    assert mask.shape == (12, 196) and mask.dtype == torch.bool
    torch.testing.assert_close(mask.flatten().nonzero().flatten(), indices)
    masked = mask.any(dim=1)
    assert 0 < masked.sum() <= 6
    # The weights of an image's patches add up to 1.
    sums = torch.zeros(12).index_add(0, indices // 196, shares)
    torch.testing.assert_close(sums, masked.float())


def test_ratios_are_spread_over_the_range():
    counts = torch.cat([draw(seed)["mask"].sum(dim=1) for seed in range(40)]).float() / 196
    counts = counts[counts > 0]
    assert counts.max() <= 0.5
    assert counts.min() < 0.2 and counts.max() > 0.4
    assert counts.mean() == pytest.approx(0.3, abs=0.04)


def test_same_generator_same_masks():
    assert torch.equal(draw(3)["mask"], draw(3)["mask"])
    assert not torch.equal(draw(3)["mask"], draw(4)["mask"])


def test_travels_to_a_worker():
    copy = pickle.loads(pickle.dumps(sampler()))  # noqa: S301
    assert torch.equal(copy(4, 0, torch.Generator().manual_seed(1))["mask"], draw(1, batch=4)["mask"])


def test_most_is_never_passed():
    made = sampler()
    for seed in range(20):
        assert made.draw(random.Random(seed), 5).sum() <= made.most(5)


def test_nothing_masked():
    found = draw(probability=0.0)
    assert not found["mask"].any() and len(found["mask_indices"]) == len(found["mask_weights"]) == 0


def test_empty_masks_have_no_weights():
    masks = np.array([[False] * 4, [True, False, True, False]])
    found = collate(masks)
    assert found["mask_indices"].tolist() == [4, 6]
    assert found["mask_weights"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("changes", [{"ratio": (0.5, 0.1)}, {"probability": 1.5}, {"ratio": (0.1, 1.1)}])
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=r"from 0 to 1"):
        sampler(**changes)
