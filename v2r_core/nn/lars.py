"""LARS, layer-wise adaptive rate scaling (You et al. 2017), in the two dialects of the released codes.

With d = g + weight_decay * w and trust = eta * |w| / |d| (1 where a norm is 0):

| dialect | who | buffer | step | neither decayed nor scaled |
|---|---|---|---|---|
| `official` | MoCo v3, MAE, DINO | v <- m v + trust d | w <- w - lr v | tensors with at most one dimension |
| `simclr` | SimCLR | v <- m v + lr trust d | w <- w - v | what the caller's groups say |

As long as the learning rate is constant both do the same. Under a schedule they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor

Dialect = Literal["official", "simclr"]


class LARS(torch.optim.Optimizer):
    """Stochastic gradient descent with momentum and a learning rate of each tensor's own.

    In the `simclr` dialect a group with `adapt` False has trust 1; its weight decay is its own, so that names excluded
    from both come in a group with `adapt` False and `weight_decay` 0. In the `official` dialect `adapt` means nothing.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: added to the gradient before the norms are taken.
        momentum: m.
        trust_coefficient: eta.
        dialect: see above.
        nesterov: look ahead: w <- w - (m v + lr trust d); `simclr` only.

    Raises:
        ValueError: a number below 0, or Nesterov's step in the other dialect.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        dialect: Dialect = "official",
        nesterov: bool = False,
    ) -> None:
        numbers = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust_coefficient": trust_coefficient}
        for name, value in numbers.items():
            if value < 0:
                raise ValueError(f"{name} is {value}, a number from 0 on expected")
        if nesterov and dialect != "simclr":
            raise ValueError(f"nesterov goes with the dialect 'simclr' only, {dialect!r} given")
        self.dialect = dialect
        self.nesterov = nesterov
        super().__init__(params, {**numbers, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            adapted = [weight for weight in weights if self._adapts(group, weight)]
            plain = [weight for weight in weights if not self._adapts(group, weight)]
            decay = float(group["weight_decay"])
            if adapted:
                self._move(group, adapted, _scaled(adapted, decay, group["trust_coefficient"]))
            if plain:
                decay = 0.0 if self.dialect == "official" else decay
                self._move(group, plain, _decayed(plain, decay))
        return loss

    def _adapts(self, group: dict[str, Any], weight: Tensor) -> bool:
        return weight.ndim > 1 if self.dialect == "official" else bool(group["adapt"])

    def _move(self, group: dict[str, Any], weights: list[Tensor], updates: list[Tensor]) -> None:
        """Momentum and step; `updates` are the caller's to overwrite."""
        lr, momentum = float(group["lr"]), float(group["momentum"])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers: list[Tensor] = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, momentum)
        if self.dialect == "official":
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(weights, buffers, alpha=-lr)
            return
        torch._foreach_mul_(updates, lr)
        torch._foreach_add_(buffers, updates)
        if self.nesterov:
            torch._foreach_add_(updates, buffers, alpha=momentum)
            torch._foreach_sub_(weights, updates)
        else:
            torch._foreach_sub_(weights, buffers)


def _decayed(weights: list[Tensor], decay: float) -> list[Tensor]:
    """Gradients with weight decay, as new tensors."""
    gradients = [cast(Tensor, weight.grad) for weight in weights]
    return list(torch._foreach_add(gradients, weights, alpha=decay))


def _scaled(weights: list[Tensor], decay: float, eta: float) -> list[Tensor]:
    """Gradients with weight decay, times their trust."""
    updates = _decayed(weights, decay)
    lengths, steps = (torch.stack(list(torch._foreach_norm(tensors))) for tensors in (weights, updates))
    trust = torch.where((lengths > 0) & (steps > 0), eta * lengths / steps, 1.0)
    torch._foreach_mul_(updates, list(trust.unbind()))
    return updates
