"""One table declares the parameters; config, README and nodes agree with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rclpy.parameter import Parameter

from v2r_ros.parameters import (
    GAZEBO_RESET,
    POLICY_NODE,
    RECORDER,
    REWARD_NODE,
    SIM_NODE,
    VIDEO_NODE,
    check_change,
    markdown,
)

ROOT = Path(__file__).parents[2]
TABLES = [REWARD_NODE, POLICY_NODE, SIM_NODE, VIDEO_NODE, GAZEBO_RESET, RECORDER]


@pytest.mark.parametrize(
    ("name", "table"), [("reward", REWARD_NODE), ("policy", POLICY_NODE), ("sim", SIM_NODE)], ids=lambda x: str(x)[:6]
)
def test_config_holds_every_parameter_with_its_default(name: str, table: tuple) -> None:
    content = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    assert list(content) == [f"/**/{name}_node"]
    expected = {s.name: list(s.default) if isinstance(s.default, tuple) else s.default for s in table}
    assert content[f"/**/{name}_node"]["ros__parameters"] == expected


def test_what_gazebo_yaml_sets_is_in_the_tables() -> None:
    content = yaml.safe_load((ROOT / "config" / "gazebo.yaml").read_text())
    tables = {"/**/policy_node": POLICY_NODE, "/**/gazebo_reset": GAZEBO_RESET}
    assert content.keys() == tables.keys()
    for node, table in tables.items():
        known = {spec.name: spec for spec in table}
        for name, value in content[node]["ros__parameters"].items():
            assert not known[name].problem(value)
            assert type(value) is type(known[name].default) or isinstance(value, list), name
    assert content["/**/gazebo_reset"]["ros__parameters"] == {spec.name: spec.default for spec in GAZEBO_RESET}


@pytest.mark.parametrize("table", TABLES)
def test_readme_shows_the_table(table: tuple) -> None:
    assert markdown(table) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("table", TABLES)
def test_defaults_lie_in_their_own_range(table: tuple) -> None:
    for spec in table:
        assert not spec.problem(spec.default), spec
        if spec.low is not None:
            assert spec.low <= spec.default <= spec.high, spec
        assert spec.description


def test_configure_parameters_are_frozen_once_configured() -> None:
    change = [Parameter("model", value="elsewhere")]
    assert check_change(REWARD_NODE, change, configured=False).successful
    verdict = check_change(REWARD_NODE, change, configured=True)
    assert not verdict.successful
    assert "model" in verdict.reason


def test_live_parameters_can_change_at_any_time() -> None:
    assert check_change(REWARD_NODE, [Parameter("reward_scale", value=2.0)], configured=True).successful


def test_a_value_outside_the_choices_is_refused_by_name() -> None:
    verdict = check_change(REWARD_NODE, [Parameter("reward", value="magic")], configured=False)
    assert not verdict.successful
    assert "'magic'" in verdict.reason
    assert "uvd" in verdict.reason
