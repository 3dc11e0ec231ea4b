"""A run of `v2r rl train` as something to evaluate or to export: its record, and its agent."""

from __future__ import annotations

import dataclasses
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from v2r_core.methods.runs import read_run, tuples
from v2r_core.rl.drqv2 import DrQv2Agent
from v2r_core.rl.drqv2_recipe import DrQv2Recipe
from v2r_core.rl.evaluation import TEST_SEEDS, Evaluation, Evaluator
from v2r_core.rl.observation import make_observer
from v2r_core.rl.options import METHOD, Checkpoint, RlOptions, Task
from v2r_core.rl.rollouts import Setup
from v2r_core.rl.saving import load_state
from v2r_core.training.checkpoint import latest_checkpoint, list_checkpoints, plain, step_of

_PACKAGES = ("torch", "numpy", "gymnasium", "onnxruntime")
BEST = "best"
"""Folder in a run with the agent of its best evaluation."""


def record_of(recipe: DrQv2Recipe, task: Task, options: RlOptions) -> dict[str, Any]:
    """What a run's record says of it, as JSON takes it."""
    record = {
        "method": METHOD,
        "recipe": dataclasses.asdict(recipe),
        "task": dataclasses.asdict(task),
        "options": {"seed": options.seed, "envs": options.envs},
        "software": {package: version(package) for package in _PACKAGES},
    }
    result: dict[str, Any] = plain(record)
    return result


def recorded(run: str | Path) -> tuple[DrQv2Recipe, Task, dict[str, Any]]:
    """Recipe, task and the whole record of a run.

    Raises:
        CheckpointError: not a run.
        ValueError: a run of something else.
    """
    record = read_run(run)
    if record["method"] != METHOD:
        raise ValueError(f"{run}: a run of {record['method']}, one of v2r rl train expected")
    recipe = DrQv2Recipe(**{key: tuples(value) for key, value in record["recipe"].items()})
    return recipe, Task(**record["task"]), record


def checkpoint_of(run: str | Path, which: Checkpoint) -> Path:
    """Folder of a checkpoint. `best` is the newest one where training did not evaluate.

    Raises:
        ValueError: neither `best` nor `newest`.
        CheckpointError: no checkpoint.
    """
    if which not in get_args(Checkpoint):
        raise ValueError(f"checkpoint is {which!r}, one of {', '.join(get_args(Checkpoint))} expected")
    best = list_checkpoints(Path(run) / BEST)
    return best[-1] if which == "best" and best else latest_checkpoint(run)


def forget_later_best(run: Path, step: int) -> bool:
    """Removes agents of evaluations that a run which goes on at a step will do again.

    Returns:
        True if an older one is left.
    """
    for checkpoint in list_checkpoints(run / BEST):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    return bool(list_checkpoints(run / BEST))


def load_agent(
    run: str | Path, which: Checkpoint = "best", device: str | torch.device = "cpu"
) -> tuple[DrQv2Agent, float]:
    """The agent as a checkpoint has it.

    Returns:
        The agent, and the simulated seconds between two of its actions, NaN where the simulator does not say.

    Raises:
        CheckpointError: not a run, no checkpoint, or a damaged one.
    """
    recipe, task, _ = recorded(run)
    state = load_state(checkpoint_of(run, which))
    shape = make_observer(task.observation, recipe.size).shape
    agent = DrQv2Agent(recipe, shape, state["action_dim"], device=device)
    agent.load_state_dict(state["agent"])
    return agent, state["seconds_a_step"]


def setup_of(recipe: DrQv2Recipe, task: Task) -> Setup:
    """What the environments of an agent need."""
    return Setup(task, recipe.size, recipe.action_repeat, recipe.gamma)


def evaluate_run(
    run: str | Path, episodes: int, workers: int = 1, keep_frames: bool = False, which: Checkpoint = "best"
) -> tuple[Evaluation, float]:
    """Evaluates a checkpoint of a run without noise, on placements that neither training nor its evaluations had.

    Returns:
        The evaluation, and the simulated seconds between two actions.

    Raises:
        CheckpointError: see `load_agent`.
        EnvironmentFailure: the environment raised.
    """
    recipe, task, _ = recorded(run)
    agent, _ = load_agent(run, which)
    evaluator = Evaluator(setup_of(recipe, task), recipe.frame_stack, episodes, workers, keep_frames, TEST_SEEDS)
    try:
        return evaluator.run(lambda observation: agent.act(observation, 0, evaluate=True)), evaluator.seconds_a_step
    finally:
        evaluator.close()
