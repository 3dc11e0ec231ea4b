"""What is trained where: the options of `v2r rl train`, besides the agent's own recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

METHOD = "drqv2"
"""Of a run of `v2r rl train`, in its run.json."""

PIXELS = "pixels"
"""What an agent sees that sees no embedding."""

RewardMode = Literal["alone", "sparse", "potential", "value"]
"""How a video's reward becomes an agent's, see `wrappers.VideoReward`."""

Checkpoint = Literal["best", "newest"]
"""Of a run: the one with the most successes in an evaluation (of equals, the one with the highest return), or the
last. More training is not always better: an agent goes on to where its reward is high."""

SEEDS = 2**32
"""Seeds that a run may have lie below it."""

ENVIRONMENT_REWARDS = ("sparse", "dense", "none")


@dataclass(frozen=True)
class Task:
    """The world that an agent acts in, and what it is paid for.

    Attributes:
        env: `metaworld:door-close-v3`, `dm_control:cartpole-balance`, or `gym:<id>` for any gymnasium environment that
            renders.
        reward: folder of a reward's bundle; or `sparse`: 1 while the task is done, `dense`: what the simulator pays,
            `none`: nothing (for novelty alone).
        reward_mode: of a bundle: `alone`; `sparse`: added to the sparse reward; `potential`: shaping by the value,
            which leaves the best policy as it is; `value`: the value itself.
        reward_scale: factor on the bundle's reward.
        goal: image or demonstration for the bundle's reward; empty: the bundle's own.
        novelty: alpha of random network distillation as Diffusion Reward mixes it: it counts alpha, what a bundle pays
            1 - alpha, and what the environment pays 1.
        camera: side of the camera's frames in pixels.
        horizon: environment steps of an episode; 0 for the environment's own.
        observation: `pixels`, or the folder of a bundle whose encoder the agent sees through.
    """

    env: str
    reward: str = "sparse"
    reward_mode: RewardMode = "alone"
    reward_scale: float = 1.0
    goal: str = ""
    novelty: float = 0.0
    camera: int = 128
    horizon: int = 0
    observation: str = PIXELS

    def __post_init__(self) -> None:
        if not 0 <= self.novelty <= 1:
            raise ValueError(f"novelty is {self.novelty}, a weight from 0 to 1 expected")
        if self.camera < 16:
            raise ValueError(f"camera is {self.camera}, at least 16 pixels expected")
        if self.horizon < 0:
            raise ValueError(f"horizon is {self.horizon}, 0 or a number of steps expected")

    @property
    def paid_by_bundle(self) -> bool:
        """True if the reward is that of a bundle."""
        return self.reward not in ENVIRONMENT_REWARDS


@dataclass(frozen=True)
class RlOptions:
    """How to train.

    Attributes:
        steps: environment steps in all, action repeats counted.
        seed: of weights, exploration, sampling and placements; 0 to 2**32 - 1.
        envs: environments, each in a process of its own.
        eval_every: environment steps between two evaluations, 0 for none but the last.
        eval_episodes: episodes of an evaluation; their placements occur in no training episode.
        video: write the first episode of every evaluation as mp4.
        save_every: environment steps between two checkpoints.
        replay_gb: largest size of the replay on disk, below which it may hold fewer frames than the recipe wants; a
            resumed run keeps the size that it was started with.
        offline: folder of episodes that a robot recorded (policy_node's record_dir); they go into the replay first.
        offline_updates: updates on them before the first step.
        stop_at: stop once this share of an evaluation's episodes succeeds; above 1: never.
        stop_after: stop with a checkpoint after so many environment steps, 0 for never.
        resume: go on from the newest checkpoint.
        threads: CPU threads of the updates; 0 for torch's own choice.
        cpu: use the CPU even where there is a GPU.
    """

    steps: int = 24_000
    seed: int = 0
    envs: int = 1
    eval_every: int = 6_000
    eval_episodes: int = 20
    video: bool = True
    save_every: int = 6_000
    replay_gb: float = 4.0
    offline: Path | None = None
    offline_updates: int = 0
    stop_at: float = 2.0
    stop_after: int = 0
    resume: bool = False
    threads: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "envs", "eval_episodes", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed is {self.seed}, a number from 0 to {SEEDS - 1} expected")
        if self.replay_gb <= 0:
            raise ValueError(f"replay_gb is {self.replay_gb}, a size above 0 expected")
