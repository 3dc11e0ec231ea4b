"""The watch: statistics against their definitions, and verdicts on made-up collapses."""

import math

import pytest
import torch

from v2r_core.training.collapse import CollapseWatch, entropy_share, feature_statistics


def test_even_directions_have_std_one_and_full_rank():
    features = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    numbers = feature_statistics(features)
    assert numbers["feature_std"] == pytest.approx(1, abs=0.01)
    assert numbers["effective_rank"] == pytest.approx(16, abs=0.2)
    assert numbers["top_share"] == pytest.approx(1 / 16, abs=0.01)


def test_effective_rank_counts_directions():
    basis = torch.eye(32)[:3]
    features = torch.cat([basis, -basis]).repeat(5, 1)
    assert feature_statistics(features)["effective_rank"] == pytest.approx(3, abs=1e-6)


def test_the_smaller_gram_matrix_gives_the_same():
    features = torch.randn(10, 30, generator=torch.Generator().manual_seed(1))
    wide = feature_statistics(features)
    padded = feature_statistics(torch.cat([features, torch.zeros(10, 100)], dim=1))
    assert wide["effective_rank"] == pytest.approx(padded["effective_rank"], rel=1e-9)


def test_no_variance_at_all_is_not_available():
    numbers = feature_statistics(torch.ones(5, 3))
    assert numbers["feature_std"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(numbers["effective_rank"])


def test_entropy_in_units_of_log_k():
    rows = torch.stack([torch.full((8,), 1 / 8), torch.eye(8)[0]])
    torch.testing.assert_close(entropy_share(rows), torch.tensor([1.0, 0.0], dtype=torch.float64))


def _verdicts(features, probabilities, looks=4):
    watch = CollapseWatch(patient_steps=10)
    found = []
    for step in range(10, 10 + looks):
        watch.add(features, probabilities)
        found.append(watch.look(step)[1])
    return found


@pytest.mark.parametrize(
    ("name", "features", "probabilities"),
    [
        ("constant", torch.ones(64, 8) + 1e-4 * torch.randn(64, 8), None),
        ("one dimension", torch.cat([torch.randn(64, 1), 0.002 * torch.randn(64, 7)], dim=1), None),
        ("uniform", torch.randn(64, 8), torch.full((64, 16), 1 / 16)),
        ("one prototype", torch.randn(64, 8), torch.eye(16)[:1].expand(64, -1)),
    ],
)
def test_each_collapse_is_named_with_a_remedy(name, features, probabilities):
    first, second, third, fourth = _verdicts(features, probabilities)
    assert first is None and second is None, "one look is not enough"
    assert fourth is None, "it is said once"
    assert third.name == name
    assert name in third.text and ";" in third.text and "\n" not in third.text


def test_a_healthy_run_is_left_alone():
    probabilities = torch.softmax(4 * torch.randn(64, 16), dim=1)
    assert _verdicts(torch.randn(64, 8), probabilities) == [None] * 4


def test_an_untrained_network_is_not_accused():
    watch = CollapseWatch(patient_steps=100)
    for step in range(20):
        watch.add(torch.ones(64, 8), None)
        assert watch.look(step)[1] is None


def test_old_features_are_forgotten():
    watch = CollapseWatch(patient_steps=0)
    watch.add(torch.ones(2000, 4), None)
    for _ in range(3):
        watch.add(torch.randn(1024, 4), None)
    assert watch.look(1)[0]["feature_std"] == pytest.approx(1, abs=0.1)
