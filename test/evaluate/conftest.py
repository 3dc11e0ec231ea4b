"""What tests of the report of `v2r eval reward` share."""

from __future__ import annotations

import pytest
from episode_data import write_episodes

from v2r_core.evaluate.episodes import read_episodes
from v2r_core.evaluate.reward_plan import SuiteOptions, make_plan
from v2r_core.evaluate.reward_report import RewardReport, report_model
from v2r_core.evaluate.reward_suite import run_model
from v2r_core.evaluate.scored_models import NoveltyControl, TimeControl, pixel_control


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> RewardReport:
    """Of three models on a dozen episodes; takes seconds, and nobody changes it."""
    root = tmp_path_factory.mktemp("report")
    write_episodes(root / "train", (0, 1), ("expert",))
    data = read_episodes(write_episodes(root / "<held> & out", (7, 8)))
    options = SuiteOptions(perturbed=2, min_interval=3)
    plan = make_plan(data, read_episodes(root / "train"), options)
    step = NoveltyControl(lambda batch: batch.reshape(len(batch), -1)[:, :1].astype("float32"), "the first pixel")
    models = [
        report_model(run_model(model, plan, options), plan, options, place > 0)
        for place, model in enumerate([pixel_control(), TimeControl(), step])
    ]
    return RewardReport(data.folder, {"made by": "<script>alert(1)</script>"}, plan, options, models, {"x": "why not"})
