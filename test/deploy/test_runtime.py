"""The session says who really runs, checks itself, and keeps engines apart and private."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_bundle as tiny

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy import runtime
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.folder import BundleError
from v2r_core.deploy.gpu import gpu_name
from v2r_core.deploy.runtime import (
    PROVIDERS,
    ProviderError,
    Session,
    choose_providers,
    engine_cache_root,
    engine_key,
    providers_here,
)

CPU, CUDA, TENSORRT = PROVIDERS["cpu"], PROVIDERS["cuda"], PROVIDERS["tensorrt"]


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        (["auto"], [CPU], [CPU]),
        (["auto"], [CUDA, CPU], [CUDA, CPU]),
        (["auto"], [CPU, CUDA, TENSORRT, "OtherExecutionProvider"], [TENSORRT, CUDA, CPU]),
        (["cuda"], [TENSORRT, CUDA, CPU], [CUDA, CPU]),
        (["tensorrt", "cuda"], [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU]),
        (["cpu"], [TENSORRT, CUDA, CPU], [CPU]),
    ],
)
def test_choice_of_providers(wanted: list[str], available: list[str], chosen: list[str]) -> None:
    assert choose_providers(wanted, available) == chosen


@pytest.mark.parametrize(
    ("wanted", "word"), [(["cuda"], "onnxruntime-gpu"), (["npu"], "npu"), (["auto", "cpu"], "auto")]
)
def test_a_provider_that_cannot_be_had_is_named(wanted: list[str], word: str) -> None:
    with pytest.raises(ProviderError, match=word):
        choose_providers(wanted, [CPU])


def test_embeddings_are_those_of_the_graph(tiny_bundle: Path) -> None:
    session = Session(load_bundle(tiny_bundle), providers=["cpu"])
    frames = np.random.default_rng(0).integers(0, 256, (3, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    assert session.provider == CPU
    np.testing.assert_allclose(session(frames), tiny.embed(frames), atol=1e-5)
    assert session(frames).dtype == np.float32


def test_a_gpu_that_does_not_start_leaves_the_cpu_its_own_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half precision is slow on a CPU, and is chosen before it is known that the GPU does not run."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here, and would start")
    bundle = load_bundle(DEFAULT_BUNDLE)
    monkeypatch.setattr(runtime, "providers_here", lambda wanted: [CUDA, CPU])
    session = Session(bundle)
    assert (session.provider, session.precision) == (CPU, "fp32")
    assert "was asked for but" in caplog.text
    assert Session(bundle, "fp16").precision == "fp16"


def test_self_check_refuses_another_computation(tmp_path: Path) -> None:
    bundle = load_bundle(tiny.write_tiny_bundle(tmp_path / "odd", factor=1.01))
    with pytest.raises(BundleError, match="self-check failed"):
        Session(bundle)


def test_warm_up_measures(tiny_bundle: Path) -> None:
    assert 0.0 < Session(load_bundle(tiny_bundle)).warm_up() < 1e3


def test_engine_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loose = tmp_path / "v2r" / "engines"
    loose.mkdir(parents=True, mode=0o777)
    loose.chmod(0o777)
    root = engine_cache_root()
    assert root == loose
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_engine_cache_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "v2r").mkdir()
    (tmp_path / "v2r" / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProviderError, match="engines"):
        engine_cache_root()


def test_engine_key_differs_by_all_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_bundle(tiny.write_tiny_bundle(tmp_path / "one"))
    other = load_bundle(tiny.write_tiny_bundle(tmp_path / "other", factor=2.0))
    machine = {"gpu": "Orin sm87", "trt": "101300"}
    monkeypatch.setattr(runtime, "gpu_name", lambda: machine["gpu"])
    monkeypatch.setattr(runtime, "tensorrt_version", lambda: machine["trt"])
    keys = [engine_key(one, "fp32"), engine_key(other, "fp32")]
    machine["gpu"] = "Orin sm90"
    keys.append(engine_key(one, "fp32"))
    machine["trt"] = "110000"
    keys.append(engine_key(one, "fp32"))
    assert len(set(keys)) == len(keys)
    assert all("/" not in key and " " not in key for key in keys)


def test_a_graph_that_does_not_load_is_named(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    (tiny_bundle / "encoder.fp32.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"encoder.fp32.onnx"):
        Session(bundle)


def test_scoring_never_imports_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from v2r_core.deploy.bundle import load_bundle\n"
        "from v2r_core.deploy.stream import Scorer\n"
        "import v2r_core.video, v2r_core.rewards, v2r_core.plot, v2r_core.cli.score\n"
        f"s = Scorer(load_bundle({str(tiny_bundle)!r}))\n"
        "s.set_goal(s.goal_from_frames([np.zeros((9, 9, 3), np.uint8)], 'g'))\n"
        "s.step(np.zeros((9, 9, 3), np.uint8))\n"
        "bad = [m for m in ('torch', 'torchvision', 'timm', 'scipy', 'rclpy') if m in sys.modules]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gpu_gives_the_same_embeddings(precision: str) -> None:
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers() or not gpu_name():
        pytest.skip("no GPU, or no onnxruntime-gpu")
    bundle = load_bundle(DEFAULT_BUNDLE)
    size = bundle.manifest.encoder.preprocess.size
    frames = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    session = Session(bundle, precision, ["cuda"])
    assert session.provider == CUDA
    expected, found = Session(bundle, "fp32", ["cpu"])(frames), session(frames)
    cosine = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() > 0.9999


def test_libraries_of_pip_are_loaded_before_a_gpu_is_asked_for(monkeypatch, capsys) -> None:
    import onnxruntime

    def preload() -> None:
        calls.append(1)
        print("Failed to load libcudart")

    calls: list[int] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(runtime, "tensorrt_version", lambda: "")
    assert providers_here(["auto"]) == [CUDA, CPU]
    assert providers_here(["cpu"]) == [CPU]
    monkeypatch.setattr(runtime, "tensorrt_version", lambda: "101300")
    assert providers_here(["auto"]) == [TENSORRT, CUDA, CPU]
    assert calls == [1, 1]
    assert not capsys.readouterr().out
