"""What MoCo v3 (Chen, Xie & He 2021) has beyond MoCo: heads on transformers and ResNets, initial weights, the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.batch_norm import GlobalBatchNorm
from v2r_core.nn.projection import mocov3_head
from v2r_core.nn.resnet import ResNet, zero_last_scales
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture

SMALL_HEADS = 12
"""MoCo v3's ViT-S has twice as many attention heads as everybody else's."""


class ProjectedViT(VisionTransformer):
    """A vision transformer with a projector, `head`, behind its class token.

    Args:
        config: of the transformer.
        hidden: hidden channels of the projector.
        dim: channels that come out.
        freeze_patch: do not train the patch embedding (section 4.2).
    """

    def __init__(self, config: ViTConfig, hidden: int, dim: int, freeze_patch: bool) -> None:
        super().__init__(config)
        init_mocov3_vit(self)
        self.head = mocov3_head(3, config.width, hidden, dim)
        self.patch_embed.requires_grad_(not freeze_patch)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to projections (N, dim)."""
        return self.head(super().forward(images))


def vit_config(name: str, size: int, patch: int) -> ViTConfig:
    """MoCo v3's transformer: class token, fixed positions that encode the row first.

    Args:
        name: `vit-` and a name of `v2r_core.nn.vit.ARCHITECTURES`.
        size: side of the images in pixels.
        patch: side of a patch in pixels.
    """
    shape = architecture(name.removeprefix("vit-"))
    if name == "vit-small":
        shape["heads"] = SMALL_HEADS
    return ViTConfig(size=size, patch=patch, positions="sincos", order="row", **shape)


def projected_resnet(depth: int, width: float, hidden: int, dim: int) -> ResNet:
    """A ResNet with a projector of two layers as `fc`, batch norms over all processes, blocks that start as identity.

    Args:
        depth: of the ResNet.
        width: factor on its channels.
        hidden: hidden channels of the projector.
        dim: channels that come out.
    """
    network = ResNet(depth, width, GlobalBatchNorm)
    zero_last_scales(network)
    network.fc = mocov3_head(2, network.embedding_dim, hidden, dim)
    return network


def init_mocov3_vit(network: VisionTransformer) -> None:
    """The released initial weights, in place: Xavier for matrices, queries, keys and values each by themselves."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            if name.endswith("qkv"):
                rows, columns = module.weight.shape
                bound = math.sqrt(6 / (rows // 3 + columns))
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    embedding = network.patch_embed.proj
    assert isinstance(embedding, nn.Conv2d) and embedding.bias is not None
    bound = math.sqrt(6 / (embedding.weight[0].numel() + len(embedding.weight)))
    nn.init.uniform_(embedding.weight, -bound, bound)
    nn.init.zeros_(embedding.bias)
    nn.init.normal_(network.cls_token, std=1e-6)


def mocov3_logits(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosines over temperature, (N, M), of queries (N, D) and keys (M, D)."""
    return functional.normalize(queries, dim=1) @ functional.normalize(keys, dim=1).T / temperature


def mocov3_loss(queries: Tensor, keys: Tensor, temperature: float, first: int = 0) -> Tensor:
    """InfoNCE of one direction, times 2 T (algorithm 1).

    Args:
        queries: this process's, (N, D); they need not be normalised.
        keys: of all processes, (M, D), without gradient.
        temperature: T.
        first: row of `keys` that belongs to the first query: N times the rank.

    Returns:
        scalar.
    """
    logits = mocov3_logits(queries, keys, temperature)
    labels = torch.arange(first, first + len(queries), device=queries.device)
    return functional.cross_entropy(logits, labels) * (2 * temperature)
