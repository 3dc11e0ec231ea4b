"""One vision transformer for all methods, chosen by flags; parameters have the names of the released checkpoints.

Pre-norm blocks: x + proj(attention(norm1(x))), then x + mlp(norm2(x)); LayerNorm with eps 1e-6; attention, MLP and
LayerScale are timm's. What differs between the systems is in `ViTConfig`:

| | class token | positions | else |
|---|---|---|---|
| DINO | yes | learned, resampled with an offset | drop path |
| DINOv2 | yes | learned | LayerScale, mask token, registers, SwiGLU, drop path on a subset of the batch |
| MAE | yes | sin-cos, column first | encodes the kept patches only |
| MoCo v3 | yes | sin-cos, row first | |
| I-JEPA | no | sin-cos, column first | encodes the context only |
| V-JEPA | no | sin-cos in 3-D | tubelets |
| V-JEPA 2 | no | rotary in 3-D | tubelets |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.nn.block import LAYER_NORM_EPS, Block
from v2r_core.nn.positions import (
    Order,
    Resampling,
    resample_table,
    resample_table_3d,
    sincos_2d,
    sincos_3d,
)
from v2r_core.nn.tail import class_token

ARCHITECTURES = {
    "mini": (192, 4, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
    "giant2": (1536, 40, 24),
}
"""Name to width, depth and heads. `giant` is I-JEPA's and V-JEPA's, `giant2` DINOv2's; `mini` is ours, for a CPU."""


@dataclass(frozen=True)
class ViTConfig:
    """Everything that tells one vision transformer from another.

    Attributes:
        size: side of the square input in pixels that the position table is made for.
        patch: side of a patch in pixels.
        width: channels D of a token.
        depth: number of blocks.
        heads: attention heads; must divide `width`.
        mlp_ratio: hidden width of the MLP over D.
        frames: frames of a clip; 1 for images.
        tubelet: frames that one token of a clip covers; 1 for images.
        class_token: put a class token in front.
        registers: register tokens behind the class token; they get no position.
        positions: `learned`, `sincos` (fixed; 3-D for clips) or `rotary` (V-JEPA 2).
        order: which index the first half of a 2-D sin-cos table encodes.
        resampling: how a learned table is brought to another grid.
        layer_scale: initial value of LayerScale; None for no LayerScale.
        swiglu: SwiGLU instead of the GELU MLP; hidden width two thirds of it, rounded up to a multiple of 8.
        drop_path: largest rate of stochastic depth.
        drop_path_uniform: the same rate in all blocks, on a random subset of the batch (DINOv2); otherwise it rises
            linearly with depth, decided sample by sample.
        mask_token: learn a token that replaces masked patches before positions are added (DINOv2).
        pool: what `forward` returns: the `cls` token, or the `mean` of the patch tokens, each after the last norm.
    """

    size: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    frames: int = 1
    tubelet: int = 1
    class_token: bool = True
    registers: int = 0
    positions: Literal["learned", "sincos", "rotary"] = "learned"
    order: Order = "column"
    resampling: Resampling = "offset"
    layer_scale: float | None = None
    swiglu: bool = False
    drop_path: float = 0.0
    drop_path_uniform: bool = False
    mask_token: bool = False
    pool: Literal["cls", "mean"] = "cls"

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(f"image side {self.size} is no multiple of the patch side {self.patch}")
        if self.frames % self.tubelet:
            raise ValueError(f"{self.frames} frames are no multiple of the {self.tubelet} that a token covers")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of the {self.heads} heads")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool is 'cls', but there is no class token; use pool='mean'")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches that the position table is made for."""
        side = self.size // self.patch
        return self.frames // self.tubelet, side, side

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        return int(self.class_token) + self.registers


class Architecture(TypedDict):
    """Size of a transformer."""

    width: int
    depth: int
    heads: int


def architecture(name: str) -> Architecture:
    """Width, depth and heads of a named size, as keyword arguments for `ViTConfig`.

    Raises:
        ValueError: no such size.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no vision transformer {name!r}; there are {', '.join(ARCHITECTURES)}")
    width, depth, heads = ARCHITECTURES[name]
    return {"width": width, "depth": depth, "heads": heads}


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: patches of images, or tubelets of clips, to tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.tubelet = config.tubelet if config.frames > 1 else 0
        if self.tubelet:
            kernel3 = (config.tubelet, config.patch, config.patch)
            self.proj: nn.Module = nn.Conv3d(3, config.width, kernel3, kernel3)
        else:
            self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, tuple[int, int, int]]:
        """Images (B, 3, H, W) or clips (B, 3, T, H, W) to tokens (B, N, D), and their grid of frames, rows, columns.

        With `keep`, int64 (B, K), only these patches are embedded: (B, K, D).
        """
        if keep is None:
            planes = self.proj(images)
            grid = (1, *planes.shape[-2:]) if planes.ndim == 4 else tuple(planes.shape[-3:])
            return planes.flatten(2).transpose(1, 2), cast(tuple[int, int, int], grid)
        # A matrix product of what is kept takes less than a convolution of everything.
        weight = cast(Tensor, self.proj.weight)
        cells = images
        for axis, side in enumerate(weight.shape[2:]):
            cells = cells.unflatten(2 + 2 * axis, (-1, side))
        grid = (*(1,) * (5 - weight.ndim), *cells.shape[2:-1:2])
        order = (0, *range(2, cells.ndim, 2), 1, *range(3, cells.ndim, 2))
        patches = cells.permute(order).reshape(len(images), math.prod(grid), -1)
        tokens = functional.linear(take(patches, keep), weight.flatten(1), cast(Tensor, self.proj.bias))
        return tokens, cast(tuple[int, int, int], grid)


