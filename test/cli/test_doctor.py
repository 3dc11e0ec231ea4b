"""`v2r doctor` names each problem and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from v2r_core.cli import doctor
from v2r_core.cli.doctor import Doctor, Finding, examine
from v2r_core.deploy.bundle import Bundle


def by_subject() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine()}


def test_every_problem_has_a_remedy() -> None:
    for finding in examine():
        assert finding.level == "ok" or finding.remedy, finding


def test_the_shipped_model_is_checked() -> None:
    assert "self-check passed" in by_subject()["shipped model"].found


@pytest.mark.parametrize(("runs", "level"), [("CUDAExecutionProvider", "ok"), ("CPUExecutionProvider", "problem")])
def test_a_gpu_that_is_not_used(runs: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeSession:
        precision = "fp16"

        def __init__(self, bundle: Bundle, providers: list[str]) -> None:
            self.provider = runs if providers == ["cuda"] else "CPUExecutionProvider"

        def warm_up(self) -> float:
            return 1.0

    monkeypatch.setattr(doctor, "Session", FakeSession)
    monkeypatch.setattr(doctor, "gpu_name", lambda: "Orin sm87")
    monkeypatch.setattr(doctor, "providers_here", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    finding = by_subject()["shipped model on the GPU"]
    assert finding.level == level
    assert ("onnxruntime-gpu" in finding.remedy) == (level == "problem")


def test_two_ros_installations_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rclpy")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    finding = by_subject()["ROS 2"]
    if finding.level == "ok":
        pytest.skip("a ROS installation, no wheels")
    assert "both" in finding.found


def test_a_domain_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "250")
    assert by_subject()["DDS domain"].level == "problem"


def test_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.delenv("RMW_IMPLEMENTATION", raising=False)
    assert by_subject()["shared memory profile"].level == "note"
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(tmp_path / "gone.xml"))
    assert by_subject()["shared memory profile"].level == "problem"
    ours = Path(__file__).parents[2] / "config" / "fastdds.xml"
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(ours))
    assert by_subject()["shared memory profile"].level == "ok"


def test_json_and_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "250")
    assert Doctor(json=True).run() == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"subject", "level", "found", "remedy"} == set(findings[0])
