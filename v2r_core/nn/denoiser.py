"""The transformer of Diffusion Reward (section 4): from noised tokens, a step and two frames to the next frame's codes.

Module and buffer names are those of the released state dict below `transformer.`, so that it loads strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.discrete_diffusion import LOG_FLOOR, Schedule

GELU2 = 1.702
MLP_RATIO = 2
_TABLES = tuple(Schedule.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Sizes of the network.

    Attributes:
        codes: K of the tokenizer.
        grid: side of its token grid; L = grid x grid.
        width: channels D.
        depth: blocks.
        heads: attention heads, a divisor of the width.
        condition_width: channels of the condition.
        frames: frames of the condition, where they have positions.
        steps: T.
        compat: `official`: the condition has one table of codes, which is never trained, and no positions, so that it
            is a bag of codes without place or time. `paper`: the table is trained, and every frame and place has a
            position of its own.

    Raises:
        ValueError: a number below 1, or heads that do not divide the width.
    """

    codes: int = 1024
    grid: int = 8
    width: int = 128
    depth: int = 16
    heads: int = 16
    condition_width: int = 1024
    frames: int = 2
    steps: int = 100
    compat: Literal["official", "paper"] = "official"

    def __post_init__(self) -> None:
        for name in ("codes", "grid", "width", "depth", "heads", "condition_width", "frames", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads; choose another of them")

    @property
    def tokens(self) -> int:
        """Tokens L of a frame."""
        return self.grid**2


class AdaptiveLayerNorm(nn.Module):
    """Layer normalisation whose scale and shift depend on the step."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.steps, config.width)
        self.linear = nn.Linear(config.width, 2 * config.width)

    def scale_and_shift(self, t: Tensor) -> Tensor:
        """Of steps (N,): (N, 2 D)."""
        both: Tensor = self.linear(functional.silu(self.emb(t)))
        return both

    def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
        """(N, L, D) and (N,) to (N, L, D)."""
        return modulated(tokens, self.scale_and_shift(t))


def modulated(tokens: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Normalises (N, L, D), then multiplies by 1 + scale and adds the shift, (N, 2 D) together."""
    scale, shift = scale_and_shift[:, None].chunk(2, dim=-1)
    return functional.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift


class Attention(nn.Module):
    """Attention from tokens to themselves or to a condition.

    Args:
        width: channels of the tokens.
        source: channels of what is attended to.
        heads: attention heads.
        mask: side of the released `mask` buffer, which nothing uses; 0 for none.
    """

    def __init__(self, width: int, source: int, heads: int, mask: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(source, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(source, width)
        self.proj = nn.Linear(width, width)
        if mask:
            self.register_buffer("mask", torch.tril(torch.ones(mask, mask))[None, None])

    def attend(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Tokens (N, L, D), keys and values (N, M, D) of what they attend to, to (N, L, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(tokens), key, value)
        )
        found = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return projected

    def forward(self, tokens: Tensor, source: Tensor) -> Tensor:
        """Tokens (N, L, D) and (N, M, C) that they attend to, to (N, L, D)."""
        return self.attend(tokens, self.key(source), self.value(source))


class ConvMlp(nn.Module):
    """Two convolutions over the grid of tokens."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.conv1 = nn.Conv2d(config.width, MLP_RATIO * config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(MLP_RATIO * config.width, config.width, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, D) to the same."""
        hidden = self.conv1(tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        out: Tensor = self.conv2(hidden * torch.sigmoid(GELU2 * hidden))
        return out.flatten(2).transpose(1, 2)


class DenoiserBlock(nn.Module):
    """Self-attention, attention to the condition, convolutions; each beside a shortcut."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.ln1 = AdaptiveLayerNorm(config)
        self.ln1_1 = AdaptiveLayerNorm(config)
        self.ln2 = nn.LayerNorm(config.width)
        self.attn1 = Attention(config.width, config.width, config.heads)
        self.attn2 = Attention(config.width, config.condition_width, config.heads, mask=config.tokens)
        self.mlp = ConvMlp(config)

    def forward(self, tokens: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Tokens (N, L, D), steps (N,) and condition (N, M, C) to tokens."""
        normed = self.ln1(tokens, t)
        tokens = tokens + self.attn1(normed, normed)
        tokens = tokens + self.attn2(self.ln1_1(tokens, t), condition)
        refined: Tensor = tokens + self.mlp(self.ln2(tokens))
        return refined


class ContentEmbedding(nn.Module):
    """Codes and the mask, plus tables for rows and columns."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.codes + 1, config.width)
        self.height_emb = nn.Embedding(config.grid, config.width)
        self.width_emb = nn.Embedding(config.grid, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (N, L) to (N, L, D)."""
        places = self.height_emb.weight[:, None] + self.width_emb.weight[None]
        embedded: Tensor = self.emb(tokens) + places.flatten(0, 1)
        return embedded


class ConditionEmbedding(nn.Module):
    """The frames before, as codes; see `DenoiserConfig.compat` for their positions."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.codes, config.condition_width)
        self.placed = config.compat == "paper"
        if self.placed:
            self.frame_emb = nn.Embedding(config.frames, config.condition_width)
            self.place_emb = nn.Embedding(config.tokens, config.condition_width)
        else:
            self.emb.weight.requires_grad_(False)

    def positions(self) -> Tensor | None:
        """(frames L, C), None for none."""
        if not self.placed:
            return None
        return (self.frame_emb.weight[:, None] + self.place_emb.weight[None]).flatten(0, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """int64 (N, M) to (N, M, C); M = frames L, or without positions anything."""
        embedded: Tensor = self.emb(codes)
        places = self.positions()
        return embedded if places is None else embedded + places


class Denoiser(nn.Module):
    """Tokens, steps and an embedded condition to logits of the codes."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.content_emb = ContentEmbedding(config)
        self.blocks = nn.ModuleList([DenoiserBlock(config) for _ in range(config.depth)])
        self.to_logits = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.codes))
        self.apply(_initialise)

    def forward(self, tokens: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """int64 (N, L), int64 (N,) and (N, M, C) to logits (N, K, L)."""
        hidden = self.content_emb(tokens)
        for block in self.blocks:
            hidden = block(hidden, t, condition)
        logits: Tensor = self.to_logits(hidden)
        return logits.transpose(1, 2)


class DiffusionModel(nn.Module):
    """Condition, denoiser and schedule: what the released state dict has below `transformer.`.

    Buffers beside the schedule's: `Lt_history` and `Lt_count`, see `nn.discrete_diffusion.update_history`.

    Args:
        config: sizes.
    """

    Lt_history: Tensor
    Lt_count: Tensor

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_emb = ConditionEmbedding(config)
        self.transformer = Denoiser(config)
        for name, table in vars(Schedule.linear(config.steps, config.codes)).items():
            self.register_buffer(name, table)
        self.register_buffer("Lt_history", torch.zeros(config.steps))
        self.register_buffer("Lt_count", torch.zeros(config.steps))

    @property
    def schedule(self) -> Schedule:
        """The buffers as `nn.discrete_diffusion` takes them."""
        return Schedule(**{name: getattr(self, name) for name in _TABLES})

    def logits(self, tokens: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Logits (N, K, L); see `forward`."""
        logits: Tensor = self.transformer(tokens, t, self.condition_emb(condition))
        return logits

    def forward(self, tokens: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predicts the tokens without noise.

        Args:
            tokens: int64 (N, L), K for the mask.
            t: int64 (N,), their step.
            condition: int64 (N, M), codes of the frames before, oldest first.

        Returns:
            Log-probabilities, float32 (N, K + 1, L), in [-70, 0]; the mask has -70.
        """
        return log_distribution(self.logits(tokens, t, condition).double().log_softmax(dim=1).float())


def log_distribution(log_codes: Tensor) -> Tensor:
    """Appends the mask to log-probabilities (N, K, L) and limits them to [-70, 0]: (N, K + 1, L)."""
    mask = torch.full_like(log_codes[:, :1], LOG_FLOOR)
    return torch.cat([log_codes, mask], dim=1).clamp(LOG_FLOOR, 0.0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
