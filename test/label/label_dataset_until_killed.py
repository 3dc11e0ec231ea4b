"""Labels a LeRobotDataset in a process of its own, which a test kills. Says when it begins."""

from __future__ import annotations

import sys
from pathlib import Path

from v2r_core.label.lerobot import DatasetTask, label_dataset
from v2r_core.label.video_labeller import LabellerOptions


def main(dataset: str, out: str, model: str, goal: str) -> None:
    print("begins", flush=True)
    done = label_dataset(DatasetTask(Path(dataset), Path(out), goal=goal or None), LabellerOptions(Path(model)))
    print(done.resumed, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
