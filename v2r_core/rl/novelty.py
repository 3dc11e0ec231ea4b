"""Exploration by random network distillation, on whatever the agent sees (Diffusion Reward, section 4.3).

On pixels it is the published network at 64 pixels. On embeddings it is the same head without the convolutions, and its
answer is divided by its running mean, since embeddings come in any scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.rnd import FEATURES, RandomNetworkDistillation
from v2r_core.rl.transitions import Batch

SIDE = 64
_MEMORY = 0.99


class PixelNovelty(nn.Module):
    """Random network distillation on frames.

    Args:
        lr: learning rate of Adam.
    """

    def __init__(self, lr: float = 1e-4) -> None:
        super().__init__()
        self.network = RandomNetworkDistillation(SIDE)
        self.optimizer = torch.optim.Adam(self.network.predictor.parameters(), lr=lr)

    def learn(self, rows: Tensor) -> Tensor:
        """How new rows are, before they are learned.

        Args:
            rows: uint8 (B, 3, S, S).

        Returns:
            float32 (B,), at least 0.
        """
        small = functional.interpolate(rows.float(), size=(SIDE, SIDE), mode="area").round().to(torch.uint8)
        frames = small.permute(0, 2, 3, 1).contiguous()
        novelty = self.network.reward(frames)
        self.network.update(frames, self.optimizer)
        return novelty


class EmbeddingNovelty(nn.Module):
    """Random network distillation on embeddings.

    Args:
        dim: numbers in an embedding.
        lr: learning rate of Adam.
    """

    scale: Tensor

    def __init__(self, dim: int, lr: float = 1e-4) -> None:
        super().__init__()
        self.target = nn.Sequential(nn.Linear(dim, FEATURES), nn.LeakyReLU(), nn.Linear(FEATURES, FEATURES))
        self.target.requires_grad_(False)
        self.predictor = nn.Sequential(
            nn.Linear(dim, FEATURES),
            nn.LeakyReLU(),
            nn.Linear(FEATURES, FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, FEATURES),
        )
        self.register_buffer("scale", torch.zeros(()))
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), lr=lr)

    def learn(self, rows: Tensor) -> Tensor:
        """How new rows are, before they are learned, 1 being the usual.

        Args:
            rows: float32 (B, D).

        Returns:
            float32 (B,), at least 0.
        """
        error = (self.predictor(rows) - self.target(rows)).square().mean(dim=1)
        novelty = error.detach()
        mean = novelty.mean()
        self.scale.copy_(mean if self.scale == 0 else _MEMORY * self.scale + (1 - _MEMORY) * mean)
        self.optimizer.zero_grad(set_to_none=True)
        error.mean().backward()
        self.optimizer.step()
        return novelty / self.scale.clamp_min(1e-12)


def make_novelty(shape: tuple[int, ...]) -> PixelNovelty | EmbeddingNovelty:
    """The kind that fits rows of a shape: (3, S, S) or (D,)."""
    return PixelNovelty() if len(shape) == 3 else EmbeddingNovelty(shape[0])


def pay_novelty(network: PixelNovelty | EmbeddingNovelty, batch: Batch, alpha: float) -> tuple[Batch, float]:
    """Diffusion Reward's mix: alpha times novelty is added; what a bundle pays was stored times 1 - alpha.

    Args:
        network: learns from the batch.
        batch: of transitions; how new their last frame is counts.
        alpha: weight in [0, 1].

    Returns:
        The batch with the rewards of the mix, and the mean novelty.
    """
    device = next(network.parameters()).device
    newest = torch.from_numpy(np.ascontiguousarray(batch.next_observation[:, -1])).to(device)
    novelty = network.learn(newest).cpu().numpy()
    reward = (batch.reward + alpha * novelty).astype(np.float32)
    return batch._replace(reward=reward), float(novelty.mean())
