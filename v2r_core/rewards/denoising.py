"""The denoising chain behind Diffusion Reward (Huang et al., ECCV 2024), in numpy around a callable network.

A chain starts from nothing but masks and calls the network at falling steps. After each call it draws the tokens of an
earlier step; after the last call there are the tokens of a frame. `ChainResult.bound` is then the variational bound of
their log-likelihood, or of that of tokens that were observed.

Distributions are logarithms, float32 (N, K + 1, L), the mask last; sums over tokens are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2r_core.nn.diffusion_schedule import LogProbabilities, chain_steps

LOG_FLOOR = -70.0
TINY = np.float32(1e-30)

Denoise = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""(tokens (N, L), step (N,), condition (N, M)) to log-probabilities of the tokens without noise, (N, K + 1, L)."""

Uniform = Callable[[], NDArray[np.floating]]
"""Uniform numbers in [0, 1) of the next step, (N, K + 1, L)."""


@dataclass(frozen=True)
class ChainResult:
    """What a chain went through.

    Attributes:
        steps: at which the network was called, falling to 0; S of them.
        tokens: after each call, int64 (S, N, L), K for the mask; the last ones are the frame that was drawn.
        divergences: of each call but the last, summed over tokens: KL from the posterior of the target to the model's;
            float64 (S - 1, N).
        log_likelihood: of the target under the last call's distribution, float64 (N,).
    """

    steps: list[int]
    tokens: NDArray[np.int64]
    divergences: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]

    def bound(self) -> NDArray[np.float64]:
        """Bound of the target's log-likelihood in nats, (N,)."""
        total: NDArray[np.float64] = self.log_likelihood - self.divergences.sum(axis=0)
        return total


def denoising_chain(
    network: Denoise,
    condition: NDArray[np.int64],
    schedule: LogProbabilities,
    skip: int,
    *,
    tokens: int,
    codes: int,
    uniform: Uniform | None = None,
    target: NDArray[np.int64] | None = None,
) -> ChainResult:
    """Runs one chain for each row.

    Between two calls that are skip + 1 steps apart, the released code does not compose the steps: it takes the
    posterior of the single step t - skip, as VQ-Diffusion's fast sampling does, where t > skip. So most of the tokens
    are still masks when the last call comes.

    Args:
        network: the denoiser.
        condition: codes of the frames before, int64 (N, M).
        schedule: of the noise that the network was trained with.
        skip: steps left out between two calls, see `chain_steps`.
        tokens: L.
        codes: K.
        uniform: noise of the draws; None takes the most likely token each time.
        target: int64 (N, L): what the bound is of; None for the tokens that the chain itself ends with.

    Raises:
        ValueError: skip out of range.
    """
    steps = chain_steps(len(schedule.log_at), skip)
    current = np.full((len(condition), tokens), codes, np.int64)
    inputs, drawn, models = [], [], []
    for t in steps:
        log_x0 = network(current, np.full(len(condition), t, np.int64), condition)
        model = posterior(log_x0, current, _index(t, skip), schedule)
        scores = model if uniform is None else model + gumbel(uniform())
        inputs.append(current)
        models.append(model)
        current = scores.argmax(axis=1)
        drawn.append(current)
    target = current if target is None else target
    truth = log_onehot(target, codes + 1)
    divergences = [
        divergence(posterior(truth, given, _index(t, skip), schedule), model)
        for t, given, model in zip(steps[:-1], inputs[:-1], models[:-1], strict=True)
    ]
    return ChainResult(steps, np.stack(drawn), np.stack(divergences), log_likelihood(models[-1], target))


def first_prediction(
    network: Denoise, condition: NDArray[np.int64], steps: int, *, tokens: int, codes: int
) -> NDArray[np.float32]:
    """What the network predicts from nothing but masks at the last of T steps, (N, K + 1, L): a chain's first call."""
    masks = np.full((len(condition), tokens), codes, np.int64)
    return network(masks, np.full(len(condition), steps - 1, np.int64), condition)