class VisionTransformer(nn.Module):
    """The transformer that `ViTConfig` describes.

    Parameters are named as in the released checkpoints: `patch_embed.proj`, `cls_token`, `register_tokens`,
    `mask_token`, `pos_embed`, `blocks.<i>.*`, `norm`. Fixed tables are parameters without gradient, as there.

    Args:
        config: all choices.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding_dim = config.width
        width, grid = config.width, config.grid
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.positions != "rotary":
            self.pos_embed = nn.Parameter(*_table(config))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        rates = [config.drop_path] * config.depth
        if not config.drop_path_uniform:
            rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.mlp_ratio,
                layer_scale=config.layer_scale,
                swiglu=config.swiglu,
                drop_path=rate,
                drop_subset=config.drop_path_uniform,
                rotary=grid[1:] if config.positions == "rotary" else None,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) or clips (B, 3, T, H, W) to one embedding each, (B, D), as `config.pool` says."""
        if self.config.pool == "cls":
            return self.class_tokens(images)
        return self.tokens(images)[:, self.config.prefix :].mean(dim=1)

    def tokens(self, images: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """All tokens after the last norm.

        Args:
            images: (B, 3, H, W), or (B, 3, T, H, W) for a transformer of clips. Sides are multiples of the patch.
            keep: flat indices of the patches to encode, int64 (B, K); the others are dropped after positions were
                added. None for all.
            mask: bool (B, N), True where the mask token stands in for a patch. None for nowhere.

        Returns:
            (B, prefix + K or N, D): class token, registers, patches in the order of `keep` or row-major.
        """
        return self.norm(self._run(images, keep, mask, last=0)[0])

    def class_tokens(self, images: Tensor) -> Tensor:
        """Class tokens (B, D) of images (B, 3, H, W) after the last norm, `tokens(images)[:, 0]` for less work.

        The last block computes nothing but them.
        """
        tokens, _ = self._embed(images, None, None)
        *before, final = cast(list[Block], list(self.blocks))
        for block in before:
            tokens = block(tokens)
        return self.norm(class_token(final, tokens))

    def last_tokens(self, images: Tensor, count: int) -> list[Tensor]:
        """Outputs of the last `count` blocks, each after the last norm, (B, prefix + N, D), in the order of depth."""
        return [self.norm(tokens) for tokens in self._run(images, None, None, last=count)[1]]

    def last_attention(self, images: Tensor) -> Tensor:
        """Attention weights of the last block, (B, heads, L, L)."""
        tokens, places = self._embed(images, None, None)
        *before, final = cast(list[Block], list(self.blocks))
        for block in before:
            tokens = block(tokens, places)
        return final.attention_weights(tokens)

    def position_table(self, grid: tuple[int, int, int]) -> Tensor:
        """The table for a grid of frames, rows and columns: (1, N, D), with the class token's row in front if any."""
        count = int(self.config.class_token)
        front, table = self.pos_embed[:, :count], self.pos_embed[:, count:]
        if self.config.frames > 1:
            return resample_table_3d(table, self.config.grid, grid)
        if self.config.positions == "sincos" and grid != self.config.grid:
            exact = sincos_2d(self.config.width, grid[1:], self.config.order)
            table = torch.from_numpy(exact).to(table)[None]
        else:
            table = resample_table(table, self.config.grid[1:], grid[1:], self.config.resampling)
        return torch.cat([front, table], dim=1)

    @torch.no_grad()
    def resized(self, size: int) -> VisionTransformer:
        """A copy for images of another side in pixels, with the position table brought to it once and for all."""
        config = dataclasses.replace(self.config, size=size)
        with torch.device("meta"):
            other = VisionTransformer(config)
        state = dict(self.state_dict())
        if config.positions != "rotary":
            state["pos_embed"] = self.position_table(config.grid)
        other.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
        return other.train(self.training)

    def _run(self, images: Tensor, keep: Tensor | None, mask: Tensor | None, last: int) -> tuple[Tensor, list[Tensor]]:
        tokens, places = self._embed(images, keep, mask)
        outputs = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, places)
            if number >= len(self.blocks) - last:
                outputs.append(tokens)
        return tokens, outputs

    def _embed(self, images: Tensor, keep: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        tokens, grid = self.patch_embed(images, keep if mask is None else None)
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
            tokens = tokens if keep is None else take(tokens, keep)
        places: Tensor | None = None
        front: list[Tensor] = []
        if config.positions == "rotary":
            places = torch.arange(tokens.shape[1], device=tokens.device) if keep is None else keep
            if grid[1:] != config.grid[1:]:
                raise ValueError(f"a frame has {grid[1:]} patches, {config.grid[1:]} expected; rotary places need that")
        else:
            table = self.position_table(grid)
            count = int(config.class_token)
            tokens = tokens + (table[:, count:] if keep is None else table[0, count:][keep])
            if count:
                front = [(self.cls_token + table[:, :1]).expand(tokens.shape[0], -1, -1)]
        if config.registers:
            front.append(self.register_tokens.expand(tokens.shape[0], -1, -1))
        return torch.cat([*front, tokens], dim=1) if front else tokens, places


def with_table_for(network: VisionTransformer, state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """A state whose learned position table, made for a square of another size, is brought to a network's.

    Args:
        network: that the state is meant for.
        state: of a network that differs in size at most.
        key: of the table in the state. A table of another kind is left as it is, for the loader to refuse.

    Returns:
        a copy of the state, or of its references.
    """
    state = dict(state)
    table, front = state.get(key), int(network.config.class_token)
    if not isinstance(table, Tensor) or table.ndim != 3:
        return state
    side = math.isqrt(max(table.shape[1] - front, 0))
    if side and side * side == table.shape[1] - front:
        grid = network.config.grid[1:]
        patches = resample_table(table[:, front:], (side, side), grid, network.config.resampling)
        state[key] = torch.cat([table[:, :front], patches], dim=1)
    return state


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, N, D) at indices (B, K), int64: (B, K, D)."""
    return torch.gather(tokens, 1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def init_weights(network: nn.Module, std: float = 0.02) -> None:
    """DINO's initial weights: truncated normal for linear layers and tables, zero biases, tiny noise for tokens.

    Convolutions keep torch's own. Methods with another way apply it on top.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if (name == "pos_embed" and parameter.requires_grad) or name == "cls_token":
            nn.init.trunc_normal_(parameter, std=std)
        elif name == "register_tokens":
            nn.init.normal_(parameter, std=1e-6)


def _table(config: ViTConfig) -> tuple[Tensor, bool]:
    """The initial position table (1, rows, D), and whether it learns."""
    front = int(config.class_token)
    if config.positions == "learned":
        frames, rows, columns = config.grid
        return torch.zeros(1, front + frames * rows * columns, config.width), True
    if config.frames > 1:
        table = sincos_3d(config.width, config.grid)
    else:
        table = sincos_2d(config.width, config.grid[1:], config.order, prefix=front)
    return torch.from_numpy(table).float()[None], False
