from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.rl import saving
from v2r_core.rl.saving import load_state, save_state
from v2r_core.training.checkpoint import list_checkpoints, step_of

STATE = {
    "weights": {"a.b": torch.arange(6.0).reshape(2, 3)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0)}, 7: {"step": 4}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 1)}],
    },
    "rng": np.random.default_rng(3).bit_generator.state,
    "in_progress": [(12345678901, [np.ones(2, np.float32), np.zeros(2, np.float32)]), (1, [])],
    "count": 4,
}


def test_nested_state_comes_back(tmp_path: Path) -> None:
    found = load_state(save_state(tmp_path, 30, STATE, keep=2))
    assert torch.equal(found["weights"]["a.b"], STATE["weights"]["a.b"])
    assert found["optimizer"]["state"][7] == {"step": 4}
    assert float(found["optimizer"]["state"][0]["step"]) == 3
    generator = np.random.default_rng(0)
    generator.bit_generator.state = found["rng"]
    assert generator.integers(1 << 60) == np.random.default_rng(3).integers(1 << 60)
    assert found["in_progress"][0][0] == 12345678901
    assert [action.tolist() for action in found["in_progress"][0][1]] == [[1, 1], [0, 0]]
    assert found["in_progress"][1] == [1, []]


def test_older_ones_go_when_a_new_one_is_complete(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path, step, STATE, keep=2)
    assert [step_of(folder) for folder in list_checkpoints(tmp_path)] == [2, 3]


def test_a_full_disk_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, 1, STATE, keep=1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_json", full)
    with pytest.raises(OSError, match="older checkpoints are untouched"):
        save_state(tmp_path, 2, STATE, keep=1)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    folder = save_state(tmp_path, 1, STATE, keep=1)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-00000001: cannot be read"):
        load_state(folder)
