"""Discrete diffusion with a mask (VQ-Diffusion, Gu et al. 2022; Diffusion Reward, section 4): noise, posteriors, loss.

Everything is in logarithms of probabilities, float32 (N, K + 1, L): N examples of L tokens, K codes and, last, the
mask. `t` is int64 (N,), 0 to T - 1; -1 means "no noise at all". Noise comes from outside, as uniform numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from v2r_core.nn.diffusion_schedule import log_probabilities

LOG_FLOOR = -70.0
"""Smallest logarithm that a predicted distribution has."""
TINY = 1e-30
MIN_VISITS = 10
"""Every step must have been trained on more often than this before steps are drawn by their loss."""


@dataclass(frozen=True)
class Schedule:
    """`LogProbabilities` as tensors, float32 (T,) or (T + 1,)."""

    log_at: Tensor
    log_bt: Tensor
    log_ct: Tensor
    log_1_min_ct: Tensor
    log_cumprod_at: Tensor
    log_cumprod_bt: Tensor
    log_cumprod_ct: Tensor
    log_1_min_cumprod_ct: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.log_at)

    @classmethod
    def linear(cls, steps: int, codes: int) -> Schedule:
        """The released schedule for T steps and K codes."""
        table = log_probabilities(steps, codes)
        return cls(**{name: torch.from_numpy(values) for name, values in vars(table).items()})


def log_onehot(tokens: Tensor, classes: int) -> Tensor:
    """Logarithm of one-hot vectors, zeros taken for 1e-30: tokens int64 (N, L) to float32 (N, classes, L)."""
    return functional.one_hot(tokens, classes).transpose(1, 2).float().clamp_min(TINY).log()


def q_pred(log_x0: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Distribution at step t of tokens whose distribution without noise is given.

    Args:
        log_x0: (N, K + 1, L).
        t: (N,), -1 to T - 1.
        schedule: of the noise.

    Returns:
        (N, K + 1, L).
    """
    index = t % (schedule.steps + 1)
    keep, switch, mask, no_mask = (
        _of_examples(table, index)
        for table in (
            schedule.log_cumprod_at,
            schedule.log_cumprod_bt,
            schedule.log_cumprod_ct,
            schedule.log_1_min_cumprod_ct,
        )
    )
    return _forward(log_x0, keep, switch, mask, no_mask)


