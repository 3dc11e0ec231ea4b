"""Random network distillation: what it pays for, and how it is mixed into a reward."""

import math

import pytest
import torch

from v2r_core.nn.rnd import RandomNetworkDistillation, exploration_reward, mixed_reward


def test_novelty_falls_where_a_frame_is_known():
    torch.manual_seed(0)
    rnd = RandomNetworkDistillation(size=40)
    known, new = (torch.randint(0, 256, (4, 40, 40, 3), dtype=torch.uint8) for _ in range(2))
    optimizer = torch.optim.Adam(rnd.predictor.parameters(), lr=1e-3)
    target = [weight.clone() for weight in rnd.target.parameters()]
    for _ in range(30):
        rnd.update(known, optimizer)
    assert float(rnd.reward(known).mean()) < 0.5 * float(rnd.reward(new).mean())
    assert all(torch.equal(a, b) for a, b in zip(target, rnd.target.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"\(N, 40, 40, 3\)"):
        rnd.reward(known[:, :20])
    with pytest.raises(ValueError, match="20 pixels"):
        RandomNetworkDistillation(size=20)


def test_alpha_weights_exploration():
    paid = mixed_reward(2.0, 1.0, alpha=0.95)
    assert paid == pytest.approx(0.05 * 2 + 1)
    assert exploration_reward(paid, 10.0, alpha=0.95) == pytest.approx(paid + 9.5)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            mixed_reward(0.0, 0.0, alpha)
