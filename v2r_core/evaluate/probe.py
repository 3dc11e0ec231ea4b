"""Classification from frozen features: nearest neighbours, linear probes as each paper trains them, attentive probe.

The linear probes work on features that were computed once. The papers encode a fresh random crop of every image in
every epoch instead. With V augmented views of each frame (`embed_recordings(..., views=V)`) epoch e trains on view
e modulo V: the papers' procedure for V = epochs, at the cost of V passes of the encoder. Without views there is no
augmentation: expect less accuracy on little data. The encoder is in evaluation mode, its batch norm too, as in the
papers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.evaluate.protocols import PROTOCOLS, Protocol
from v2r_core.nn.lars import LARS
from v2r_core.nn.schedules import half_cosine, jepa_lr, step_decay, warmup_half_cosine

KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
_CHUNK = 1024
_SELECTION_SHARE = 0.1


class ProbeError(ValueError):
    """Features, labels or settings that no probe can work on; the message says which and what to do."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of a classification probe.

    Attributes:
        top1: held-out accuracy in percent.
        top5: the same for the five best classes (all of them, where there are fewer).
        train_top1: accuracy on the training rows as they are in the first view, in percent.
        rate: learning rate that was used or chosen, for the batch that was used; NaN for nearest neighbours.
        loss: mean training loss of the last epoch; NaN for nearest neighbours.
        steps: optimizer steps of the training; 0 for nearest neighbours.
    """

    top1: float
    top5: float
    train_top1: float
    rate: float
    loss: float
    steps: int


def knn_classify(
    train_features: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test_features: NDArray[np.floating],
    k: int = KNN_NEIGHBOURS,
    temperature: float = KNN_TEMPERATURE,
    num_classes: int | None = None,
) -> NDArray[np.float64]:
    """DINO's weighted nearest neighbour classifier (paper section 4.1, Evaluation protocols).

    Args:
        train_features: (N, D), each row of length 1: see `normalised`.
        train_labels: (N,), from 0.
        test_features: (M, D), each row of length 1.
        k: neighbours that vote, each with exp(cosine similarity / temperature).
        temperature: 0.07 in the paper.
        num_classes: C; by default the largest label and one.

    Returns:
        float64 scores (M, C); 0 for a class that is not among the neighbours.

    Raises:
        ProbeError: k is not between 1 and N, or labels outside [0, C).
    """
    classes = int(train_labels.max()) + 1 if num_classes is None else num_classes
    if not 1 <= k <= len(train_features):
        raise ProbeError(f"k is {k} with {len(train_features)} training rows; choose 1 to {len(train_features)}")
    _check(train_features, train_labels, classes)
    bank = torch.from_numpy(np.asarray(train_features, np.float32))
    queries = torch.from_numpy(np.asarray(test_features, np.float32))
    labels = torch.from_numpy(np.asarray(train_labels, np.int64))
    scores = []
    for chunk in queries.split(_CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(k, dim=1)
        votes = (similarity.double() / temperature).exp()
        scores.append(torch.zeros(len(chunk), classes, dtype=torch.float64).scatter_add_(1, labels[nearest], votes))
    return torch.cat(scores).numpy()


def topk_accuracy(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int = 1) -> float:
    """Percentage of rows whose class is among the k best. Equal scores rank by ascending class number.

    Args:
        scores: (M, C).
        labels: (M,).
        k: taken as C if it is larger.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == np.asarray(labels)[:, None]).any(axis=1).mean() * 100)


