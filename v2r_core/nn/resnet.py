"""ResNets: torchvision's, as MoCo uses it, and SimCLR's own, with widths and selective kernels.

Both put the stride into the 3x3 convolution. Parameters have torchvision's names. What SimCLR (`SimCLRResNet`) does
otherwise: its max-pool pads as TensorFlow's SAME does, (0, 1) for even sides; a first block always has a projection,
which tells ResNet-18 and 34 apart; weights start from a truncated normal, and each block as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth to the number of blocks in each stage."""
SELECTIVE_RATIO = 0.0625
SELECTIVE_LEAST = 32
_TRUNCATED_STD = 0.87962566
"""Standard deviation of a standard normal that is cut at 2."""

Norm = Callable[[int], nn.Module]
Dialect = Literal["torchvision", "simclr"]


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded on both sides alike."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def max_pool_same(values: Tensor, kernel: int = 3, stride: int = 2) -> Tensor:
    """Max-pool with TensorFlow's SAME padding: the smaller half comes before, and padding never wins.

    Args:
        values: (N, C, H, W).
        kernel: side of the window.
        stride: step of the window.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)).
    """
    sides = values.shape[-2:]
    totals = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in sides]
    # What is lacking at the end is a window that reaches over the edge, which ceil_mode allows.
    before = (totals[0] // 2, totals[1] // 2)
    return functional.max_pool2d(values, kernel, stride, padding=before, ceil_mode=True)


class AveragePoolSame(nn.Module):
    """2x2 average at stride 1 or 2 in front of a projection (ResNet-D).

    At stride 2 zeros are padded at the end and count; at stride 1 the average at the edge is over what is there.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        # Repeating the edge weighs what is there as leaving out what is not there does.
        padded = functional.pad(values, (0, 1, 0, 1), mode="replicate" if self.stride == 1 else "constant")
        return functional.avg_pool2d(padded, 2, self.stride)


class SelectiveKernel(nn.Module):
    """Two 3x3 branches, mixed channel by channel with weights that the image itself decides (Li et al. 2019).

    Args:
        inputs: channels of the input.
        outputs: channels C of the output.
        stride: of both branches.
        norm: makes a batch norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        middle = max(int(outputs * SELECTIVE_RATIO), SELECTIVE_LEAST)
        self.branches = conv(inputs, 2 * outputs, 3, stride)
        self.norm = norm(2 * outputs)
        self.squeeze = conv(outputs, middle, 1)
        self.squeeze_norm = norm(middle)
        self.mix = conv(middle, 2 * outputs, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, inputs, H, W) to (N, C, H', W'), not negative."""
        first, second = functional.relu(self.norm(self.branches(values)), inplace=True).chunk(2, dim=1)
        pooled = (first + second).mean(dim=(2, 3), keepdim=True)
        weights = self.mix(functional.relu(self.squeeze_norm(self.squeeze(pooled)), inplace=True))
        one, other = weights.chunk(2, dim=1)
        share = torch.sigmoid(one - other)
        return share * first + (1 - share) * second


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm, project: bool, selective: bool) -> None:
        super().__init__()
        assert not selective
        self.downsample = _projection(inputs, channels, stride, norm, selective) if project else None
        self.conv1 = conv(inputs, channels, 3, stride)
        self.bn1 = norm(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = norm(channels)

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, inputs, H, W) to (N, channels, H', W')."""
        shortcut = values if self.downsample is None else self.downsample(values)
        values = functional.relu(self.bn1(self.conv1(values)), inplace=True)
        return functional.relu(self.bn2(self.conv2(values)).add_(shortcut), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (or selective kernels) and 1x1 convolutions and a shortcut; four times as many channels come out."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm, project: bool, selective: bool) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.downsample = _projection(inputs, outputs, stride, norm, selective) if project else None
        self.conv1 = conv(inputs, channels, 1)
        self.bn1 = norm(channels)
        if selective:
            self.conv2: nn.Module = SelectiveKernel(channels, channels, stride, norm)
            self.bn2: nn.Module = nn.Identity()
        else:
            self.conv2 = conv(channels, channels, 3, stride)
            self.bn2 = norm(channels)
        self.conv3 = conv(channels, outputs, 1)
        self.bn3 = norm(outputs)

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, inputs, H, W) to (N, 4 * channels, H', W')."""
        shortcut = values if self.downsample is None else self.downsample(values)
        values = functional.relu(self.bn1(self.conv1(values)), inplace=True)
        # Selective kernels end with values that are not negative, and ReLU leaves them alone.
        values = functional.relu(self.bn2(self.conv2(values)), inplace=True)
        return functional.relu(self.bn3(self.conv3(values)).add_(shortcut), inplace=True)


class ResNet(nn.Module):
    """A ResNet that ends with the average over all places.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: factor on all channels.
        norm: makes a batch norm from its number of channels.
        dialect: whose details.
        selective: selective kernels in place of 3x3 convolutions, with the stem and the projections of ResNet-D, in
            SimCLR's dialect.
        small: a 3x3 stem at stride 1 without max-pool, for images of about 32 pixels.

    Attributes:
        embedding_dim: channels of the result, while `fc` is the identity.
        fc: what comes behind the average; the identity until the caller puts a head there.

    Raises:
        ValueError: no such depth, a width that is not above 0, or selective kernels where there are none.
    """

    def __init__(
        self,
        depth: int,
        width: float = 1.0,
        norm: Norm = nn.BatchNorm2d,
        dialect: Dialect = "torchvision",
        selective: bool = False,
        small: bool = False,
    ) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"no ResNet of depth {depth}; there are {', '.join(map(str, STAGES))}")
        if round(64 * width) < 1:
            raise ValueError(f"width is {width}, a factor above 0 expected")
        if selective and (depth < 50 or dialect != "simclr"):
            raise ValueError(f"selective kernels need SimCLR's ResNet of depth 50, 101 or 152, not {dialect}'s {depth}")
        block = Bottleneck if depth >= 50 else BasicBlock
        channels = round(64 * width)
        self.dialect = dialect
        self.small = small
        self.conv1 = _stem(channels, norm, selective, small)
        self.bn1 = norm(channels)
        inputs = channels
        stages = []
        for stage, count in enumerate(STAGES[depth]):
            blocks: list[nn.Module] = []
            wide = channels * 2**stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                project = not number and (dialect == "simclr" or stride > 1 or inputs != wide * block.expansion)
                blocks.append(block(inputs, wide, stride, norm, project, selective))
                inputs = wide * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.embedding_dim = inputs
        self.fc: nn.Module = nn.Identity()
        _init(self, dialect)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to (N, embedding_dim), or to what `fc` makes of that."""
        if self.training:
            # A tenth faster on a CPU and on tensor cores; an exported graph has no use for it.
            images = images.contiguous(memory_format=torch.channels_last)
        values = self.bn1(self.conv1(images))
        # ReLU and max-pool may change places, gradients included; behind it there is a quarter of the values.
        if not self.small:
            values = (
                max_pool_same(values) if self.dialect == "simclr" else functional.max_pool2d(values, 3, 2, padding=1)
            )
        values = functional.relu(values, inplace=True)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            values = stage(values)
        return self.fc(values.mean(dim=(2, 3)))


class SimCLRResNet(ResNet):
    """SimCLR's ResNet. Images are in [0, 1], with no normalisation.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: factor on all channels.
        selective: selective kernels (`sk_ratio` 0.0625).
        small: stem for small images.
        norm: makes a batch norm from its number of channels.

    Attributes:
        settings: depth, width, selective and small.
    """

    def __init__(
        self,
        depth: int,
        width: float = 1.0,
        selective: bool = False,
        small: bool = False,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__(depth, width, norm, "simclr", selective, small)
        self.settings = (depth, width, selective, small)


def zero_last_scales(network: ResNet) -> None:
    """Makes every block the identity to begin with, in place: the scale of its last batch norm becomes 0."""
    for module in network.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            assert isinstance(last, _BatchNorm)
            nn.init.zeros_(last.weight)


def simclr_from_tensorflow(variables: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The released variables of SimCLR's ResNet under the names of `SimCLRResNet`.

    TensorFlow numbers convolutions and batch norms as they were created: stem; in a first block shortcut, then
    convolutions in their order; in other blocks the convolutions. That is the order of our modules.

    Args:
        variables: `base_model/conv2d_<k>/kernel` (height, width, in, out) and
            `base_model/batch_normalization_<k>/{gamma,beta,moving_mean,moving_variance}`; slots of the optimizer
            (`.../Momentum`) are left out.
        where: named in errors.

    Returns:
        state of a `SimCLRResNet` of that depth, float32.

    Raises:
        ValueError: variables of another network; missing or unknown ones are named.
    """
    given = {name: tensor for name, tensor in variables.items() if not name.endswith("/Momentum")}
    kernels = sum(name.endswith("/kernel") for name in given)
    state: dict[str, Tensor] = {}
    taken: set[str] = set()
    for name, module in _plan(kernels, where).named_modules():
        if isinstance(module, nn.Conv2d):
            number = sum(key.startswith("base_model/conv2d") for key in taken)
            source = f"base_model/conv2d{_suffix(number)}/kernel"
            state[f"{name}.weight"] = _take(given, source, where).permute(3, 2, 0, 1).contiguous()
            taken.add(source)
        elif isinstance(module, nn.BatchNorm2d):
            number = sum(key.endswith("/gamma") for key in taken)
            for theirs, ours in _NORM_NAMES.items():
                source = f"base_model/batch_normalization{_suffix(number)}/{theirs}"
                state[f"{name}.{ours}"] = _take(given, source, where)
                taken.add(source)
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    unknown = sorted(set(given) - taken)
    if unknown:
        raise ValueError(f"{where}: variables that no ResNet of SimCLR has: {', '.join(unknown[:4])}")
    return state


_NORM_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def _suffix(number: int) -> str:
    return f"_{number}" if number else ""


def _take(variables: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in variables:
        raise ValueError(f"{where}: variable {name} is missing; is the file complete?")
    return torch.as_tensor(variables[name]).float()


def _plan(kernels: int, where: str) -> ResNet:
    """The network, without memory, that has so many convolutions."""
    with torch.device("meta"):
        for depth in STAGES:
            for selective in (False, True) if depth >= 50 else (False,):
                network = SimCLRResNet(depth, selective=selective)
                if sum(isinstance(module, nn.Conv2d) for module in network.modules()) == kernels:
                    return network
    raise ValueError(f"{where}: {kernels} convolutions, which is no ResNet of SimCLR; is the file complete?")


def _stem(channels: int, norm: Norm, selective: bool, small: bool) -> nn.Module:
    if small:
        return conv(3, channels, 3)
    if not selective:
        return conv(3, channels, 7, 2)
    half = channels // 2
    return nn.Sequential(
        conv(3, half, 3, 2), norm(half), nn.ReLU(), conv(half, half, 3), norm(half), nn.ReLU(), conv(half, channels, 3)
    )


def _projection(inputs: int, outputs: int, stride: int, norm: Norm, selective: bool) -> nn.Sequential:
    if selective:
        return nn.Sequential(AveragePoolSame(stride), conv(inputs, outputs, 1), norm(outputs))
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))


def _init(network: ResNet, dialect: Dialect) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if dialect == "torchvision":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                std = module.weight[0].numel() ** -0.5 / _TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if dialect == "simclr":
        zero_last_scales(network)
