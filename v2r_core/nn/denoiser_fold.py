"""The denoiser of Diffusion Reward with everything computed beforehand that does not depend on the noised tokens.

A chain calls the network many times with the same condition. What the network makes of it before the first attention
is linear in tables that no longer change after training: the key of a condition token is the key of its code plus the
key of its place. So keys and values of all codes and places are tables, and so are scale and shift of all steps. The
outputs are the same to rounding; the projections of the condition, 43 % of the released network's multiplications, and
those of the steps are gone from every call, the first included.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from v2r_core.nn.denoiser import Attention, DenoiserBlock, DiffusionModel, log_distribution, modulated


class FoldedAttention(nn.Module):
    """Attention to a condition, whose keys and values are looked up.

    Args:
        attention: as trained; its query and output projections are shared.
        codes: embeddings of the codes, (K, C).
        places: embeddings of the places, (M, C), None for none.
    """

    keys: Tensor
    values: Tensor
    place_keys: Tensor
    place_values: Tensor

    def __init__(self, attention: Attention, codes: Tensor, places: Tensor | None) -> None:
        super().__init__()
        self.attention = attention
        self.placed = places is not None
        self.register_buffer("keys", attention.key(codes))
        self.register_buffer("values", attention.value(codes))
        if places is not None:
            # The bias is in the codes' part already.
            self.register_buffer("place_keys", places @ attention.key.weight.T)
            self.register_buffer("place_values", places @ attention.value.weight.T)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens (N, L, D) and codes int64 (N, M) to (N, L, D)."""
        keys, values = self.keys[condition], self.values[condition]
        if self.placed:
            keys, values = keys + self.place_keys, values + self.place_values
        return self.attention.attend(tokens, keys, values)


class FoldedBlock(nn.Module):
    """A block with its tables."""

    self_steps: Tensor
    cross_steps: Tensor

    def __init__(self, block: DenoiserBlock, codes: Tensor, places: Tensor | None, steps: Tensor) -> None:
        super().__init__()
        self.attn1, self.ln2, self.mlp = block.attn1, block.ln2, block.mlp
        self.attn2 = FoldedAttention(block.attn2, codes, places)
        self.register_buffer("self_steps", block.ln1.scale_and_shift(steps))
        self.register_buffer("cross_steps", block.ln1_1.scale_and_shift(steps))

    def forward(self, tokens: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Tokens (N, L, D), steps int64 (N,) and codes int64 (N, M) to tokens."""
        normed = modulated(tokens, self.self_steps[t])
        tokens = tokens + self.attn1(normed, normed)
        tokens = tokens + self.attn2(modulated(tokens, self.cross_steps[t]), condition)
        refined: Tensor = tokens + self.mlp(self.ln2(tokens))
        return refined


class FoldedDenoiser(nn.Module):
    """`DiffusionModel` for inference; its weights must not change afterwards.

    Args:
        model: as trained.
    """

    @torch.no_grad()
    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        embedding = model.condition_emb
        steps = torch.arange(model.config.steps, device=embedding.emb.weight.device)
        self.content_emb = model.transformer.content_emb
        self.blocks = nn.ModuleList(
            [
                FoldedBlock(cast(DenoiserBlock, block), embedding.emb.weight, embedding.positions(), steps)
                for block in model.transformer.blocks
            ]
        )
        self.to_logits = model.transformer.to_logits

    def forward(self, tokens: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """As `DiffusionModel.forward`, but with the softmax in float32, as run-times on robots have it."""
        hidden = self.content_emb(tokens)
        for block in self.blocks:
            hidden = block(hidden, t, condition)
        return log_distribution(self.to_logits(hidden).transpose(1, 2).log_softmax(dim=1))
