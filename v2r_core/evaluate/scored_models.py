"""One way to run whatever is judged: a bundle as the robot runs it, or a control that it has to beat."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer, flat
from v2r_core.rewards.baselines import RandomEncoder, pixel_embedding
from v2r_core.rewards.goal import goal_from_demonstration
from v2r_core.rewards.goal_distance import GoalDistance
from v2r_core.rewards.reward import Embed, RewardCurve, RewardKind, RewardSample
from v2r_core.rewards.uvd import decompose
from v2r_core.video.resize import Frame, Preprocess, resize_frame

Rows = NDArray[Any]
"""What a model makes of frames, one row a frame: a frame's row depends on that frame alone."""

BATCH = 16
CONTROL_SIZE = 64
STEPS_OF_TIME = 3
"""Equal parts into which the control `time` cuts an episode."""
RND_STEPS, RND_BATCH, RND_RATE = 200, 32, 1e-3
RND_FRAMES = 2000
"""Most frames that RND learns from."""
NAN = float("nan")

_MEMORY_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.stream import Scorer
from v2r_core.rewards.goal import goal_from_demonstration

scorer = Scorer(load_bundle(sys.argv[1]), threads=int(sys.argv[3]))
with np.load(sys.argv[2]) as given:
    if given["goal"].size:
        scorer.set_goal(goal_from_demonstration(given["goal"], "goal"))
    for _ in range(2 * scorer.reward.history + 1):
        scorer.step(given["frame"])
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
print(next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan")))
"""
"""What a robot loads, and nothing of this suite."""


class ScoredModel(Protocol):
    """A reward, as the suite sees it. Two stages, so that each frame of a video is embedded once.

    Attributes:
        name: for tables.
        kind: see `Reward`.
        needs_goal: a goal has to be given; False too for one that brings its own.
        stochastic: another seed may give other numbers.
        about: what it is, for the report.
    """

    name: str
    kind: RewardKind
    needs_goal: bool
    stochastic: bool
    about: dict[str, str]

    def embed(self, frames: Sequence[Frame]) -> Rows:
        """Rows of frames, uint8 RGB (H, W, 3) of any size."""

    def score(self, rows: Rows, goal: Rows | None, seed: int = 0) -> RewardCurve:
        """Scores an episode.

        Args:
            rows: of its frames in order.
            goal: rows of the demonstration whose end is the goal; None if no goal is needed.
            seed: of what it draws.
        """

    def step(self, frame: Frame) -> RewardSample:
        """Scores one frame more of the episode that `score` ended, the way a robot does: for speed."""

    def boundaries(self, rows: Rows, min_interval: int) -> list[int] | None:
        """Frames at which a subgoal is reached, without the end; None for a reward that knows none."""

    def peak_mb(self, frame: Frame, goal: Rows | None) -> float | None:
        """Largest memory in MB of a process that does nothing but score with it; None where that is not measured."""


class BundleModel:
    """A bundle, through the same scorer as on the robot. See `ScoredModel`."""

    def __init__(
        self,
        folder: str | Path,
        threads: int = 1,
        name: str | None = None,
        parameters: Mapping[str, float | int | str] | None = None,
    ) -> None:
        """Loads it.

        Args:
            folder: of the bundle.
            threads: CPU threads of its networks.
            name: for tables; None takes the bundle's.
            parameters: of its reward, that override the bundle's.

        Raises:
            BundleError: not a bundle, or a damaged one.
            ValueError: the reward has no such parameter, or a value out of range.
        """
        self._bundle = load_bundle(folder)
        self._threads = threads
        self._parameters = dict(parameters or {})
        self._scorers = {0: Scorer(self._bundle, parameters=self._parameters, threads=threads)}
        scorer, manifest = self._scorers[0], self._bundle.manifest
        self.name = name or manifest.name
        self.kind: RewardKind = scorer.reward.kind
        self.own_goal = scorer.goal is not None
        self.needs_goal = scorer.reward.needs_goal and not self.own_goal
        self.stochastic = scorer.reward.stochastic
        self._goal_rows: dict[int, Rows] = {}
        self.about = {
            "reward": scorer.reward_name,
            "encoder": manifest.encoder.name,
            "goal": "its own" if self.own_goal else "from the data" if self.needs_goal else "none needed",
            "parameters": ", ".join(f"{key} = {value}" for key, value in self._parameters.items()) or "the bundle's",
            "sha256": self._bundle.sha256,
            "provider": scorer.session.provider,
            "precision": scorer.session.precision,
        }

    def embed(self, frames: Sequence[Frame]) -> Rows:
        """Embeddings, float32 (T, 1, D)."""
        return self._scorers[0].embed(frames, BATCH)

    def score(self, rows: Rows, goal: Rows | None, seed: int = 0) -> RewardCurve:
        """See `ScoredModel`; values are those before the scorer takes out frames that are out of distribution."""
        scorer = self._scorer(seed)
        if goal is not None and self._goal_rows.get(seed) is not goal:
            milestones = decompose(flat(goal)).indices if scorer.reward_name == "uvd" else None
            scorer.set_goal(goal_from_demonstration(goal, "demonstration", milestones))
            self._goal_rows[seed] = goal
        scorer.reset()
        return RewardCurve.from_samples(scorer.reward.observe_many(rows))

    def step(self, frame: Frame) -> RewardSample:
        """See `ScoredModel`."""
        return self._scorers[0].step(frame)[0]

    def boundaries(self, rows: Rows, min_interval: int) -> list[int] | None:
        """UVD's decomposition of the embeddings."""
        return [int(index) for index in decompose(flat(rows), min_interval=min_interval).indices[:-1]]

    def peak_mb(self, frame: Frame, goal: Rows | None) -> float | None:
        """Loads the bundle again, in a process of its own."""
        with TemporaryDirectory() as folder:
            given = Path(folder) / "given.npz"
            np.savez(given, frame=frame, goal=np.zeros(0) if goal is None else goal)
            command = [sys.executable, "-c", _MEMORY_SCRIPT, str(self._bundle.path), str(given), str(self._threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: memory could not be measured: {done.stderr.strip()[-500:]}")
        number = float(done.stdout)
        return number if np.isfinite(number) else None

    def _scorer(self, seed: int) -> Scorer:
        if seed not in self._scorers:
            # Only rewards that draw have this parameter.
            self._scorers[seed] = Scorer(
                self._bundle, parameters={**self._parameters, "seed": seed}, threads=self._threads
            )
        return self._scorers[seed]


class EmbeddingControl:
    """The distance to the goal in an embedding that nobody trained for it. See `ScoredModel`."""

    kind: RewardKind = "value"
    needs_goal = True
    stochastic = False

    def __init__(self, name: str, embed: Embed, what: str) -> None:
        self.name = name
        self.about = {"reward": "distance to the goal", "encoder": what, "goal": "from the data"}
        self._embed = embed
        self._reward = GoalDistance(embed)
        self._goal_rows: Rows | None = None

    def embed(self, frames: Sequence[Frame]) -> Rows:
        """Embeddings, float32 (T, 1, D)."""
        return in_batches(self._embed, frames, CONTROL_SIZE)[:, None]

    def score(self, rows: Rows, goal: Rows | None, seed: int = 0) -> RewardCurve:
        """See `ScoredModel`."""
        if goal is not None and self._goal_rows is not goal:
            self._reward.reset(goal_from_demonstration(goal, "demonstration"))
            self._goal_rows = goal
        self._reward.reset()
        return RewardCurve.from_samples(self._reward.observe_many(rows))

    def step(self, frame: Frame) -> RewardSample:
        """See `ScoredModel`."""
        return self._reward.step(resize_frame(frame, Preprocess(CONTROL_SIZE)))

    def boundaries(self, rows: Rows, min_interval: int) -> list[int] | None:
        """UVD's decomposition of the embeddings."""
        return [int(index) for index in decompose(flat(rows), min_interval=min_interval).indices[:-1]]

    def peak_mb(self, frame: Frame, goal: Rows | None) -> float | None:
        """Not measured."""
        return None


class TimeControl:
    """The frame's number as its value: what a metric gives to a reward that looks at nothing. See `ScoredModel`."""

    name = "frame number"
    kind: RewardKind = "value"
    needs_goal = False
    stochastic = False

    def __init__(self) -> None:
        self.about = {"reward": "number of the frame", "encoder": "none", "goal": "none needed"}
        self._next = 0

    def embed(self, frames: Sequence[Frame]) -> Rows:
        """Nothing of the frames: zeros, (T, 1)."""
        return np.zeros((len(frames), 1), np.float32)

    def score(self, rows: Rows, goal: Rows | None, seed: int = 0) -> RewardCurve:
        """0, 1, 2 and so on."""
        self._next = len(rows)
        return plain_curve(np.arange(len(rows), dtype=np.float64), "value")

    def step(self, frame: Frame) -> RewardSample:
        """See `ScoredModel`."""
        self._next += 1
        return RewardSample(1.0, 1.0, float(self._next - 1), NAN, 0, 1, NAN)

    def boundaries(self, rows: Rows, min_interval: int) -> list[int] | None:
        """Ends of equal parts."""
        inner = np.linspace(0, len(rows) - 1, STEPS_OF_TIME + 1)[1:-1].round().astype(int).tolist()
        return sorted({frame for frame in inner if 0 < frame < len(rows) - 1})

    def peak_mb(self, frame: Frame, goal: Rows | None) -> float | None:
        """Not measured."""
        return None


class NoveltyControl:
    """RND alone: how new a frame is to somebody who saw the experts. See `ScoredModel`.

    Minus the novelty is a density of experts; where novelty has an AUROC of a, that has 1 - a.
    """

    name = "RND"
    kind: RewardKind = "step_reward"
    needs_goal = False
    stochastic = False

    def __init__(self, novelty: Embed, what: str) -> None:
        """Takes uint8 frames (N, 64, 64, 3) to novelty (N, 1)."""
        self._novelty = novelty
        self.about = {"reward": "novelty (RND)", "encoder": what, "goal": "none needed"}

    def embed(self, frames: Sequence[Frame]) -> Rows:
        """The novelty of each frame, float32 (T, 1)."""
        return in_batches(self._novelty, frames, CONTROL_SIZE)

    def score(self, rows: Rows, goal: Rows | None, seed: int = 0) -> RewardCurve:
        """The novelty is the step's reward."""
        return plain_curve(rows[:, 0].astype(np.float64), "step_reward")

    def step(self, frame: Frame) -> RewardSample:
        """See `ScoredModel`."""
        novelty = float(self.embed([frame])[0, 0])
        return RewardSample(novelty, novelty, NAN, NAN, 0, 1, NAN)

    def boundaries(self, rows: Rows, min_interval: int) -> list[int] | None:
        """It knows none."""
        return None

    def peak_mb(self, frame: Frame, goal: Rows | None) -> float | None:
        """Not measured."""
        return None


def pixel_control() -> EmbeddingControl:
    """Distance between thumbnails."""
    return EmbeddingControl("pixels", pixel_embedding, "16 x 16 thumbnails")


def random_control(seed: int = 0) -> EmbeddingControl:
    """Distance in an encoder that never saw an image."""
    return EmbeddingControl("random", RandomEncoder(seed), "one convolution with random filters")


def novelty_control(frames: Sequence[Frame], seed: int = 0, steps: int = RND_STEPS) -> NoveltyControl:
    """Trains RND on frames of experts.

    Args:
        frames: uint8 RGB (H, W, 3); 2000 of them at most are used.
        seed: of networks and batches.
        steps: of the optimizer, with 32 frames each.

    Raises:
        ValueError: no frames.
    """
    import torch  # noqa: PLC0415 (seconds, and only this control needs it)

    from v2r_core.nn.rnd import RandomNetworkDistillation  # noqa: PLC0415

    if not frames:
        raise ValueError("no frames for RND to learn from; give a folder with experts as --goals")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(frames))[:RND_FRAMES]
    prepared = [resize_frame(frames[index], Preprocess(CONTROL_SIZE)) for index in chosen]
    table = torch.from_numpy(np.stack(prepared))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RandomNetworkDistillation(CONTROL_SIZE)
    optimizer = torch.optim.Adam(network.predictor.parameters(), lr=RND_RATE)
    for _ in range(steps):
        network.update(table[torch.from_numpy(rng.integers(len(table), size=RND_BATCH))], optimizer)
    network.eval()

    def novelty(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return network.reward(torch.from_numpy(np.ascontiguousarray(batch))).numpy()[:, None].astype(np.float32)

    return NoveltyControl(novelty, f"RND, {steps} steps on {len(table)} frames of experts")


def in_batches(embed: Callable[[NDArray[np.uint8]], Rows], frames: Sequence[Frame], size: int) -> Rows:
    """Embeds frames of any size, squashed to size x size, 16 at a time."""
    if not len(frames):
        raise ValueError("no frames to embed; give a video with at least one frame")
    prepared = [resize_frame(frame, Preprocess(size)) for frame in frames]
    return np.concatenate([embed(np.stack(prepared[at : at + BATCH])) for at in range(0, len(prepared), BATCH)])


def plain_curve(scores: NDArray[np.float64], kind: RewardKind) -> RewardCurve:
    """A curve that has nothing but values, (T,), and their differences; or nothing but step rewards."""
    nothing = np.full(len(scores), NAN)
    value = scores if kind == "value" else nothing
    reward = scores if kind == "step_reward" else np.diff(scores, prepend=NAN)
    zeros = np.zeros(len(scores), np.int64)
    return RewardCurve(reward, reward, value, nothing, zeros, zeros + 1, nothing)
