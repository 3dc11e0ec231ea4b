"""An agent's replay: how large it may be, and how what its environments did gets into it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from v2r_core.rl.drqv2_recipe import DrQv2Recipe
from v2r_core.rl.options import RlOptions
from v2r_core.rl.replay import ReplayStore, stored_discount
from v2r_core.rl.replay_files import Layout
from v2r_core.rl.rollouts import Episode


def open_replay(folder: Path, layout: Layout, recipe: DrQv2Recipe, options: RlOptions) -> tuple[ReplayStore, str]:
    """Opens an agent's replay: as many frames as the recipe wants, or as much of the disk as it may have.

    Returns:
        The store, and what there is to say of its size: that the disk's limit is below what the recipe wants, or that
        a replay of before keeps another size than the one that is asked for now; empty if all is as wanted.

    Raises:
        ReplayError: another process writes there, it holds rows of another kind, or its limit is below two rows.
    """
    asked = min(recipe.replay_rows, math.floor(options.replay_gb * 1e9) // layout.row_bytes)
    store = ReplayStore(folder, layout, asked * layout.row_bytes)
    wanted, given, rows = recipe.replay_rows, options.replay_gb, store.capacity_rows
    if rows != asked:
        return (
            store,
            f"the replay keeps the {rows:,} frames that it was made for: --replay-gb {given:g} is for new runs",
        )
    if rows < wanted:
        enough = math.ceil(wanted * layout.row_bytes / 1e8) / 10
        return store, (
            f"the replay holds {rows:,} frames, for --replay-gb {given:g} allows no more; the recipe's {wanted:,} need "
            f"a run that is started with --replay-gb {enough:g}"
        )
    return store, ""


def store_episode(store: ReplayStore, episode: Episode, compat: Literal["official", "paper"]) -> None:
    """Commits a complete episode.

    Args:
        store: the agent's.
        episode: of its environments.
        compat: the recipe's, see `replay.stored_discount`.

    Raises:
        OSError: the disk takes no more.
    """
    store.begin(episode.rows[0])
    steps = list(zip(episode.actions, episode.rewards, episode.rows[1:], strict=True))
    for number, (action, reward, row) in enumerate(steps, start=1):
        terminated = episode.terminated and number == len(steps)
        store.append(action, reward, stored_discount(terminated, compat), row)
    store.end(seed=episode.seed, success=int(episode.success), dense=episode.dense)
