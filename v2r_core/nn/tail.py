"""The last block of a transformer, of which only some tokens are needed."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.block import Block
from v2r_core.nn.positions import rotate_axes


def block_tail(block: Block, tokens: Tensor, count: int, places: Tensor | None = None) -> Tensor:
    """The last tokens of a block's output, without computing the others.

    All tokens are attended to, hence need keys and values; queries, projection and MLP are computed for the wanted
    tokens only. The result is that of `block(tokens, places)[:, -count:]` up to rounding.

    Args:
        block: a block without LayerScale and stochastic depth.
        tokens: (B, L, D).
        count: how many tokens, from the end, are wanted.
        places: flat patch indices (B, L) where positions are rotary.

    Returns:
        (B, count, D).
    """
    tail = tokens[:, -count:] + _attended(block, tokens, slice(-count, None), places)
    return tail + block.mlp(block.norm2(tail))


def block_front(block: Block, tokens: Tensor, count: int) -> Tensor:
    """The first tokens of a block's output, the class token say, without computing the others.

    The result is that of `block(tokens)[:, :count]` up to rounding, stochastic depth included.

    Args:
        block: a block with plain attention.
        tokens: (B, L, D).
        count: how many tokens, from the start, are wanted.

    Returns:
        (B, count, D).
    """
    if block.training and block.rate and block.drop_subset:
        # It computes a part of the samples only, which saves as much.
        return block(tokens)[:, :count]
    front = block.add(tokens[:, :count], block.ls1(_attended(block, tokens, slice(count), None)))
    return block.add(front, block.ls2(block.mlp(block.norm2(front))))


def _attended(block: Block, tokens: Tensor, wanted: slice, places: Tensor | None) -> Tensor:
    """What the wanted ones of the tokens (B, L, D) get from all of them by attention, (B, wanted, D)."""
    qkv, proj = cast(nn.Linear, block.attn.qkv), cast(nn.Linear, block.attn.proj)
    width = tokens.shape[-1]
    normed = block.norm1(tokens)
    queries = functional.linear(normed[:, wanted], qkv.weight[:width], qkv.bias[:width])
    rest = functional.linear(normed, qkv.weight[width:], qkv.bias[width:])
    query, key, value = (
        part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (queries, *rest.chunk(2, dim=-1))
    )
    if places is not None:
        grid = cast(tuple[int, int], block.attn.grid)
        query, key = rotate_axes(query, places[:, wanted], grid), rotate_axes(key, places, grid)
    return proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
