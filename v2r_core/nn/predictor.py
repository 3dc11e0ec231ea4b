"""The predictor of I-JEPA and V-JEPA: from context tokens and positions to what an encoder sees at these positions."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from v2r_core.nn.block import LAYER_NORM_EPS, Block
from v2r_core.nn.positions import sincos_2d, sincos_3d
from v2r_core.nn.tail import block_tail
from v2r_core.nn.vit import init_weights


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens.

    Parameters are named as in the released checkpoints: `predictor_embed`, `mask_token` (I-JEPA) or `mask_tokens.<i>`
    (V-JEPA), `predictor_pos_embed` unless positions are rotary, `predictor_blocks.<i>.*`, `predictor_norm`,
    `predictor_proj`.

    Args:
        embedding_dim: width D of the encoder's tokens.
        width: width of the predictor.
        depth: number of blocks, at least 1.
        heads: attention heads; must divide `width`.
        grid: frames, rows and columns of patches; one frame for images.
        positions: `sincos`, a fixed table, column first for images and 3-D for clips; or `rotary` (V-JEPA 2).
        mask_tokens: how many kinds of masks have a learned token each; None for the single, unnumbered one of I-JEPA.

    Raises:
        ValueError: `width` is no multiple of `heads`, or there is no block.
    """

    def __init__(
        self,
        embedding_dim: int,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int, int],
        *,
        positions: Literal["sincos", "rotary"] = "sincos",
        mask_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads or depth < 1:
            raise ValueError(
                f"predictor width {width}, depth {depth}, {heads} heads: heads must divide width, depth be 1 or more"
            )
        self.rotary = positions == "rotary"
        self.predictor_embed = nn.Linear(embedding_dim, width)
        if mask_tokens is None:
            self.mask_token = nn.Parameter(torch.empty(1, 1, width))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        else:
            # V-JEPA's start at zero.
            self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, width) for _ in range(mask_tokens))
        if not self.rotary:
            table = sincos_2d(width, grid[1:], "column") if mask_tokens is None else sincos_3d(width, grid)
            self.predictor_pos_embed = nn.Parameter(torch.from_numpy(table).float()[None], requires_grad=False)
        places = grid[1:] if self.rotary else None
        self.predictor_blocks = nn.ModuleList(Block(width, heads, rotary=places) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(width, embedding_dim)
        init_weights(self)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor, kind: int = 0) -> Tensor:
        """Predicts the tokens at some positions.

        The order of tokens does not matter to a transformer whose tokens know their positions, so V-JEPA 2's sorting of
        them is left out.

        Args:
            context: the encoder's tokens, (B, K, D).
            context_index: where they are, int64 (B, K).
            target_index: where to predict, int64 (R * B, P). R > 1 makes R predictions from the same context that do
                not see each other: rows r * B ... r * B + B - 1 are the r-th of each sample (I-JEPA).
            kind: which of V-JEPA's mask tokens stands for the targets.

        Returns:
            (R * B, P, D), in the order of `target_index`.
        """
        tokens = self.predictor_embed(context)
        token = self.mask_tokens[kind] if hasattr(self, "mask_tokens") else self.mask_token
        repeats, count = len(target_index) // len(context), target_index.shape[1]
        places: Tensor | None = None
        if self.rotary:
            queries = token.expand(len(target_index), count, -1)
            places = torch.cat([context_index.repeat(repeats, 1), target_index], dim=1)
        else:
            table = self.predictor_pos_embed[0]
            tokens = tokens + table[context_index]
            queries = token + table[target_index]
        tokens = torch.cat([tokens.repeat(repeats, 1, 1), queries.to(tokens.dtype)], dim=1)
        *before, last = cast(list[Block], list(self.predictor_blocks))
        for block in before:
            tokens = block(tokens, places)
        return self.predictor_proj(self.predictor_norm(block_tail(last, tokens, count, places)))


def at_targets(tokens: Tensor, target_index: Tensor) -> Tensor:
    """An encoder's tokens (B, N, D) at the positions (R * B, P) that a predictor was asked for: (R * B, P, D)."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    return tokens[rows, target_index.unflatten(0, (-1, len(tokens)))].flatten(0, 1)
