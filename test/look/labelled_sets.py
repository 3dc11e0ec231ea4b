"""Labelled sets that need no model, for tests of what looks at labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from clip_writer import write_video

from v2r_core.deploy.stream import Status
from v2r_core.label.set_writer import ManifestLine
from v2r_core.label.table import LabelOrigin, Labels, write_labels
from v2r_core.rewards.reward import RewardCurve

FRAMES = 24
HEAD = {"model": "tiny", "model_sha256": "0" * 64, "reward": "vip"}


def rising(count: int = FRAMES, end: float = 1.0, name: str = "a.mp4", goal_source: str = "goal.png") -> Labels:
    """Progress rises from 0 to `end`; the first frame has no reward."""
    progress = np.linspace(0, end, count)
    reward = np.diff(progress, prepend=np.nan)
    zeros, ones = np.zeros(count, np.int64), np.ones(count, np.int64)
    curve = RewardCurve(reward, reward.copy(), progress - 1, progress, zeros, ones, np.full(count, 0.2))
    status = np.where(np.arange(count) == 0, Status.WARMING_UP, Status.OK).astype(np.int64)
    origin = LabelOrigin(source="videos/" + name, name=name, goal="goal", goal_source=goal_source, kind="value", **HEAD)
    return Labels(origin, np.arange(count) / 30, curve, status)


def write_video_set(folder: Path, labels: dict[str, Labels], failed: dict[str, str] | None = None) -> Path:
    """A labelled folder of videos as `v2r label` writes it; frame t of each video carries the number t."""
    root, out = folder / "videos", folder / "labelled"
    lines = []
    looks = (1000, 1, "key")
    for name, each in labels.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, count=len(each))
        write_labels(out / "labels" / f"{name}.parquet", each)
        lines.append(ManifestLine.of(name, "failed", 0, 0.0, "an earlier try", looks))
        lines.append(ManifestLine.of(name, "done", len(each), 0.1, "", looks))
    lines += [ManifestLine.of(name, "failed", 0, 0.0, why, looks) for name, why in (failed or {}).items()]
    head = {"schema_version": 1, "kind": "videos", "root": str(root), **HEAD, "reward_kind": "value"}
    (out / "set.json").write_text(json.dumps(head))
    (out / "manifest.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    return out
