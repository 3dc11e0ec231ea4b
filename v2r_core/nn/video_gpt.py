"""VIPER's transformer (Escontrela et al., NeurIPS 2023, section 3.1): the next token of a video, given all before it.

    code vectors -> Dense -> right shift -> + positions (t, h, w) -> causal blocks -> LN -> Dense -> logits over codes

The input are frozen code vectors, not learned token embeddings. With classes, all scales and biases of the layer norms
come from the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYER_NORM_EPS = 1e-6
_TABLE_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class VideoGPTConfig:
    """Sizes of the transformer.

    Attributes:
        frames: of a window, T.
        grid: side of a frame's tokens: L = grid * grid a frame.
        codes: entries of the code table, K.
        code_dim: length of a code vector, z.
        classes: that it is conditioned on, 0 for none.
        width: channels, a multiple of heads.
        heads: of the attention.
        layers: number of blocks.
        mlp: channels of the hidden layer of a block.
        dropout: of what attention and MLP add, while training.

    Raises:
        ValueError: a number out of its range.
    """

    frames: int = 16
    grid: int = 8
    codes: int = 256
    code_dim: int = 64
    classes: int = 0
    width: int = 256
    heads: int = 8
    layers: int = 8
    mlp: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("frames", "grid", "codes", "code_dim", "heads", "layers", "mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        if self.width < self.heads or self.width % self.heads:
            raise ValueError(f"width is {self.width}, a multiple of heads ({self.heads}) expected")
        if self.classes < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"classes is {self.classes}, dropout {self.dropout}; from 0, and in [0, 1), expected")


class VideoGPT(nn.Module):
    """The transformer. Initial values are ours: as Flax's defaults for matrices, N(0, 0.02) for tables.

    Args:
        config: its sizes.
    """

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.code_dim, width)
        self.start = nn.Parameter(torch.randn(width) * _TABLE_STD)
        sizes = (config.frames, config.grid, config.grid)
        parts = split_channels(width, len(sizes))
        tables = [torch.randn(size, part) * _TABLE_STD for size, part in zip(sizes, parts, strict=True)]
        self.positions = nn.ParameterList([nn.Parameter(table) for table in tables])
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm = ClassNorm(width, config.classes)
        self.head = nn.Linear(width, config.codes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, vectors: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predicts every token from those before it.

        Args:
            vectors: code vectors (N, T', L, z), T' at most `frames`; tokens of a frame are row-major.
            labels: int64 (N,); with -1 all scales are 1 and all biases 0. Needed if there are classes.

        Returns:
            logits (N, T', L, K): those of a token do not depend on it, nor on any after it.

        Raises:
            ValueError: labels without classes, or classes without labels.
        """
        if (labels is not None) != bool(self.config.classes):
            raise ValueError(
                f"labels {'given' if labels is not None else 'missing'}, but the network has {self.config.classes} "
                "classes; give labels if and only if there are classes"
            )
        shape = vectors.shape[:3]
        tokens = self.embed(vectors.flatten(1, 2))
        first = self.start.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        tokens = torch.cat([first, tokens[:, :-1]], dim=1) + self.position_biases(shape[1])
        chosen = None if labels is None else one_hot(labels, self.config.classes, tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, chosen)
        logits: Tensor = self.head(self.norm(tokens, chosen))
        return logits.unflatten(1, shape[1:])

    def position_biases(self, frames: int) -> Tensor:
        """What is added to the tokens of the first frames, (frames * L, width): a part of the channels an axis."""
        grid = self.config.grid
        time, row, column = self.positions
        shape = (frames, grid, grid, -1)
        parts = [
            time[:frames, None, None].expand(shape),
            row[None, :, None].expand(shape),
            column[None, None].expand(shape),
        ]
        return torch.cat(parts, dim=-1).flatten(0, 2)


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, config: VideoGPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = ClassNorm(width, config.classes)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = ClassNorm(width, config.classes)
        self.fc1 = nn.Linear(width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, chosen: Tensor | None) -> Tensor:
        """Tokens (N, M, width), and the class as one-hot (N, classes), to tokens."""
        tokens = tokens + self.dropout(self._attend(self.norm1(tokens, chosen)))
        hidden = self.fc1(self.norm2(tokens, chosen))
        # VIPER's approximation of GELU.
        total: Tensor = tokens + self.dropout(self.fc2(hidden * torch.sigmoid(1.702 * hidden)))
        return total

    def _attend(self, tokens: Tensor) -> Tensor:
        # Channels of qkv: head, then q, k, v, as the release lays them out.
        heads = self.qkv(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed


class ClassNorm(nn.Module):
    """Layer norm; with classes its scale is 1 plus a row of a table, its bias a row of another one.

    The release takes the variance as E[x^2] - E[x]^2, which is the same but for rounding.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        if classes:
            self.class_scale = nn.Parameter(torch.randn(classes, width) * _TABLE_STD)
            self.class_bias = nn.Parameter(torch.randn(classes, width) * _TABLE_STD)
        else:
            self.weight = nn.Parameter(torch.ones(width))
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor, chosen: Tensor | None) -> Tensor:
        """Tokens (N, M, width), and the class as one-hot (N, classes), to tokens."""
        shape = tokens.shape[-1:]
        if chosen is None:
            return functional.layer_norm(tokens, shape, self.weight, self.bias, LAYER_NORM_EPS)
        normed = functional.layer_norm(tokens, shape, eps=LAYER_NORM_EPS)
        return normed * (1 + chosen @ self.class_scale)[:, None] + (chosen @ self.class_bias)[:, None]


class Likelihood(nn.Module):
    """Codes of a window to the log-probability of each of its frames: what the robot runs.

    Args:
        network: the transformer.
        codebook: code vectors (K, z).
    """

    codebook: Tensor

    def __init__(self, network: VideoGPT, codebook: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("codebook", codebook)

    def tokens(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-probability in nats of each token given those before it: int64 (N, T', L) to float32 (N, T', L)."""
        logits = self.network(functional.embedding(codes, self.codebook), labels)
        return token_log_probs(logits, codes)

    def forward(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """Log-probability in nats of each frame given those before it.

        Args:
            codes: int64 (N, T', L).
            label: int64 (N,), if there are classes.

        Returns:
            float32 (N, T').
        """
        return self.tokens(codes, label).sum(dim=-1)


def token_log_probs(logits: Tensor, codes: Tensor) -> Tensor:
    """Log-probability of each code under its logits: (..., K) and int64 (...) to float32 (...)."""
    chosen = functional.log_softmax(logits.float(), dim=-1).gather(-1, codes[..., None])
    return chosen.squeeze(-1)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """int64 (N,) to (N, classes); -1, and whatever is no class, gives zeros."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def split_channels(width: int, parts: int) -> list[int]:
    """Channels split as evenly as possible; the first parts take what is left over."""
    return [width // parts + (number < width % parts) for number in range(parts)]
