"""Losses of DINO and DINOv2 as pure functions: what a teacher says, and how a student and its features answer.

Centres are values, not state: a function that takes one uses it as it is and returns the next. That is also what the
released DINOv2 computes, whose centre "takes effect at the next call".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from v2r_core.nn.distributed import sum_over_ranks

KOLEO_EPS = 1e-8
SINKHORN_ITERATIONS = 3


@torch.no_grad()
def centred_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature).

    Args:
        logits: the teacher's, (N, K).
        center: (1, K).
        temperature: low values sharpen.

    Returns:
        float32 (N, K).
    """
    return functional.softmax((logits.float() - center) / temperature, dim=-1)


@torch.no_grad()
def moved_center(center: Tensor, logits: Tensor, momentum: float) -> Tensor:
    """Moving average of the mean logit over all processes' rows (DINO, equation 4).

    Processes may have different numbers of rows, none included; each row counts the same. The result is that of one
    process with all rows.

    Args:
        center: (1, K).
        logits: the teacher's, before temperature and centring, (N, K).
        momentum: of the average.

    Returns:
        the next center, (1, K); the old one if there are no rows.
    """
    rows = sum_over_ranks(torch.tensor(float(len(logits)), device=logits.device))
    total = sum_over_ranks(logits.float().sum(dim=0, keepdim=True))
    moved = center * momentum + total / rows.clamp(min=1) * (1 - momentum)
    return torch.where(rows > 0, moved, center)


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Assignments that use all prototypes equally, over all processes' rows (DINOv2, "Sinkhorn-Knopp centering").

    As released, no maximum is taken out before the exponential: logits are cosines.

    Args:
        logits: the teacher's, (N, K); N may differ between processes.
        temperature: low values sharpen.
        iterations: how often prototypes and rows are normalised in turn.

    Returns:
        float32 (N, K); rows sum up to 1.
    """
    weights = torch.exp(logits.float() / temperature)
    prototypes = weights.shape[1]
    rows = sum_over_ranks(torch.tensor(float(len(weights)), device=weights.device))
    weights /= sum_over_ranks(weights.sum())
    for _ in range(iterations):
        weights /= sum_over_ranks(weights.sum(dim=0, keepdim=True)) * prototypes
        weights /= weights.sum(dim=1, keepdim=True) * rows
    return weights * rows


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each row with the teacher's probabilities.

    Args:
        student: logits (N, K).
        teacher: probabilities (N, K), no gradient.
        temperature: the student's.

    Returns:
        (N,).
    """
    return -(teacher * functional.log_softmax(student.float() / temperature, dim=-1)).sum(dim=-1)


def crossed_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every student crop with every teacher crop of the same image, averaged over images, summed.

    sum over t, s of <p_t, log q_s> = <sum over t of p_t, sum over s of log q_s>: no pair is ever formed.

    Args:
        student: logits (S, B, K).
        teacher: probabilities (T, B, K), no gradient.
        temperature: the student's.

    Returns:
        scalar, the sum of S * T terms.
    """
    spoken = functional.log_softmax(student.float() / temperature, dim=-1).sum(dim=0)
    return -(teacher.sum(dim=0) * spoken).sum() / teacher.shape[1]


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    center_momentum: float,
) -> tuple[Tensor, Tensor]:
    """DINO's loss: each global crop as the teacher sees it, for all other crops as the student sees them (equation 3).

    Args:
        student: logits (V * B, K), crop by crop, the two global crops first.
        teacher: logits (2 * B, K) of the global crops in the same order, no gradient.
        center: (1, K), taken out of the teacher's logits.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's.
        center_momentum: of the moving average.

    Returns:
        Mean over the 2 V - 2 pairs and the batch, scalar; and the next center (1, K), over all processes.

    Raises:
        ValueError: rows that are no whole number of crops, at least two, of the teacher's images.
    """
    batch, odd = divmod(len(teacher), 2)
    if odd or not batch or len(student) % batch or len(student) < 2 * batch:
        raise ValueError(f"{len(student)} student rows and {len(teacher)} of the teacher: V * B and 2 * B expected")
    crops = len(student) // batch
    first, second = centred_probabilities(teacher, center, teacher_temperature).chunk(2)
    spoken = functional.log_softmax(student.float() / student_temperature, dim=-1).unflatten(0, (crops, batch))
    own_first, own_second, others = spoken.split([1, 1, crops - 2])
    rest = others.sum(dim=0)
    agreed = (first * (own_second[0] + rest)).sum() + (second * (own_first[0] + rest)).sum()
    return -agreed / (batch * (2 * crops - 2)), moved_center(center, teacher, center_momentum)


def ibot_loss(student: Tensor, teacher: Tensor, weights: Tensor, images: int, temperature: float) -> Tensor:
    """iBOT's loss of masked patches (Zhou et al. 2021, equation 2).

    Args:
        student: logits of the masked patches, (n, K).
        teacher: probabilities of the same patches, which it sees, (n, K), no gradient.
        weights: (n,), one over the number of masked patches in the patch's image.
        images: how many there are, masked or not.
        temperature: the student's.

    Returns:
        scalar.
    """
    return (weights * soft_cross_entropy(student, teacher, temperature)).sum() / images


def koleo_loss(features: Tensor, eps: float = KOLEO_EPS) -> Tensor:
    """Kozachenko-Leonenko regulariser: drives each feature away from its nearest neighbour (DINOv2, "KoLeo").

    Args:
        features: (N, D), N at least 2; not normalised yet.
        eps: least norm of a feature, and what is added to a distance before its logarithm.

    Returns:
        scalar, minus the mean log distance. The gradient goes to both ends of a distance.

    Raises:
        ValueError: a single feature has no neighbour.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} images in the batch have no neighbours; use larger batches or no KoLeo")
    points = functional.normalize(features.float(), dim=-1, eps=eps)
    with torch.no_grad():
        nearest = (points @ points.T).fill_diagonal_(-1).argmax(dim=1)
    distances = functional.pairwise_distance(points, points[nearest], eps=KOLEO_EPS)
    return -torch.log(distances + eps).mean()
