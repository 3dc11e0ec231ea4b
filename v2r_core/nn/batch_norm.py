"""Batch norms whose batch is not the process's: joined over all processes, or cut into sub-batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from v2r_core.nn.distributed import gather_with_grad, world


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes, for (N, C) and (N, C, H, W), on any device.

    Every process has the same number of rows. The gradient is that of the sum of all processes' losses.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: share of the batch in the running statistics (TensorFlow counts the rest).
        affine: learn a scale and an offset.
        offset: with `affine`, learn an offset too.
        population: keep the variance of the batch as it is in the running statistics, as TensorFlow does, in place of
            torch's unbiased one.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        offset: bool = True,
        population: bool = False,
    ) -> None:
        super().__init__(channels, eps, momentum, affine)
        self.population = population
        if affine and not offset:
            self.register_parameter("bias", None)

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, C) or (N, C, H, W) to the same shape."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None and self.num_batches_tracked is not None
        if not self.training:
            return functional.batch_norm(values, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        momentum = float(self.momentum or 0.0)
        self.num_batches_tracked += 1
        if world() > 1:
            return self._joined(values, mean, variance, momentum)
        if not self.population:
            return functional.batch_norm(values, mean, variance, self.weight, self.bias, True, momentum, self.eps)
        # The backward pass keeps the running statistics that it was given, so they must not change afterwards.
        fresh, unbiased = mean.clone(), variance.clone()
        out = functional.batch_norm(values, fresh, unbiased, self.weight, self.bias, True, momentum, self.eps)
        count = values.numel() / values.shape[1]
        mean.copy_(fresh)
        # unbiased = (1 - momentum) * before + momentum * batch * count / (count - 1)
        variance.mul_((1 - momentum) / count).add_(unbiased, alpha=(count - 1) / count)
        return out

    def _joined(self, values: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        axes = [axis for axis in range(values.ndim) if axis != 1]
        own_var, own_mean = torch.var_mean(wide, dim=axes, correction=0)
        means, variances = gather_with_grad(torch.stack([own_mean, own_var])[None]).unbind(1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        with torch.no_grad():
            count = wide.numel() / wide.shape[1] * world()
            kept = variance if self.population else variance * count / (count - 1)
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(kept, momentum)
        shape = (1, -1) + (1,) * (values.ndim - 2)
        out = (wide - mean.reshape(shape)) * (variance + self.eps).rsqrt().reshape(shape)
        if self.weight is not None:
            out = out * self.weight.reshape(shape)
        if self.bias is not None:
            out = out + self.bias.reshape(shape)
        return out.to(values.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions is right."""


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm that stands in for several devices on one: each consecutive part of a batch is normalised by itself.

    The running statistics take the average of the parts'. In evaluation mode it is an ordinary batch norm.

    Args:
        channels: C.
        splits: number of parts, 1 for an ordinary batch norm.
    """

    def __init__(self, channels: int, splits: int) -> None:
        super().__init__(channels)
        self.splits = splits

    def forward(self, values: Tensor) -> Tensor:
        """Values (N, C, H, W) to the same shape.

        Raises:
            ValueError: N is no multiple of `splits`.
        """
        if not self.training or self.splits == 1:
            return super().forward(values)
        if len(values) % self.splits:
            raise ValueError(f"{len(values)} images cannot be split into {self.splits} batch norms; use another batch")
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None and self.num_batches_tracked is not None
        momentum = float(self.momentum or 0.0)
        self.num_batches_tracked += 1
        means, variances = mean.repeat(self.splits, 1), variance.repeat(self.splits, 1)
        parts = [
            functional.batch_norm(part, means[i], variances[i], self.weight, self.bias, True, momentum, self.eps)
            for i, part in enumerate(values.chunk(self.splits))
        ]
        mean.copy_(means.mean(dim=0))
        variance.copy_(variances.mean(dim=0))
        return torch.cat(parts)
