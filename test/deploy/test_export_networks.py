"""Networks of a learned reward: from torch into a bundle, and back as what a robot runs."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tiny_bundle import write_tiny_bundle
from torch import Tensor, nn

from v2r_core.deploy.bundle import Bundle, load_bundle, reward_spec, write_manifest
from v2r_core.deploy.export_networks import ExportError, export_networks
from v2r_core.deploy.folder import BundleError, describe_files
from v2r_core.deploy.runtime import NetworkSession
from v2r_core.deploy.stream import Scorer, Status


class Distance(nn.Module):
    """Mean difference, with a weight that a wrong file would not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (self.weight * (second - first)).mean(dim=1)


class Lookup(nn.Module):
    """A table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).sum(dim=1)


@dataclass
class Network:
    module: nn.Module
    inputs: dict[str, Tensor] = field(default_factory=dict)
    output: str = "out"


def bundle_with(tmp_path, reward="time", **parameters) -> Bundle:
    folder = write_tiny_bundle(tmp_path / "bundle")
    example = torch.zeros(2, 48)
    parts = export_networks(
        {"pair": Network(Distance(), {"first": example, "second": example}, "distance")},
        {"codebook": np.arange(6.0).reshape(2, 3)},
        folder,
    )
    manifest = load_bundle(folder).manifest
    names = [*manifest.files, *parts.files]
    update = {
        "networks": parts.networks,
        "tensors": parts.tensors,
        "reward": reward_spec(reward, parameters),
        "files": describe_files(folder, names),
    }
    write_manifest(folder, manifest.model_copy(update=update))
    return load_bundle(folder)


def test_a_network_gives_on_the_robot_what_it_gave_in_torch(tmp_path):
    bundle = bundle_with(tmp_path)
    network = NetworkSession(bundle, "pair", ["cpu"])
    rng = np.random.default_rng(0)
    for count in (1, 3):
        first, second = rng.standard_normal((2, count, 48)).astype(np.float32)
        np.testing.assert_allclose(
            network(first=first, second=second), 2 * (second - first).mean(1), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(bundle.tensors()["codebook"], np.arange(6.0).reshape(2, 3))


def test_integer_inputs_keep_their_range(tmp_path):
    torch.manual_seed(0)
    folder = write_tiny_bundle(tmp_path / "bundle")
    tokens = torch.tensor([[0, 6, 1], [2, 3, 4]])
    parts = export_networks({"lookup": Network(Lookup(), {"tokens": tokens})}, {}, folder)
    assert parts.networks["lookup"].inputs["tokens"].high == 7
    assert parts.tensors is None
    assert max(int(value.max()) for value in parts.networks["lookup"].example().values()) <= 6


def test_another_file_under_the_same_name_is_found_out(tmp_path):
    bundle = bundle_with(tmp_path)
    other = Distance()
    other.weight.data.fill_(3.0)
    example = torch.zeros(2, 48)
    export_networks({"pair": Network(other, {"first": example, "second": example}, "distance")}, {}, bundle.path)
    with pytest.raises(BundleError, match=r"pair\.onnx"):
        load_bundle(bundle.path)
    with pytest.raises(BundleError, match="differs from the stored answer"):
        NetworkSession(bundle, "pair", ["cpu"])


def test_a_network_that_depends_on_the_batch_is_refused(tmp_path):
    class Counts(nn.Module):
        def forward(self, first: Tensor) -> Tensor:
            return first.mean(dim=1) + first.mean()

    folder = write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(ExportError, match="counts: the graph differs"):
        export_networks({"counts": Network(Counts(), {"first": torch.randn(2, 4)})}, {}, folder)


def test_the_scorer_runs_a_learned_reward_and_its_score_equals_its_steps(tmp_path, square_video):
    scorer = Scorer(bundle_with(tmp_path), providers=["cpu"])
    assert scorer.reward_name == "time"
    steps = [scorer.step(frame) for frame in square_video]
    assert steps[0][1] is Status.WARMING_UP
    assert {status for _, status in steps[1:]} == {Status.OK}

    class Video(list):
        stamps = np.arange(len(square_video)) / 30

    scored = scorer.score(Video(square_video))
    np.testing.assert_allclose(scored.curve.value, [sample.value for sample, _ in steps], atol=1e-6)


def test_a_bundle_without_the_network_says_that_the_reward_must_be_learned(tiny_bundle):
    with pytest.raises(ValueError, match="has to be learned"):
        Scorer(load_bundle(tiny_bundle), reward="time", providers=["cpu"])


def test_a_listed_network_must_be_among_the_files(tmp_path):
    bundle = bundle_with(tmp_path)
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    del manifest["files"]["pair.onnx"]
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="used but not listed"):
        load_bundle(bundle.path)