def negative_entropy(log_p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Minus the entropy of the codes, summed over tokens as if these were independent: (N, K + 1, L) to (N,)."""
    codes = log_p[:, :-1]
    total: NDArray[np.float64] = (np.exp(codes) * codes).sum(axis=(1, 2), dtype=np.float64)
    return total


def log_likelihood(log_p: NDArray[np.float32], target: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probability of tokens (N, L), summed over them: (N, K + 1, L) to (N,)."""
    chosen = np.take_along_axis(log_p, target[:, None], axis=1)
    total: NDArray[np.float64] = chosen.sum(axis=(1, 2), dtype=np.float64)
    return total


def divergence(log_p: NDArray[np.float32], log_q: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q), summed over tokens: (N, K + 1, L) each to (N,)."""
    total: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=(1, 2), dtype=np.float64)
    return total


def gumbel(uniform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Gumbel noise of uniform numbers in [0, 1), float32, any shape."""
    inner = -np.log(uniform.astype(np.float32) + TINY)
    return -np.log(inner + TINY)


def log_onehot(tokens: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Logarithm of one-hot vectors, zeros taken for 1e-30: (N, L) to (N, classes, L)."""
    result = np.full((tokens.shape[0], classes, tokens.shape[1]), np.log(TINY), np.float32)
    np.put_along_axis(result, tokens[:, None], np.float32(0.0), axis=1)
    return result


def posterior(
    log_x0: NDArray[np.float32], tokens: NDArray[np.int64], t: int, schedule: LogProbabilities
) -> NDArray[np.float32]:
    """`nn.discrete_diffusion.q_posterior` for one step t that is the same for all rows.

    Args:
        log_x0: (N, K + 1, L).
        tokens: int64 (N, L) of step t.
        t: 0 to T - 1.
        schedule: of the noise.

    Returns:
        (N, K + 1, L) in [-70, 0].
    """
    s = schedule
    seen = _of_tokens(tokens, log_x0.shape, s.log_cumprod_ct[t], s.log_cumprod_at[t], s.log_cumprod_bt[t])
    one_step = _of_tokens(tokens, log_x0.shape, s.log_ct[t], s.log_at[t], s.log_bt[t])
    ratio = log_x0[:, :-1] - seen
    # The mask counts 1e-30 in the sum, as released.
    largest = np.maximum(ratio.max(axis=1, keepdims=True), np.log(TINY))
    total = largest + np.log(
        np.exp(ratio - largest).sum(axis=1, keepdims=True) + np.exp(np.log(TINY) - largest), dtype=np.float32
    )
    # "No noise at all" is the last entry, which the index -1 finds.
    before = t - 1
    codes = np.logaddexp(ratio - total + s.log_cumprod_at[before], s.log_cumprod_bt[before]) + one_step + total
    mask = np.logaddexp(np.log(TINY) - total + s.log_1_min_cumprod_ct[before], s.log_cumprod_ct[before]) + total
    mask = mask + np.where(_masked(tokens, log_x0.shape), np.float32(0.0), np.log(TINY))[:, None]
    return np.clip(np.concatenate([codes, mask], axis=1), np.float32(LOG_FLOOR), np.float32(0.0))


def _of_tokens(
    tokens: NDArray[np.int64], shape: tuple[int, ...], masked: np.float32, keep: np.float32, switch: np.float32
) -> NDArray[np.float32]:
    """Log-probability of tokens given each code, (N, K, L): of the mask for any code, of a code if it was that one."""
    rows, classes, length = shape
    result = np.full((rows, classes - 1, length), np.logaddexp(np.log(TINY) + keep, switch), np.float32)
    where = _masked(tokens, shape)
    np.put_along_axis(result, np.where(where, 0, tokens)[:, None], np.logaddexp(keep, switch), axis=1)
    return np.where(where[:, None], masked, result)


def _masked(tokens: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return tokens == shape[1] - 1


def _index(t: int, skip: int) -> int:
    return t - skip if t > skip else t
