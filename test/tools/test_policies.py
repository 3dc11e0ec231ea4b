from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.policies import REWARDS, outcome_of, table
from v2r_core.cli.rl import Train

EVALUATIONS = [(3000, 0.2), (6000, 0.95), (9000, 0.9)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps({"method": "drqv2", "recipe": {"action_repeat": 3}}))
    lines = [{"step": 120, "return": 1.0}]
    lines += [{"step": step, "eval/success": success, "eval/unpaid": 10.0} for step, success in EVALUATIONS]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "test.json").write_text(json.dumps({"success": 0.85}))
    return tmp_path


def test_what_a_run_came_to(run: Path) -> None:
    outcome = outcome_of(run, "door-close", "vip", 0, 12.0)
    assert outcome.curve == [list(pair) for pair in EVALUATIONS]
    assert (outcome.test, outcome.success, outcome.steps, outcome.good_at) == (0.85, 0.9, 9000, 6000)
    assert outcome.unpaid == pytest.approx(10 / 40)
    console = Console(record=True, width=100)
    console.print(table([outcome, outcome_of(run, "door-close", "sparse", 0, 1.0)]))
    assert console.export_text().count("0.85 (6000)") == 2


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_is_one_that_training_takes(reward: str, tmp_path: Path) -> None:
    words = [word.format(bundles="bundles", task="door-close") for word in REWARDS[reward]]
    common = ["--env", "metaworld:door-close-v3", "--observation", "eyes", "--out", str(tmp_path)]
    parsed = Train.parse([*common, *words])
    assert parsed.task.paid_by_bundle == (reward not in ("sparse", "dense", "novelty"))
