"""Is the representation collapsing? Numbers on every run, a name and a remedy when the answer is yes.

| name | what is seen | typical cause |
|---|---|---|
| constant | all features point the same way | no stop-gradient, momentum too low, learning rate too high |
| one dimension | nearly all variance along one direction | the same, or too little variety in the data |
| uniform | the teacher gives every prototype the same probability | teacher temperature too high, no sharpening |
| one prototype | the teacher gives every sample the same prototypes | no centring, centre lagging behind |
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

REMEDIES = {
    "constant": "lower the learning rate or raise the EMA momentum; check that the target takes no gradient",
    "one dimension": "lower the learning rate, use larger batches or stronger augmentation; check that frames differ",
    "uniform": "lower the teacher temperature (0.02 to 0.04) or use fewer prototypes",
    "one prototype": "check that the centre is updated; raise the teacher temperature a little, or use Sinkhorn-Knopp",
}

_ROWS = 1024
_STEPS = 20
_CONSTANT = 0.02
_ONE_DIMENSION = 0.95
_UNIFORM = 0.98
_ONE_PROTOTYPE = 0.10
_PATIENCE = 3


@dataclass(frozen=True)
class Verdict:
    """A collapse that was seen.

    Attributes:
        name: `constant`, `one dimension`, `uniform` or `one prototype`.
        text: the numbers it was told by, and what to try, in one line.
    """

    name: str
    text: str


def feature_statistics(features: Tensor) -> dict[str, float]:
    """How far features spread.

    Args:
        features: (N, D), N at least 2, not all zero.

    Returns:
        `feature_std`: standard deviation over samples of the L2-normalised features, times sqrt(D), averaged over
            channels: 1 for directions spread evenly, 0 for a constant.
        `effective_rank`: exponential of the entropy of the variances along principal axes; at most min(N - 1, D).
        `top_share`: part of the variance along the first principal axis, in (0, 1]. NaN, as the rank, if there is none.
    """
    rows = torch.nn.functional.normalize(features.detach().double(), dim=-1)
    centred = rows - rows.mean(dim=0)
    std = float((centred.square().sum(dim=0) / (len(rows) - 1)).sqrt().mean() * math.sqrt(rows.shape[1]))
    # The smaller of the two Gram matrices has the same eigenvalues as the other one.
    gram = centred.T @ centred if rows.shape[1] <= len(rows) else centred @ centred.T
    variances = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = float(variances.sum())
    if not total > 0:
        return {"feature_std": std, "effective_rank": math.nan, "top_share": math.nan}
    shares = variances / total
    entropy = float(-torch.special.xlogy(shares, shares).sum())
    return {"feature_std": std, "effective_rank": math.exp(entropy), "top_share": float(shares.max())}


def entropy_share(rows: Tensor) -> Tensor:
    """Entropy of distributions (..., K) in units of log K, shape (...): 1 is uniform, 0 is a hard choice."""
    values = rows.detach().double()
    return -torch.special.xlogy(values, values).sum(dim=-1) / math.log(values.shape[-1])


class CollapseWatch:
    """Keeps the newest features of a run and judges them.

    Untrained networks look collapsed, too: almost the same feature for every image. So nothing is said during
    `patient_steps`, and later only when several looks in a row agree.

    Args:
        patient_steps: steps at the start in which numbers are given, but no verdict.
    """

    def __init__(self, patient_steps: int) -> None:
        self._patient_steps = patient_steps
        self._features: deque[Tensor] = deque()
        # Mean over the samples of a step, and their mean entropy: whole rows over 65,536 prototypes would not fit.
        self._prototypes: deque[tuple[Tensor, Tensor]] = deque(maxlen=_STEPS)
        self._suspect: str | None = None
        self._times = 0

    def add(self, features: Tensor | None, probabilities: Tensor | None) -> None:
        """Takes the features (N, D) and the teacher's probabilities (N, K) of a step; the oldest ones are forgotten."""
        if features is not None:
            self._features.append(features.detach())
            while sum(map(len, self._features)) - len(self._features[0]) >= _ROWS:
                self._features.popleft()
        if probabilities is not None:
            self._prototypes.append((probabilities.detach().mean(dim=0), entropy_share(probabilities).mean()))

    def look(self, step: int) -> tuple[dict[str, float], Verdict | None]:
        """Statistics of what was added, and a verdict if a collapse has lasted for several looks.

        Args:
            step: optimizer steps done.

        Returns:
            What `feature_statistics` gives, and with a teacher `conditional_entropy`, the mean entropy of a sample's
            distribution over prototypes, and `marginal_entropy`, that of the mean distribution, in units of log K.
        """
        numbers: dict[str, float] = {}
        if self._features and sum(map(len, self._features)) > 1:
            numbers |= feature_statistics(torch.cat(tuple(self._features)))
        if self._prototypes:
            means, entropies = (torch.stack(part) for part in zip(*self._prototypes, strict=True))
            numbers["conditional_entropy"] = float(entropies.mean())
            numbers["marginal_entropy"] = float(entropy_share(means.mean(dim=0)))
        name = _diagnose(numbers)
        if step < self._patient_steps:
            name = None
        self._times = self._times + 1 if name == self._suspect else 1
        self._suspect = name
        # Said once, and again only after something else was seen.
        if name is None or self._times != _PATIENCE:
            return numbers, None
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in numbers.items())
        return numbers, Verdict(name, f"collapse: {name} ({shown}); {REMEDIES[name]}")


def _diagnose(numbers: dict[str, float]) -> str | None:
    if numbers.get("conditional_entropy", 0.0) > _UNIFORM:
        return "uniform"
    if numbers.get("marginal_entropy", 1.0) < _ONE_PROTOTYPE:
        return "one prototype"
    if numbers.get("feature_std", 1.0) < _CONSTANT:
        return "constant"
    if numbers.get("top_share", 0.0) > _ONE_DIMENSION:
        return "one dimension"
    return None
