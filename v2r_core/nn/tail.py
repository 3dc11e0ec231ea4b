"""The last block of a transformer, of which only some tokens are needed."""

from __future__ import annotations

from typing import cast

import torch
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
    tail = tokens[:, -count:] + _attended_by_last(block, tokens, count, places)
    return tail + block.mlp(block.norm2(tail))


def class_token(block: Block, tokens: Tensor) -> Tensor:
    """The first token of a block's output, without computing the others.

    The result is that of `block(tokens)[:, 0]` up to rounding, stochastic depth included.

    Args:
        block: a block with plain attention.
        tokens: (B, L, D).

    Returns:
        (B, D).
    """
    if block.training and block.rate and block.drop_subset:
        # It computes a part of the samples only, which saves as much.
        return block(tokens)[:, 0]
    first = block.add(tokens[:, :1], block.ls1(_attended_by_first(block, tokens)))
    return block.add(first, block.ls2(block.mlp(block.norm2(first))))[:, 0]


def _attended_by_first(block: Block, tokens: Tensor) -> Tensor:
    """What the first of the tokens (B, L, D) gets from all of them by attention, (B, 1, D).

    One query needs neither keys nor values of all tokens: q . (W x + b) is (W^T q) . x and a number that is the same
    for all x, which the softmax does not see; and a weighted mean of (W x + b) is W times the mean of the x, and b.
    """
    qkv, heads = cast(nn.Linear, block.attn.qkv), block.heads
    of_query, of_key, of_value = qkv.weight.chunk(3)
    query_bias, _, value_bias = qkv.bias.chunk(3)
    normed = block.norm1(tokens)
    query = functional.linear(normed[:, 0], of_query, query_bias).unflatten(-1, (heads, -1))
    asked = torch.einsum("bhd,hdw->bhw", query * query.shape[-1] ** -0.5, of_key.unflatten(0, (heads, -1)))
    weights = (asked @ normed.transpose(1, 2)).softmax(dim=-1)
    mixed = torch.einsum("bhw,hdw->bhd", weights @ normed, of_value.unflatten(0, (heads, -1)))
    return cast(nn.Linear, block.attn.proj)(mixed.flatten(1) + value_bias)[:, None]


def _attended_by_last(block: Block, tokens: Tensor, count: int, places: Tensor | None) -> Tensor:
    """What the last of the tokens (B, L, D) get from all of them by attention, (B, count, D)."""
    qkv, proj = cast(nn.Linear, block.attn.qkv), cast(nn.Linear, block.attn.proj)
    width = tokens.shape[-1]
    normed = block.norm1(tokens)
    queries = functional.linear(normed[:, -count:], qkv.weight[:width], qkv.bias[:width])
    rest = functional.linear(normed, qkv.weight[width:], qkv.bias[width:])
    query, key, value = (
        part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (queries, *rest.chunk(2, dim=-1))
    )
    if places is not None:
        grid = cast(tuple[int, int], block.attn.grid)
        query, key = rotate_axes(query, places[:, -count:], grid), rotate_axes(key, places, grid)
    return proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