def normalised(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows at length 1, float32; a row of zeros stays."""
    rows = torch.from_numpy(np.asarray(features, np.float32))
    return functional.normalize(rows, dim=-1).numpy()


def knn_probe(
    train_features: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test_features: NDArray[np.floating],
    test_labels: NDArray[np.integer],
    k: int = KNN_NEIGHBOURS,
) -> ProbeResult:
    """`knn_classify` on normalised features. Training accuracy counts a row among its own neighbours."""
    train, test = normalised(train_features), normalised(test_features)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    scores, own = (knn_classify(train, train_labels, rows, k, num_classes=classes) for rows in (test, train))
    accuracies = [topk_accuracy(scores, test_labels, best) for best in (1, 5)]
    return ProbeResult(accuracies[0], accuracies[1], topk_accuracy(own, train_labels), math.nan, math.nan, 0)


def linear_probe(
    train_features: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test_features: NDArray[np.floating],
    test_labels: NDArray[np.integer],
    protocol: str | Protocol = "moco",
    epochs: int | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Trains a linear classifier on frozen features as a paper does.

    Where a protocol has several learning rates, each is tried on nine tenths of the training rows and judged on the
    rest; the best is trained again on all. (DINOv2's code judges them on the rows that it reports, which flatters.)

    Args:
        train_features: (N, D), or (V, N, D) with V augmented views of each row.
        train_labels: (N,), from 0.
        test_features: (M, D).
        test_labels: (M,).
        protocol: name in `PROTOCOLS`, or one of your own.
        epochs: instead of the protocol's; milestones and warm-up keep their share.
        seed: of initial weights and order.

    Raises:
        ProbeError: unknown protocol, shapes that do not fit, features that are not finite, or a loss that became so.
    """
    chosen = _protocol(protocol, epochs)
    views = np.asarray(train_features, np.float32)
    views = views[None] if views.ndim == 2 else views
    test = np.asarray(test_features, np.float32)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    _check(views[0], train_labels, classes)
    _check(test, test_labels, classes)
    rate = chosen.rates[0]
    if len(chosen.rates) > 1:
        order = np.random.default_rng(seed).permutation(len(train_labels))
        judged, fitted = np.split(order, [max(1, round(_SELECTION_SHARE * len(order)))])
        accuracies = []
        for candidate in chosen.rates:
            head, _, _ = _fit(views[:, fitted], train_labels[fitted], classes, chosen, candidate, seed)
            accuracies.append(topk_accuracy(_scores(head, views[0][judged]), train_labels[judged]))
        rate = chosen.rates[int(np.argmax(accuracies))]
    head, used, loss = _fit(views, train_labels, classes, chosen, rate, seed)
    batch = min(chosen.batch_size, len(train_labels))
    scores = _scores(head, test)
    return ProbeResult(
        top1=topk_accuracy(scores, test_labels),
        top5=topk_accuracy(scores, test_labels, 5),
        train_top1=topk_accuracy(_scores(head, views[0]), train_labels),
        rate=used,
        loss=loss,
        steps=chosen.epochs * math.ceil(len(train_labels) / batch),
    )


def attentive_probe(
    probe: nn.Module,
    train_tokens: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test_tokens: NDArray[np.floating],
    test_labels: NDArray[np.integer],
    epochs: int = 20,
    batch_size: int = 64,
    rate: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> ProbeResult:
    """Trains a module on all tokens of a frozen encoder, as V-JEPA does (paper section 4.2): AdamW, half a cosine to 0.

    Args:
        probe: from tokens (B, L, D) to logits (B, C); trained in place, on the device that it is on.
        train_tokens: (N, L, D).
        train_labels: (N,), from 0.
        test_tokens: (M, L, D).
        test_labels: (M,).
        epochs: passes over the training rows.
        batch_size: rows a step.
        rate: first and largest learning rate, not scaled by the batch.
        weight_decay: of matrices; biases and norms have none.
        seed: of the order.

    Raises:
        ProbeError: labels or shapes that do not fit, tokens that are not finite, or a loss that became so.
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    for tokens, labels in ((train_tokens, train_labels), (test_tokens, test_labels)):
        _check(np.asarray(tokens).reshape(len(tokens), -1), labels, classes)
    matrices = [parameter for parameter in probe.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in probe.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay)
    train = torch.from_numpy(np.asarray(train_tokens, np.float32))
    total = epochs * math.ceil(len(train) / batch_size)
    loss = _train(
        probe,
        optimizer,
        train[None],
        train_labels,
        epochs,
        batch_size,
        lambda step: jepa_lr(step + 1, rate, rate, 0.0, 0, total),
        seed,
    )
    scores = _scores(probe, np.asarray(test_tokens, np.float32))
    return ProbeResult(
        top1=topk_accuracy(scores, test_labels),
        top5=topk_accuracy(scores, test_labels, 5),
        train_top1=topk_accuracy(_scores(probe, train.numpy()), train_labels),
        rate=rate,
        loss=loss,
        steps=total,
    )


def _protocol(protocol: str | Protocol, epochs: int | None) -> Protocol:
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ProbeError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[protocol]
    chosen = dataclasses.replace(protocol, epochs=epochs) if epochs is not None else protocol
    if chosen.epochs < 1:
        raise ProbeError(f"epochs is {chosen.epochs}, at least 1 expected")
    return chosen


def _fit(
    views: NDArray[np.float32],
    labels: NDArray[np.integer],
    classes: int,
    protocol: Protocol,
    rate: float,
    seed: int,
) -> tuple[nn.Module, float, float]:
    """The trained head, the learning rate for the batch that was used, and the loss of the last epoch."""
    _, rows, width = views.shape
    batch = min(protocol.batch_size, rows)
    used = rate * batch / 256 if protocol.per_256 else rate
    linear = nn.Linear(width, classes)
    nn.init.zeros_(linear.bias)
    if protocol.zero_init:
        nn.init.zeros_(linear.weight)
    else:
        linear.weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
    head: nn.Module = linear
    if protocol.batch_norm:
        head = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear)
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "lars":
        optimizer = LARS(linear.parameters(), lr=used, weight_decay=0.0, momentum=0.9)
    else:
        optimizer = torch.optim.SGD(
            linear.parameters(), lr=used, momentum=0.9, nesterov=protocol.optimizer == "nesterov"
        )
    steps = math.ceil(rows / batch)

    def rate_at(step: int) -> float:
        epoch = step / steps if protocol.unit == "step" else step // steps
        if protocol.schedule == "step":
            return step_decay(epoch, used, [round(part * protocol.epochs) for part in protocol.milestones])
        if protocol.warmup:
            return warmup_half_cosine(epoch, used, 0.0, protocol.warmup * protocol.epochs, protocol.epochs)
        return half_cosine(epoch, used, protocol.epochs)

    loss = _train(head, optimizer, torch.from_numpy(views), labels, protocol.epochs, batch, rate_at, seed)
    return head, used, loss


def _train(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: Tensor,
    labels: NDArray[np.integer],
    epochs: int,
    batch_size: int,
    rate_at: Callable[[int], float],
    seed: int,
) -> float:
    """Trains with cross-entropy; returns the mean loss of the last epoch."""
    device = next(head.parameters()).device
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    generator = torch.Generator().manual_seed(seed)
    head.train()
    step, losses = 0, [0.0]
    for epoch in range(epochs):
        rows, losses = views[epoch % len(views)], []
        for chosen in _batches(len(rows), batch_size, generator):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            loss = functional.cross_entropy(head(rows[chosen].to(device)), targets[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ProbeError(f"probe diverged in epoch {epoch} (loss {losses[-1]}); lower its learning rate")
            step += 1
    head.eval()
    return float(np.mean(losses))


def _batches(rows: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    parts: Sequence[Tensor] = torch.randperm(rows, generator=generator).split(size)
    return iter(parts)


@torch.inference_mode()
def _scores(head: nn.Module, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    device = next(head.parameters()).device
    parts = [head(chunk.to(device)).double().cpu() for chunk in torch.from_numpy(rows).split(_CHUNK)]
    return torch.cat(parts).numpy()


def _check(features: NDArray[np.floating], labels: NDArray[np.integer], classes: int) -> None:
    if features.ndim != 2 or len(features) != len(labels):
        raise ProbeError(f"features {features.shape} and labels {labels.shape}: (N, D) and (N,) expected")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ProbeError(f"labels from {labels.min()} to {labels.max()}, 0 to {classes - 1} expected")
    if not np.isfinite(features).all():
        raise ProbeError("features are not finite; the encoder is broken or its training diverged")
