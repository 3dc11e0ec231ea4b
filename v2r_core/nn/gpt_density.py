"""The autoregressive density that Diffusion Reward compares itself with (its "VIPER" baseline), a small GPT.

Its input are code vectors, not codes, one token at a time over the frames of a sub-clip. Module names are those of the
released state dict below `transformer.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of the network.

    Attributes:
        codes: K of the tokenizer.
        latent: length Z of a code vector.
        block: positions, at least the tokens of a sub-clip. The released state dict has 5120, and a mask of its square
            in every layer.
        width: channels D.
        depth: blocks.
        heads: attention heads, a divisor of the width.
    """

    codes: int = 1024
    latent: int = 64
    block: int = 5120
    width: int = 512
    depth: int = 8
    heads: int = 8


class CausalAttention(nn.Module):
    """Attention of each token to itself and those before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.key = nn.Linear(config.width, config.width)
        self.query = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.register_buffer("mask", torch.tril(torch.ones(config.block, config.block))[None, None])

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, D) to the same."""
        query, key, value = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return projected


class GPTBlock(nn.Module):
    """Attention and MLP, normalised before, beside shortcuts."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.ln2 = nn.LayerNorm(config.width)
        self.attn = CausalAttention(config)
        hidden = MLP_RATIO * config.width
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, D) to the same."""
        tokens = tokens + self.attn(self.ln1(tokens))
        refined: Tensor = tokens + self.mlp(self.ln2(tokens))
        return refined


class GPTDensity(nn.Module):
    """Code vectors to logits of the codes, each from those before it.

    Args:
        config: sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Linear(config.latent, config.width)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block, config.width))
        self.blocks = nn.Sequential(*[GPTBlock(config) for _ in range(config.depth)])
        self.ln_f = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.codes, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits of every token given the tokens before it.

        Args:
            vectors: code vectors (N, L, Z). The last one is not read, and a zero vector stands for the one before the
                first.

        Returns:
            (N, L, K).

        Raises:
            ValueError: more tokens than positions.
        """
        length = vectors.shape[1]
        if length > self.config.block:
            raise ValueError(f"{length} tokens for {self.config.block} positions; use fewer frames")
        shifted = functional.pad(vectors[:, :-1], (0, 0, 1, 0))
        logits: Tensor = self.head(self.ln_f(self.blocks(self.tok_emb(shifted) + self.pos_emb[:, :length])))
        return logits


def clip_log_likelihood(logits: Tensor, codes: Tensor, tokens: int, joint: bool = False) -> Tensor:
    """Log-likelihood of a sub-clip's last frame given those before it, or with `joint` of all its frames.

    Args:
        logits: (N, L, K), L = frames x tokens.
        codes: int64 (N, L), what is there.
        tokens: of a frame.
        joint: sum over all frames.

    Returns:
        (N,) in nats.
    """
    chosen = logits.log_softmax(dim=-1).gather(2, codes[..., None])[..., 0]
    return (chosen if joint else chosen[:, -tokens:]).sum(dim=1)


def clip_negative_entropy(logits: Tensor, tokens: int) -> Tensor:
    """Minus the summed entropy of the predictions of a sub-clip's last frame.

    Args:
        logits: (N, L, K).
        tokens: of a frame.

    Returns:
        (N,) in nats, at most 0.
    """
    log_p = logits[:, -tokens:].log_softmax(dim=-1)
    return (log_p.exp() * log_p).sum(dim=(1, 2))


def subclips(codes: Tensor, frames: int) -> Tensor:
    """Codes (T, L) of a video as one sub-clip for each frame, which is its last one: (T, frames L).

    Frames with fewer than frames - 1 before them are repeated in all places, as released.
    """
    last = torch.arange(len(codes))
    offsets = torch.arange(1 - frames, 1)
    rows = torch.where((last < frames - 1)[:, None], last[:, None], last[:, None] + offsets)
    return codes[rows].flatten(1)
