"""MAE's decoder."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from v2r_core.nn.block import LAYER_NORM_EPS, Block
from v2r_core.nn.positions import sincos_2d
from v2r_core.nn.tail import block_tail
from v2r_core.nn.vit import ViTConfig


class Decoder(nn.Module):
    """All patches, masked ones as a learned token, to pixels (section 3, "MAE decoder").

    Args:
        encoder: what it decodes.
        width: channels.
        depth: number of blocks, at least 1.
        heads: attention heads; must divide `width`.

    Raises:
        ValueError: `width` is no multiple of `heads`, or there is no block.
    """

    def __init__(self, encoder: ViTConfig, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads or depth < 1:
            raise ValueError(
                f"decoder width {width}, depth {depth}, {heads} heads: heads must divide the width, depth be 1 or more"
            )
        self.decoder_embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = torch.from_numpy(sincos_2d(width, encoder.grid[1:], "column", prefix=1)).float()[None]
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(width, encoder.patch**2 * 3)

    def forward(self, latent: Tensor, order: Tensor, masked_only: bool = True) -> Tensor:
        """Predicts patches from the encoder's tokens.

        Tokens know their positions, so they stay in the order of the shuffle, the kept ones first.

        Args:
            latent: class token and K kept patches, (N, 1 + K, D).
            order: shuffled patch indices, int64 (N, L), the kept ones first.
            masked_only: predict only what the loss needs.

        Returns:
            (N, L - K, pixels of a patch), in the order of `order[:, K:]`; or (N, L, ...), in the order of `order`.
        """
        count = latent.shape[1] - 1
        places = self.decoder_pos_embed[0, 1:][order]
        tokens = self.decoder_embed(latent)
        tokens = torch.cat(
            [
                tokens[:, :1] + self.decoder_pos_embed[:, :1],
                tokens[:, 1:] + places[:, :count],
                self.mask_token + places[:, count:],
            ],
            dim=1,
        )
        *before, last = cast(list[Block], list(self.decoder_blocks))
        for block in before:
            tokens = block(tokens)
        wanted = order.shape[1] - (count if masked_only else 0)
        return self.decoder_pred(self.decoder_norm(block_tail(last, tokens, wanted)))
