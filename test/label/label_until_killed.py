"""Labels a bag in a process of its own, which a test kills. Says when it begins, so that the start does not count."""

from __future__ import annotations

import sys
from pathlib import Path

from v2r_core.deploy.bundle import load_bundle
from v2r_core.label.rosbag import BagTask, label_bag


def main(bag: str, out: str, model: str, goal: str, *topics: str) -> None:
    bundle = load_bundle(model)
    print("begins", flush=True)
    task = BagTask(Path(bag), Path(out), topics, goal=goal or None, camera_progress=len(topics) > 1)
    done = label_bag(task, bundle)
    print(*done.resumed, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
