"""Trains a policy: act, store, learn, evaluate; resumes as if it had never stopped.

    RUN/run.json          recipe, task, options, software
    RUN/replay/           the episodes
    RUN/checkpoints/      the agent, its generators, the episodes in progress
    RUN/best/             the agent of the best evaluation
    RUN/metrics.jsonl     a line an episode, a line an evaluation; tensorboard/ has the same
    RUN/videos/           the first episode of every evaluation

The environments work while the agent learns, each in a process of its own. Order and numbers do not depend on who is
faster: an update sees the episodes that were complete when the step began.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from v2r_core.deploy.bundle import MANIFEST
from v2r_core.rl.agent_replay import open_replay, store_episode
from v2r_core.rl.drqv2 import DrQv2Agent
from v2r_core.rl.drqv2_recipe import DrQv2Recipe
from v2r_core.rl.envs import EnvironmentFailure
from v2r_core.rl.evaluation import Evaluator, training_seed
from v2r_core.rl.novelty import make_novelty, pay_novelty
from v2r_core.rl.observation import make_observer
from v2r_core.rl.offline import check_recordings, fill_from_recordings
from v2r_core.rl.options import RlOptions, Task
from v2r_core.rl.rollouts import Episode, Rollouts
from v2r_core.rl.runs import BEST, forget_later_best, record_of, setup_of
from v2r_core.rl.saving import load_state, save_state
from v2r_core.training.checkpoint import latest_checkpoint, list_checkpoints
from v2r_core.training.log import RunLog
from v2r_core.training.record import check_claim, claim, with_whole_paths
from v2r_core.training.signals import stop_signals
from v2r_core.video.writing import write_video

KEEP = 2
FAILURES = 3


class RlError(RuntimeError):
    """Training cannot go on; the message says why and what is left on disk."""


def train(recipe: DrQv2Recipe, task: Task, options: RlOptions, out: str | Path) -> Path:
    """Trains an agent.

    Args:
        recipe: of the agent.
        task: what it does, what it is paid for, and what it sees.
        options: how to train.
        out: folder of the run.

    Returns:
        The run's folder.

    Raises:
        ValueError: settings that do not fit, or a folder that holds a run, without `resume`.
        RlError: the environment fails again and again, or the last checkpoint could not be saved.
    """
    run = Path(out).expanduser()
    if options.threads:
        torch.set_num_threads(options.threads)
    task = with_whole_paths(task, ("reward", "goal", "observation"), MANIFEST)
    record = record_of(recipe, task, options)
    check_claim(run, record, options.resume)
    with _Trainer(run, recipe, task, options) as trainer:
        # Only now: a name that does not exist must not use a folder up. Who has the replay's lock has the folder.
        claim(run, record, options.resume)
        trainer.begin()
        trainer.run()
    return run


class _Trainer:
    """The loop's body, with what it needs at hand; closes what it opened."""

    def __init__(self, run: Path, recipe: DrQv2Recipe, task: Task, options: RlOptions) -> None:
        self.run_folder = run
        self.recipe, self.task, self.options = recipe, task, options
        self.observer = make_observer(task.observation, recipe.size)
        self.shape = self.observer.shape
        self.setup = setup_of(recipe, task)
        self.device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
        self.agent_steps = self.env_steps = self.updates = self.episodes = self.failures = 0
        self.saved_at = self.evaluated_at = self.judged_at = 0
        self.recent: list[bool] = []
        self.best = (-math.inf, -math.inf)
        self.metrics: list[dict[str, float]] = []
        self.rng = np.random.default_rng(options.seed)
        self.evaluator: Evaluator | None = None
        self.going_on = options.resume and bool(list_checkpoints(run))
        self.rollouts = Rollouts(self.setup, [self._next_seed() for _ in range(options.envs)])
        try:
            self._make_agent()
        except BaseException:
            self.rollouts.close()
            raise

    def _make_agent(self) -> None:
        recipe, options, action_dim = self.recipe, self.options, self.rollouts.action_dim
        if options.offline is not None and not self.going_on:
            check_recordings(options.offline, action_dim)
        self.agent = DrQv2Agent(recipe, self.shape, action_dim, seed=options.seed, device=self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.novelty = make_novelty(self.shape).to(self.device) if self.task.novelty else None
        layout = self.observer.layout(action_dim)
        self.store, self.replay_note = open_replay(self.run_folder / "replay", layout, recipe, options)

    def __enter__(self) -> _Trainer:
        return self

    def __exit__(self, *args: object) -> None:
        self.rollouts.close()
        self.store.close()
        if self.evaluator is not None:
            self.evaluator.close()

    def begin(self) -> None:
        """Goes back to the newest checkpoint, or begins with what a robot recorded."""
        if self.going_on:
            self._restore()
        else:
            self.store.rewind(0)
            if self.options.offline is not None:
                fill_from_recordings(self.store, self.options.offline, self.observer)
        if not forget_later_best(self.run_folder, self.env_steps):
            self.best = (-math.inf, -math.inf)

    def run(self) -> None:
        """All steps, or as many as a signal or `stop_after` allows."""
        options = self.options
        last = min(options.steps, options.stop_after or options.steps)
        with RunLog(self.run_folder, options.steps, self.env_steps, True) as log, stop_signals() as stopping:
            self.log = log
            self.began, self.began_at = time.perf_counter(), self.env_steps
            if self.replay_note:
                log.say(self.replay_note)
            self._pretrain()
            while self.env_steps < last and not stopping:
                try:
                    self._step()
                except EnvironmentFailure as error:
                    if not stopping:  # else the signal was sent to the environments, too
                        self._replace_environments(error)
                if options.eval_every and self.env_steps - self.evaluated_at >= options.eval_every:
                    self.evaluated_at += options.eval_every
                    if self._evaluate() >= options.stop_at:
                        break
                if self.env_steps - self.saved_at >= options.save_every and self.env_steps < last:
                    self._save(final=False)
            else:
                if stopping:
                    log.say(f"signal {stopping[0]}: saving at step {self.env_steps}; go on with --resume")
                elif last == options.steps and self.judged_at < self.env_steps:
                    self._evaluate()
            self._save(final=True)

    # --- a step ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        rollouts, count = self.rollouts, self.options.envs
        before = sum(episode.env_steps for episode in rollouts.episodes)
        actions = [
            self.agent.act(observation, self.agent_steps)
            for observation in rollouts.observations(self.recipe.frame_stack)
        ]
        rollouts.send(actions)
        self._learn(self.agent_steps, self.agent_steps + count)
        over = rollouts.receive()
        self.agent_steps += count
        self.env_steps += sum(episode.env_steps for episode in rollouts.episodes) - before
        for episode, ended in zip(rollouts.episodes, over, strict=True):
            if ended:
                self._finish(episode)
        rollouts.begin([self._next_seed() if ended else None for ended in over])
        self.failures = 0 if any(over) else self.failures

    def _learn(self, before: int, after: int) -> None:
        """The updates that are due between two counts of agent steps."""
        if self.env_steps < self.recipe.seed_frames or not self._drawable():
            return
        every = self.recipe.update_every
        for _ in range(after // every - before // every):
            self._update(before)

    def _update(self, step: int) -> None:
        recipe = self.recipe
        batch = self.store.sample(
            recipe.batch_size, self.rng, nstep=recipe.nstep, gamma=recipe.gamma, stack=recipe.frame_stack
        )
        numbers: dict[str, float] = {}
        if self.novelty is not None:
            batch, numbers["novelty"] = pay_novelty(self.novelty, batch, self.task.novelty)
        self.metrics.append(self.agent.update(batch, step) | numbers)
        self.updates += 1

    def _pretrain(self) -> None:
        """Updates on recorded episodes alone, before the first step."""
        if self.options.offline is None or self.updates or not self._drawable():
            return
        for _ in range(self.options.offline_updates):
            self._update(self.agent_steps)

    def _drawable(self) -> bool:
        return any(episode.rows > self.recipe.nstep for episode in reversed(self.store.episodes))

    # --- episodes ----------------------------------------------------------------------------------------------------

    def _next_seed(self) -> int:
        self.episodes += 1
        return training_seed(self.options.seed, self.episodes - 1)

    def _finish(self, episode: Episode) -> None:
        """Stores an episode and says how it went."""
        store_episode(self.store, episode, self.recipe.compat)
        self.recent = [*self.recent[-19:], episode.success]
        numbers = {
            "return": sum(episode.rewards),
            "sparse": episode.sparse,
            "dense": episode.dense,
            "success": float(episode.success),
            "unpaid": float(episode.unpaid),
            "updates": float(self.updates),
            "steps_per_s": (self.env_steps - self.began_at) / (time.perf_counter() - self.began),
        }
        if self.metrics:
            numbers |= {key: float(np.mean([entry[key] for entry in self.metrics])) for key in self.metrics[-1]}
            self.metrics.clear()
        rate, wins = numbers["steps_per_s"], np.mean(self.recent)
        text = f"return {numbers['return']:.3g}  success {wins:.2f}  {rate:.3g} steps/s"
        self.log.step(self.env_steps, numbers, text)

    def _replace_environments(self, error: EnvironmentFailure) -> None:
        """An environment that raises loses the episodes in progress, not the run."""
        self.rollouts.close()
        while True:
            self.failures += 1
            if self.failures >= FAILURES:
                self._save(final=True)
                raise RlError(
                    f"{error}; {FAILURES} times in a row. The run is saved: repair it, then --resume"
                ) from error
            self.log.say(f"step {self.env_steps}: {error}; the episodes in progress are lost, going on")
            try:
                self.rollouts = Rollouts(self.setup, [self._next_seed() for _ in range(self.options.envs)])
                return
            except EnvironmentFailure as another:
                error = another

    def _evaluate(self) -> float:
        """Share of successes; NaN if an environment raised, which loses the evaluation, not the run."""
        options, stack = self.options, self.recipe.frame_stack
        self.judged_at = self.env_steps
        try:
            if self.evaluator is None:
                self.evaluator = Evaluator(self.setup, stack, options.eval_episodes, options.envs, options.video)
            evaluation = self.evaluator.run(
                lambda observation: self.agent.act(observation, self.agent_steps, evaluate=True)
            )
        except EnvironmentFailure as error:
            self.log.say(f"step {self.env_steps}: not evaluated: {error}")
            if self.evaluator is not None:
                self.evaluator.close()
                self.evaluator = None
            return math.nan
        numbers = evaluation.numbers()
        self.log.step(self.env_steps, numbers, f"evaluated: success {evaluation.success:.2f}")
        self.log.say(
            f"step {self.env_steps}: success {evaluation.success:.2f} in {options.eval_episodes} episodes, "
            f"return {numbers['eval/return']:.4g}, simulator's {numbers['eval/dense']:.4g}"
        )
        if options.video:
            folder = self.run_folder / "videos"
            folder.mkdir(exist_ok=True)
            fps = 1 / self.evaluator.seconds_a_step
            write_video(folder / f"step-{self.env_steps:08d}.mp4", evaluation.episodes[0].frames, fps)
        self._keep_if_best((evaluation.success, numbers["eval/return"]))
        return evaluation.success

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _keep_if_best(self, score: tuple[float, float]) -> None:
        if score > self.best and self._write(self.run_folder / BEST, self._agent_state(), KEEP, final=False):
            self.best = score
            # A run that is killed after this knows the score of the agent that lies there.
            self._save(final=False)

    def _save(self, final: bool) -> None:
        self.saved_at = self.env_steps
        in_progress = [(episode.seed, list(episode.actions)) for episode in self.rollouts.episodes]
        state = self._agent_state() | {
            "rng": self.rng.bit_generator.state,
            "in_progress": in_progress,
            "stored": self.store.number,
            "recent": [bool(success) for success in self.recent],
            "metrics": self.metrics,
            "best": self.best,
            **{name: getattr(self, name) for name in _COUNTERS},
        }
        if self.novelty is not None:
            state["novelty"] = self.novelty.state_dict()
            state["novelty_optimizer"] = self.novelty.optimizer.state_dict()
        self._write(self.run_folder, state, KEEP, final)

    def _agent_state(self) -> dict[str, Any]:
        """What `runs.load_agent` needs."""
        rollouts = self.rollouts
        return {
            "agent": self.agent.state_dict(),
            "action_dim": rollouts.action_dim,
            "seconds_a_step": rollouts.seconds_a_step,
        }

    def _write(self, folder: Path, state: dict[str, Any], keep: int, final: bool) -> bool:
        try:
            save_state(folder, self.env_steps, state, keep)
            return True
        except OSError as error:
            if final:
                raise RlError(f"step {self.env_steps}: the last checkpoint is lost: {error}") from error
            # A full disk must not end a run that may have space again by the next checkpoint.
            self.log.say(f"step {self.env_steps}: {error}")
            return False

    def _restore(self) -> None:
        state = load_state(latest_checkpoint(self.run_folder))
        state.setdefault("judged_at", state["evaluated_at"])  # runs of older versions have none
        self.agent.load_state_dict(state["agent"])
        self.rng.bit_generator.state = state["rng"]
        for name in _COUNTERS:
            setattr(self, name, state[name])
        self.recent, self.metrics = state["recent"], state["metrics"]
        self.best = tuple(state.get("best", self.best))  # runs of older versions have none
        if self.novelty is not None:
            self.novelty.load_state_dict(state["novelty"])
            self.novelty.optimizer.load_state_dict(state["novelty_optimizer"])
        self.store.rewind(state["stored"])
        histories = [(seed, [action.numpy() for action in actions]) for seed, actions in state["in_progress"]]
        self.rollouts.come_back(histories)


_COUNTERS = ("agent_steps", "env_steps", "updates", "episodes", "saved_at", "evaluated_at", "judged_at")
