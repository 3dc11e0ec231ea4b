"""Transformer blocks: pre-norm, with timm's attention, MLP and LayerScale, and what timm lacks."""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import LayerScale, Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.positions import rotate_axes

LAYER_NORM_EPS = 1e-6


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x), DINOv2's MLP under its own parameter names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., D) to tokens (..., D)."""
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys carry their place in frame, row and column (V-JEPA 2)."""

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Tokens (B, L, D) with their flat patch indices (L,) or (B, L) to tokens (B, L, D)."""
        query, key, value = split_heads(self.qkv(tokens), self.heads)
        query, key = (rotate_axes(part, places, self.grid) for part in (query, key))
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        width: channels D.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        layer_scale: initial value of LayerScale; None for none.
        swiglu: SwiGLU instead of a GELU MLP.
        drop_path: rate of stochastic depth.
        drop_subset: drop a random subset of fixed size of the batch (DINOv2), not each sample by chance.
        rotary: rows and columns of patches for rotary positions; None for plain attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        layer_scale: float | None = None,
        swiglu: bool = False,
        drop_path: float = 0.0,
        drop_subset: bool = False,
        rotary: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn: nn.Module = (
            Attention(width, heads, qkv_bias=True) if rotary is None else RotaryAttention(width, heads, rotary)
        )
        self.ls1 = LayerScale(width, layer_scale) if layer_scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp: nn.Module = SwiGLU(width, hidden) if swiglu else Mlp(width, hidden)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale is not None else nn.Identity()
        self.heads = heads
        self.rate = drop_path
        self.drop_subset = drop_subset

    def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D), with flat patch indices where positions are rotary, to tokens (B, L, D)."""
        tokens = self._residual(tokens, places, attention=True)
        return self._residual(tokens, places, attention=False)

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Softmax weights of this block's plain attention on tokens (B, L, D), shape (B, heads, L, L)."""
        attention = cast(Attention, self.attn)
        query, key, _ = split_heads(attention.qkv(self.norm1(tokens)), self.heads)
        return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)

    def _branch(self, tokens: Tensor, places: Tensor | None, attention: bool) -> Tensor:
        if not attention:
            return self.ls2(self.mlp(self.norm2(tokens)))
        normed = self.norm1(tokens)
        return self.ls1(self.attn(normed) if places is None else self.attn(normed, places))

    def _residual(self, tokens: Tensor, places: Tensor | None, attention: bool) -> Tensor:
        if not self.training or self.rate == 0.0:
            return tokens + self._branch(tokens, places, attention)
        batch = len(tokens)
        if self.drop_subset:
            # The dropped samples are not computed at all; what is left is scaled to keep the expectation.
            kept = max(int(batch * (1 - self.rate)), 1)
            chosen = torch.randperm(batch, device=tokens.device)[:kept]
            where = places if places is None or places.ndim == 1 else places[chosen]
            branch = self._branch(tokens[chosen], where, attention)
            return torch.index_add(tokens, 0, chosen, branch.to(tokens.dtype), alpha=batch / kept)
        return self.add(tokens, self._branch(tokens, places, attention))

    def add(self, tokens: Tensor, branch: Tensor) -> Tensor:
        """Tokens (B, L, D) plus a branch of the same shape, left out sample by sample where depth is stochastic."""
        if not self.training or self.rate == 0.0:
            return tokens + branch
        keep = 1 - self.rate
        alive = torch.empty(len(tokens), 1, 1, dtype=tokens.dtype, device=tokens.device).bernoulli_(keep) / keep
        return tokens + alive * branch


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fused queries, keys and values (B, L, 3 D) to three tensors (B, heads, L, D / heads)."""
    batch, length, width = qkv.shape
    query, key, value = qkv.reshape(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    return query, key, value
