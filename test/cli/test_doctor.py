"""`v2r doctor` names each problem and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from v2r_core.cli.doctor import Doctor, Finding, examine


def by_subject() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine()}


def test_every_problem_has_a_remedy() -> None:
    for finding in examine():
        assert finding.level == "ok" or finding.remedy, finding


def test_the_shipped_model_is_checked() -> None:
    assert "self-check passed" in by_subject()["shipped model"].found


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
