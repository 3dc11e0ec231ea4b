"""Attentive pooling: how V-JEPA reads a frozen encoder (section 4, appendix C)."""

from __future__ import annotations

import math
from typing import cast

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.block import Block
from v2r_core.nn.vit import init_weights

POOLER_EPS = 1e-5
"""Of all layer norms in here, unlike the encoder's 1e-6."""


class CrossAttention(nn.Module):
    """Queries attend to tokens.

    The released module creates an output projection and never applies it. It is here so that checkpoints load, and
    gets no gradient.

    Args:
        width: channels D.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width).requires_grad_(False)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Queries (B, Q, D) and tokens (B, L, D) to (B, Q, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(queries), *self.kv(tokens).chunk(2, dim=-1))
        )
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class CrossAttentionBlock(nn.Module):
    """Cross-attention and an MLP, each with a residual; tokens are normed, queries are not."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=POOLER_EPS)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=POOLER_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Queries (B, Q, D) and tokens (B, L, D) to (B, Q, D)."""
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """One learned query that attends to all tokens, then `depth` - 1 ordinary blocks on it."""

    def __init__(self, width: int, heads: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = CrossAttentionBlock(width, heads, mlp_ratio)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth - 1))
        for block in self.blocks:
            for norm in (block.norm1, block.norm2):
                cast(nn.LayerNorm, norm).eps = POOLER_EPS

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, D) to one vector each, (B, D)."""
        query = self.cross_attention_block(self.query_tokens.expand(len(tokens), -1, -1), tokens)
        for block in self.blocks:
            query = block(query)
        return query[:, 0]


class AttentiveProbe(nn.Module):
    """Attentive pooling and a linear layer on frozen tokens: V-JEPA's probe under its released parameter names.

    Args:
        width: channels D of the tokens.
        classes: outputs.
        heads: attention heads, the encoder's as a rule; must divide `width`.
        depth: one cross-attention block, and `depth` - 1 ordinary blocks after it.
        mlp_ratio: hidden width of the MLPs over D.

    Raises:
        ValueError: `width` is no multiple of `heads`, or `depth` is below 1.
    """

    def __init__(self, width: int, classes: int, heads: int = 12, depth: int = 1, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if width % heads or depth < 1:
            raise ValueError(
                f"width {width} with {heads} heads and depth {depth}: heads must divide the width, depth be 1 or more"
            )
        self.pooler = AttentivePooler(width, heads, depth, mlp_ratio)
        self.linear = nn.Linear(width, classes)
        init_weights(self.pooler)
        nn.init.trunc_normal_(self.pooler.query_tokens, std=0.02)
        # The released encoders undo their division by depth; the pooler keeps it.
        branches = [(1, self.pooler.cross_attention_block.mlp.fc2)]
        for number, block in enumerate(cast(list[Block], list(self.pooler.blocks)), start=2):
            branches += [(number, cast(nn.Linear, block.attn.proj)), (number, cast(nn.Linear, block.mlp.fc2))]
        for number, layer in branches:
            layer.weight.data.div_(math.sqrt(2.0 * number))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, D) to logits (B, classes)."""
        return self.linear(self.pooler(tokens))