def q_pred_one(log_x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Distribution at step t of tokens whose distribution at step t - 1 is given; shapes as in `q_pred`, t from 0."""
    keep, switch, mask, no_mask = (
        _of_examples(table, t) for table in (schedule.log_at, schedule.log_bt, schedule.log_ct, schedule.log_1_min_ct)
    )
    return _forward(log_x, keep, switch, mask, no_mask)


def q_posterior(log_x0: Tensor, tokens: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Distribution at step t - 1, given the tokens of step t and a distribution of the tokens without noise.

    Args:
        log_x0: (N, K + 1, L).
        tokens: int64 (N, L), K for the mask.
        t: (N,), 0 to T - 1; at 0 the result is a distribution without noise.
        schedule: of the noise.

    Returns:
        (N, K + 1, L), limited to [-70, 0].
    """
    codes = log_x0.shape[1] - 1
    masked = (tokens == codes)[:, None]
    onehot = log_onehot(tokens, codes + 1)
    seen = torch.where(
        masked, _of_examples(schedule.log_cumprod_ct, t % (schedule.steps + 1)), q_pred(onehot, t, schedule)[:, :-1]
    )
    one_step = torch.where(masked, _of_examples(schedule.log_ct, t), q_pred_one(onehot, t, schedule)[:, :-1])
    floor = torch.full_like(log_x0[:, -1:], TINY).log()
    one_step = torch.cat([one_step, torch.where(masked, torch.zeros_like(floor), floor)], dim=1)
    ratio = torch.cat([log_x0[:, :-1] - seen, floor], dim=1)
    total = ratio.logsumexp(dim=1, keepdim=True)
    return (q_pred(ratio - total, t - 1, schedule) + one_step + total).clamp(LOG_FLOOR, 0.0)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of uniform numbers in [0, 1), any shape."""
    return -(-(uniform + TINY).log() + TINY).log()


def noised_tokens(x0: Tensor, t: Tensor, schedule: Schedule, codes: int, uniform: Tensor) -> Tensor:
    """Tokens of step t.

    Args:
        x0: int64 (N, L), without noise.
        t: (N,).
        schedule: of the noise.
        codes: K.
        uniform: (N, K + 1, L) in [0, 1).

    Returns:
        int64 (N, L), K for the mask.
    """
    return (q_pred(log_onehot(x0, codes + 1), t, schedule) + gumbel(uniform)).argmax(dim=1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each token, (N, L), of distributions (N, classes, L)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def bound_terms(log_x0: Tensor, x0: Tensor, tokens: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The two losses of each example, summed over its tokens, before any weight.

    Args:
        log_x0: prediction, (N, K + 1, L).
        x0: int64 (N, L), the truth.
        tokens: int64 (N, L), what the prediction was made from.
        t: (N,), their step.
        schedule: of the noise.

    Returns:
        main (N,): KL from the posterior of the truth to that of the prediction, at step 0 minus the log-likelihood of
        the truth; auxiliary (N,): KL from the truth to the prediction itself over the K codes, at step 0 the same.
    """
    truth = log_onehot(x0, log_x0.shape[1])
    model = q_posterior(log_x0, tokens, t, schedule)
    kl = kl_divergence(q_posterior(truth, tokens, t, schedule), model).sum(dim=1)
    decoder = -(truth.exp() * model).sum(dim=(1, 2))
    auxiliary = kl_divergence(truth[:, :-1], log_x0[:, :-1]).sum(dim=1)
    last = t == 0
    return torch.where(last, decoder, kl), torch.where(last, decoder, auxiliary)


def weighted_losses(
    main: Tensor, auxiliary: Tensor, t: Tensor, chances: Tensor, steps: int, auxiliary_weight: float = 1e-3
) -> Tensor:
    """Loss of each example, (N,), to be divided by the number of tokens.

    Args:
        main: (N,), see `bound_terms`.
        auxiliary: (N,).
        t: (N,).
        chances: probability with which each t was drawn, (N,).
        steps: T.
        auxiliary_weight: of the auxiliary loss, which also falls from 2 to 1 with t; 0 leaves it out.
    """
    return (main + auxiliary_weight * (2 - t / steps) * auxiliary) / chances


def step_chances(history: Tensor, visits: Tensor) -> Tensor:
    """Probability of each step in the next batch, (T,): by the root of its mean squared loss, once all are known.

    Args:
        history: running means of squared main losses, (T,).
        visits: how often each step was trained on, (T,).
    """
    if not bool((visits > MIN_VISITS).all()):
        return torch.full_like(history, 1.0 / len(history))
    return importance(history)


def importance(history: Tensor) -> Tensor:
    """sqrt(history + 1e-10) + 1e-4, normalised; step 0, whose loss is another one, counts as step 1. (T,) to (T,)."""
    roots = (history + 1e-10).sqrt() + 1e-4
    roots = torch.cat([roots[1:2], roots[1:]])
    return roots / roots.sum()


def draw_steps(chances: Tensor, uniform: Tensor) -> Tensor:
    """Steps, int64 (N,), drawn with probabilities (T,) by uniform numbers (N,) in [0, 1)."""
    edges = chances.double().cumsum(dim=0)
    return torch.searchsorted(edges / edges[-1], uniform.double(), right=True).clamp_max(len(chances) - 1)


def update_history(history: Tensor, visits: Tensor, t: Tensor, main: Tensor) -> tuple[Tensor, Tensor]:
    """Running means and visits after a batch; a tenth of the new squared loss comes in.

    Where a batch has a step twice, the mean of their squares does; the released code keeps one of them, whichever the
    device writes last.

    Args:
        history: (T,).
        visits: (T,).
        t: (N,).
        main: (N,), before it is divided by chances.

    Returns:
        history and visits, new tensors.
    """
    counts = torch.zeros_like(history).index_add_(0, t, torch.ones_like(main))
    squares = torch.zeros_like(history).index_add_(0, t, main.detach().square()) / counts.clamp_min(1)
    return torch.where(counts > 0, 0.9 * history + 0.1 * squares, history), visits + counts


def _forward(log_x: Tensor, keep: Tensor, switch: Tensor, mask: Tensor, no_mask: Tensor) -> Tensor:
    codes = torch.logaddexp(log_x[:, :-1] + keep, switch)
    return torch.cat([codes, torch.logaddexp(log_x[:, -1:] + no_mask, mask)], dim=1)


def _of_examples(table: Tensor, t: Tensor) -> Tensor:
    """Entries (N,) of a table, to be broadcast over classes and tokens."""
    return table[t][:, None, None]
