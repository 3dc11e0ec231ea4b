"""What a robot recorded, as training data."""

from __future__ import annotations

from pathlib import Path

from v2r_core.rl.observation import Observer
from v2r_core.rl.replay import ReplayStore


def check_recordings(folder: Path, action_dim: int) -> None:
    """Looks whether an agent can learn from what policy_node recorded.

    Args:
        folder: what `record_dir` was, a replay of pixels.
        action_dim: of the agent.

    Raises:
        ValueError: not a replay of pixels, of other actions, or without a complete episode.
    """
    with ReplayStore(folder, read_only=True) as recorded:
        layout = recorded.layout
        if layout.frame_dtype != "uint8" or len(layout.frame_shape) != 3:
            raise ValueError(f"{folder} holds {layout.frame_dtype} {layout.frame_shape}, uint8 (3, S, S) expected")
        if layout.action_dim != action_dim:
            raise ValueError(f"{folder} has actions of {layout.action_dim}, the agent's have {action_dim}")
        if not recorded.episodes:
            raise ValueError(f"{folder} has no complete episode ({'; '.join(recorded.skipped) or 'nothing recorded'})")


def fill_from_recordings(store: ReplayStore, folder: Path, observer: Observer) -> int:
    """Copies the episodes that policy_node recorded into an agent's replay, frame by frame as the agent sees them.

    Args:
        store: the agent's own.
        folder: see `check_recordings`.
        observer: from frames to the agent's rows.

    Returns:
        How many episodes there were.
    """
    with ReplayStore(folder, read_only=True) as recorded:
        for episode in recorded.episodes:
            frames, steps = recorded.read(episode)
            store.begin(observer(frames[0].transpose(1, 2, 0)))
            for t in range(1, episode.rows):
                row, step = observer(frames[t].transpose(1, 2, 0)), steps[t]
                store.append(step["action"], float(step["reward"]), float(step["discount"]), row)
            store.end(**episode.notes)
        return len(recorded.episodes)
