from __future__ import annotations

import numpy as np
import torch

from v2r_core.nn.rnd import RandomNetworkDistillation
from v2r_core.rl.novelty import EmbeddingNovelty, PixelNovelty, make_novelty


def test_what_was_seen_often_is_less_new_than_what_was_not() -> None:
    torch.manual_seed(0)
    novelty = EmbeddingNovelty(12, lr=1e-3)
    seen, other = torch.randn(64, 12), torch.randn(64, 12) + 2
    for _ in range(200):
        novelty.learn(seen)
    known = float(novelty.learn(seen).mean())
    assert known < 0.1
    assert float(novelty.learn(other).mean()) > 20 * known


def test_the_scale_of_the_embeddings_does_not_matter_at_first() -> None:
    means = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        means.append(float(EmbeddingNovelty(12).learn(scale * torch.randn(64, 12)).mean()))
    np.testing.assert_allclose(means, 1.0, rtol=1e-5)


def test_pixels_are_those_of_the_published_network() -> None:
    torch.manual_seed(0)
    novelty = make_novelty((3, 64, 64))
    assert isinstance(novelty, PixelNovelty)
    torch.manual_seed(0)
    published = RandomNetworkDistillation(64)
    rows = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    expected = published.reward(rows.permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(novelty.learn(rows), expected)
    assert float(novelty.learn(rows).mean()) < float(expected.mean())
    assert novelty.learn(torch.zeros(2, 3, 84, 84, dtype=torch.uint8)).shape == (2,)
