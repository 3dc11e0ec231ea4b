"""What tools/check_lerobot.py runs in the environment of the real `lerobot` package. It imports nothing of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lerobot
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.rabc import RABCWeights

SHAPE = (48, 64, 3)


def write(root: str) -> None:
    """Writes a dataset of three episodes with the real package: a camera as video, one as images, numbers, a text."""
    names = ["height", "width", "channels"]
    features = {
        "observation.images.top": {"dtype": "video", "shape": SHAPE, "names": names},
        "observation.images.wrist": {"dtype": "image", "shape": SHAPE, "names": names},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (1,), "names": None},
        "grid": {"dtype": "float32", "shape": (2, 3), "names": None},
        "note": {"dtype": "string", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("v2r/check", fps=10, features=features, root=root, vcodec="h264")
    for episode, length in enumerate((5, 3, 9)):
        for index in range(length):
            dataset.add_frame(
                {
                    "observation.images.top": np.full(SHAPE, 10 * episode + 12 * index, np.uint8),
                    "observation.images.wrist": np.full(SHAPE, 20 * episode + 12 * index, np.uint8),
                    "observation.state": np.array([index, episode], np.float32),
                    "action": np.array([index / 7], np.float32),
                    "grid": np.arange(6, dtype=np.float32).reshape(2, 3) + index,
                    "note": f"frame {index}",
                    "next.done": np.array([index == length - 1]),
                    "task": f"task {episode % 2}",
                }
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def append(root: str) -> None:
    """Records one more episode of three frames into a dataset."""
    dataset = LeRobotDataset("v2r/check", root=root, video_backend="pyav", vcodec="h264")
    counted = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    for index in range(3):
        frame: dict[str, object] = {"task": "once more"}
        for name, feature in dataset.features.items():
            if feature["dtype"] in ("video", "image"):
                frame[name] = np.full(feature["shape"], 50 * index, np.uint8)
            elif feature["dtype"] == "string":
                frame[name] = "more"
            elif name not in counted:
                frame[name] = np.ones(feature["shape"], feature["dtype"])
        dataset.add_frame(frame)
    dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


def read(root: str, out: str, most: str) -> None:
    """Writes what the real package makes of a dataset into an .npz file."""
    dataset = LeRobotDataset("v2r/check", root=root, video_backend="pyav")
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(int(most), len(dataset))).round().astype(int))
    items = [dataset[int(row)] for row in rows]
    found: dict[str, np.ndarray] = {"rows": rows}
    for name in dataset.features:
        key = f"frames/{name}" if name in dataset.meta.camera_keys else name
        found[key] = np.array([np.asarray(item[name]) for item in items])
    places = dataset.meta.episodes
    said = {
        "version": lerobot.__version__,
        "fps": dataset.fps,
        "cameras": dataset.meta.camera_keys,
        "frames": dataset.num_frames,
        "lengths": [int(place["length"]) for place in places],
        "tasks": [list(place["tasks"]) for place in places],
        "row_tasks": [[item["task"], int(item["episode_index"])] for item in items],
        "stats": {
            name: {kind: np.asarray(value).tolist() for kind, value in stats.items()}
            for name, stats in dataset.meta.stats.items()
        },
    }
    progress = Path(root) / "sarm_progress.parquet"
    if progress.exists():
        said["weights"] = weights(progress, rows)
    np.savez(out, said=np.array(json.dumps(said)), **found)


def weights(progress: Path, rows: np.ndarray) -> dict[str, object]:
    """Weights of reward-weighted training, before a batch's are made to sum up to its size."""
    chunk = 3
    reader = RABCWeights(progress, chunk_size=chunk, device="cpu")
    batch, _ = reader.compute_batch_weights({"index": rows})
    assert np.isfinite(batch.numpy()).all(), "weights of a batch"
    deltas = np.array([reader._compute_delta(int(row)) for row in rows], np.float32)
    return {
        "chunk": chunk,
        "kappa": reader.kappa,
        "delta_mean": float(reader.delta_mean),
        "index": rows.tolist(),
        "raw": reader._compute_weights(deltas).tolist(),
    }


if __name__ == "__main__":
    {"write": write, "append": append, "read": read}[sys.argv[1]](*sys.argv[2:])
