"""Probes against oracles: naive neighbours, closed-form ridge, data of which the answer is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from v2r_core.evaluate.probe import (
    ProbeError,
    attentive_probe,
    knn_classify,
    knn_probe,
    linear_probe,
    normalised,
    topk_accuracy,
)
from v2r_core.evaluate.protocols import PROTOCOLS
from v2r_core.nn.attentive import AttentiveProbe


def clusters(rows: int = 120, width: int = 8, classes: int = 3, noise: float = 0.3, seed: int = 0):
    """Features around a centre for each class, and the classes; classes' centres do not depend on the seed."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return (centres[labels] + noise * rng.normal(size=(rows, width))).astype(np.float32), labels


def naive_knn(train, labels, test, k, temperature, classes):
    scores = np.zeros((len(test), classes))
    for row, query in enumerate(test):
        similarity = [float(np.dot(query, known)) for known in train]
        for index in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
            scores[row, labels[index]] += math.exp(similarity[index] / temperature)
    return scores


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 12), temperature=st.floats(0.05, 2.0))
def test_neighbours_vote_as_a_naive_loop_says(seed, k, temperature):
    features, labels = clusters(12, 4, 4, noise=1.0, seed=seed)
    test, _ = clusters(5, 4, 4, noise=1.0, seed=seed + 1)
    train, test = normalised(features), normalised(test)
    found = knn_classify(train, labels, test, k, temperature, num_classes=5)
    np.testing.assert_allclose(found, naive_knn(train, labels, test, k, temperature, 5), rtol=1e-4)
    assert (found[:, 4] == 0).all()


def test_equal_scores_rank_by_class_number():
    scores = np.array([[0.0, 2.0, 2.0, 0.0]])
    assert [topk_accuracy(scores, np.array([1]), k) for k in (1, 2)] == [100, 100]
    assert [topk_accuracy(scores, np.array([2]), k) for k in (1, 2)] == [0, 100]
    assert [topk_accuracy(scores, np.array([3]), k) for k in (3, 4, 9)] == [0, 100, 100]


@pytest.mark.parametrize("k", [0, 121])
def test_more_neighbours_than_rows(k):
    features, labels = clusters()
    with pytest.raises(ProbeError, match="choose 1 to 120"):
        knn_classify(features, labels, features, k)


def test_knn_probe_separates_clusters():
    result = knn_probe(*clusters(), *clusters(seed=1), k=5)
    assert result.top1 > 95
    assert result.top5 == 100


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_learns_what_is_separable(protocol):
    settings = PROTOCOLS[protocol]
    if settings.optimizer == "lars":
        # At the rate that MAE uses with its batch of 16384, and with more steps: LARS moves a thousandth of the norm.
        settings = dataclasses.replace(settings, rates=(6.4,), per_256=False, batch_size=8)
    result = linear_probe(*clusters(noise=0.1), *clusters(seed=1, noise=0.1), settings, epochs=40)
    assert result.top1 > 90, result
    assert math.isfinite(result.loss)
    assert result.steps == 40 * math.ceil(120 / min(120, settings.batch_size))


def test_the_rate_follows_the_batch_that_was_used():
    rate = linear_probe(*clusters(64), *clusters(seed=1), "simclr", epochs=1).rate
    assert rate == pytest.approx(0.1 * 64 / 256)
    assert linear_probe(*clusters(64), *clusters(seed=1), "moco", epochs=1).rate == 30


def test_a_sweep_does_not_look_at_the_held_out_labels():
    train, test = clusters(), clusters(seed=1)
    wrong = (test[1] + 1) % 3
    rates = {linear_probe(*train, test[0], labels, "dinov2", epochs=3).rate for labels in (test[1], wrong)}
    assert len(rates) == 1


def test_the_same_seed_gives_the_same_result():
    arguments = (*clusters(), *clusters(seed=1), "dino", 3)
    assert linear_probe(*arguments, seed=1) == linear_probe(*arguments, seed=1)
    assert linear_probe(*arguments, seed=1).loss != linear_probe(*arguments, seed=2).loss


def test_views_are_used_in_turn():
    features, labels = clusters()
    # The second view says nothing: an even epoch count that ends with it has the loss of chance there.
    views = np.stack([features, np.zeros_like(features)])
    single = dataclasses.replace(PROTOCOLS["simclr"], rates=(0.01,))
    loss = linear_probe(views, labels, features, labels, single, epochs=2).loss
    assert loss == pytest.approx(math.log(3), abs=0.05)
    assert linear_probe(features, labels, features, labels, single, epochs=2).loss < loss


def test_a_huge_rate_is_named():
    protocol = dataclasses.replace(PROTOCOLS["moco"], rates=(1e38,))
    with pytest.raises(ProbeError, match="diverged"):
        linear_probe(*clusters(), *clusters(seed=1), protocol, epochs=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "byol"}, "byol"),
        ({"epochs": 0}, "epochs is 0"),
        ({"train_labels": np.zeros(3, int)}, "expected"),
        ({"test_features": np.full((120, 8), np.nan, np.float32)}, "not finite"),
    ],
)
def test_bad_arguments_are_named(change, message):
    features, labels = clusters()
    arguments = {
        "train_features": features,
        "train_labels": labels,
        "test_features": features,
        "test_labels": labels,
        **change,
    }
    with pytest.raises(ProbeError, match=message):
        linear_probe(**arguments)


class MeanToken(nn.Module):
    """The simplest attentive probe: no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.linear(tokens.mean(dim=1))


def test_the_attentive_probe_trains_the_module():
    torch.manual_seed(0)
    (train, labels), (test, truth) = clusters(), clusters(seed=1)
    tokens, test_tokens = (np.repeat(rows[:, None], 4, axis=1) for rows in (train, test))
    result = attentive_probe(MeanToken(), tokens, labels, test_tokens, truth, epochs=20, batch_size=8, rate=0.01)
    assert result.top1 > 95
    assert result.top5 == 100


def hidden_token(rows: int, seed: int):
    """One of 16 tokens is marked by its first number and tells the class by its second; the others only distract."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(rows, 16, 12)).astype(np.float32)
    tokens[..., 0] = 0.0
    place, labels = rng.integers(0, 16, rows), rng.integers(0, 2, rows)
    tokens[np.arange(rows), place, :2] = np.stack([np.full(rows, 4.0), np.where(labels, 1.5, -1.5)], 1)
    return tokens, labels


def test_attention_finds_what_a_mean_cannot():
    """V-JEPA's own probe, where the answer lies in a token that has to be looked for."""
    (train, labels), (test, truth) = hidden_token(512, 0), hidden_token(200, 1)
    torch.manual_seed(0)
    probe = AttentiveProbe(12, 2, heads=3)
    result = attentive_probe(probe, train, labels, test, truth, epochs=20, batch_size=32, rate=3e-3)
    assert result.top1 > 98
    mean = linear_probe(train.mean(1), labels, test.mean(1), truth, "simclr", seed=0)
    assert mean.top1 < 75
