"""A bundle is used whole and unchanged, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import MANIFEST, load_bundle
from v2r_core.deploy.folder import BundleError

FILES = ["encoder.fp32.onnx", "README.md"]


def edit(bundle: Path, **changes: object) -> None:
    content = json.loads((bundle / MANIFEST).read_text())
    content.update(changes)
    (bundle / MANIFEST).write_text(json.dumps(content))


def test_a_whole_bundle_loads(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert bundle.manifest.name == "tiny"
    assert bundle.graph("fp32").is_file()
    assert len(bundle.sha256) == 64


def test_the_shipped_bundle_loads_and_is_small() -> None:
    bundle = load_bundle(DEFAULT_BUNDLE)
    assert set(bundle.manifest.encoder.graphs) == {"fp32", "fp16"}
    size = sum(file.stat().st_size for file in DEFAULT_BUNDLE.iterdir())
    assert size <= 10 * 2**20


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_one_flipped_bit_is_found_and_named(tiny_bundle: Path, name: str, at: float) -> None:
    file = tiny_bundle / name
    data = bytearray(file.read_bytes())
    data[-1 if at < 0 else int(at * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}.*sha256"):
        load_bundle(tiny_bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*missing"):
        load_bundle(tiny_bundle)


def test_a_truncated_file_is_named(tiny_bundle: Path) -> None:
    file = tiny_bundle / "encoder.fp32.onnx"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BundleError, match=r"encoder.fp32.onnx.*bytes"):
        load_bundle(tiny_bundle)


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="v2r export"):
        load_bundle(tmp_path)


def test_no_file_outside_the_folder(tiny_bundle: Path) -> None:
    outside = tiny_bundle.parent / "outside.onnx"
    outside.write_bytes((tiny_bundle / "encoder.fp32.onnx").read_bytes())
    content = json.loads((tiny_bundle / MANIFEST).read_text())
    files = content["files"] | {"../outside.onnx": content["files"]["encoder.fp32.onnx"]}
    edit(tiny_bundle, files=files)
    with pytest.raises(BundleError, match="leaves the bundle"):
        load_bundle(tiny_bundle)


def test_a_link_out_of_the_folder_is_refused(tiny_bundle: Path) -> None:
    file = tiny_bundle / "encoder.fp32.onnx"
    outside = tiny_bundle.parent / "outside.onnx"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match="leaves the bundle"):
        load_bundle(tiny_bundle)


def test_a_graph_without_hash_is_refused(tiny_bundle: Path) -> None:
    content = json.loads((tiny_bundle / MANIFEST).read_text())
    edit(tiny_bundle, files={"README.md": content["files"]["README.md"]})
    with pytest.raises(BundleError, match="not listed"):
        load_bundle(tiny_bundle)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema_version": 99}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../x"}, "name"),
        ({"reward": {"name": "magic"}}, "reward.name"),
    ],
)
def test_what_is_not_understood_is_named(tiny_bundle: Path, changes: dict, word: str) -> None:
    edit(tiny_bundle, **changes)
    with pytest.raises(BundleError, match=word):
        load_bundle(tiny_bundle)


def test_a_manifest_that_is_no_json(tiny_bundle: Path) -> None:
    (tiny_bundle / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="export the bundle again"):
        load_bundle(tiny_bundle)


def test_a_precision_that_is_not_there(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="fp16"):
        load_bundle(tiny_bundle).graph("fp16")
