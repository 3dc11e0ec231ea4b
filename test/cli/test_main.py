"""`v2r` itself: help, unknown verbs, refusals with exit code and reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from v2r_core.cli.main import VERBS, main


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert verb in text


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        assert f"v2r {verb}" in capsys.readouterr().out


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    assert "'fly'" in capsys.readouterr().err


def test_a_refusal_is_one_line_without_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["engine", str(tmp_path / "nothing")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "v2r export" in error


def test_engine_without_tensorrt_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("TensorRT is here")
    assert main(["engine"]) == 1
    assert "onnxruntime-gpu" in capsys.readouterr().err


def test_module_form() -> None:
    done = subprocess.run([sys.executable, "-m", "v2r_core.cli", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "score" in done.stdout


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(verb: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("v2r_core.cli.main._command", interrupt)
    assert main(["score", "video.mp4"]) == 130
    assert capsys.readouterr().err == "v2r score: interrupted\n"
