"""Settings of DrQ-v2: the authors' for their sets of tasks, and two small ones that learn on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {},
        "paper-medium": {"noise": (1.0, 0.1, 500_000)},
        "paper-hard": {"noise": (1.0, 0.1, 2_000_000)},
        "paper-walker": {"nstep": 1, "batch_size": 512},
        "paper-quadruped": {"noise": (1.0, 0.1, 500_000), "replay_rows": 100_000},
        "paper-humanoid": {"noise": (1.0, 0.1, 2_000_000), "lr": 8e-5, "feature_dim": 100},
        "tiny": {
            "compat": "paper", "feature_dim": 256, "hidden_dim": 256, "layer_norm": True, "lr": 5e-4, "gamma": 0.97,
            "noise": (1.0, 0.2, 2_000), "exploration_steps": 400, "seed_frames": 1_200, "update_every": 1,
            "action_repeat": 3, "replay_rows": 200_000, "size": 128,
        },
        "tiny-pixels": {
            "compat": "paper", "size": 48, "channels": 16, "shift": 2, "hidden_dim": 256, "batch_size": 64, "lr": 3e-4,
            "noise": (1.0, 0.1, 10_000), "exploration_steps": 1_000, "seed_frames": 2_000, "replay_rows": 200_000,
        },
    }
)  # fmt: skip
PRESETS: tuple[str, ...] = tuple(_PRESETS)
"""Names that `DrQv2Recipe.preset` knows."""

_COUNTS = (
    "size", "frame_stack", "action_repeat", "channels", "feature_dim", "hidden_dim", "batch_size", "nstep",
    "update_every", "replay_rows",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DrQv2Recipe:
    """Settings of DrQ-v2 (table 2 and appendix B); the defaults are the paper's for easy tasks.

    A *step* is one of the agent, an action held for `action_repeat` environment steps; a *frame* is one of the
    environment.

    Attributes:
        compat: `official`: the released code makes a discount of 0 into 1, so terminations are ignored; `paper`: they
            count. See `replay.stored_discount`.
        size: side S in pixels of the frames; for embeddings, of what the encoder is given.
        frame_stack: frames K of an observation.
        action_repeat: environment steps that an action is held for.
        shift: largest shift of an image in pixels.
        channels: outputs of each convolution.
        feature_dim: width of the trunks, Linear-LayerNorm-Tanh.
        hidden_dim: width of the two hidden layers of actor and critics.
        layer_norm: LayerNorm in those layers too; the paper has none.
        lr: learning rate of the three Adams.
        batch_size: transitions of an update.
        nstep: rewards that are summed before the critic takes over.
        gamma: discount of a step.
        target_rate: how far the target critic moves to the critic in an update.
        noise: standard deviation of exploration over steps, see `schedule`.
        noise_clip: bound of the noise in updates; when acting there is none.
        update_every: steps for each update.
        exploration_steps: steps at the start whose actions are uniform.
        seed_frames: frames to collect before the first update.
        replay_rows: frames that the replay holds, if `--replay-gb` allows so many.
    """

    compat: Literal["official", "paper"] = "official"
    size: int = 84
    frame_stack: int = 3
    action_repeat: int = 2
    shift: int = 4
    channels: int = 32
    feature_dim: int = 50
    hidden_dim: int = 1024
    layer_norm: bool = False
    lr: float = 1e-4
    batch_size: int = 256
    nstep: int = 3
    gamma: float = 0.99
    target_rate: float = 0.01
    noise: tuple[float, ...] = (1.0, 0.1, 100_000)
    noise_clip: float = 0.3
    update_every: int = 2
    exploration_steps: int = 2_000
    seed_frames: int = 4_000
    replay_rows: int = 1_000_000

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")
        for name in ("shift", "exploration_steps", "seed_frames", "noise_clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 0 expected")
        if not (0 < self.gamma <= 1 and 0 < self.target_rate <= 1 and self.lr > 0):
            raise ValueError(
                f"gamma {self.gamma} and target_rate {self.target_rate} belong in (0, 1], lr {self.lr} above 0"
            )
        schedule(self.noise, 0)

    @classmethod
    def preset(cls, name: str) -> Self:
        """Settings by name.

        `paper` (easy tasks, 1.1M frames), `paper-medium` (3.1M), `paper-hard` (30.1M), `paper-walker`,
        `paper-quadruped` and `paper-humanoid` are the authors'. `tiny` learns from frozen embeddings, `tiny-pixels`
        from 48 pixels, both on a CPU.

        Raises:
            ValueError: unknown name.
        """
        if name not in _PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**_PRESETS[name])


def schedule(values: Sequence[float], step: int) -> float:
    """A number that changes over time.

    Args:
        values: (v,): constant; (a, b, d): linear from a to b in d steps; (a, b, d, c, e): then on to c in e steps.
        step: of the agent, from 0; DrQ-v2 counts no action repeats here.

    Raises:
        ValueError: another number of values, or a duration that is not above 0.
    """
    if len(values) not in {1, 3, 5} or any(duration <= 0 for duration in values[2::2]):
        raise ValueError(
            f"schedule is {tuple(values)}, (v,), (a, b, duration) or (a, b, duration, c, duration) expected"
        )
    start = 0.0
    current = values[0]
    for target, duration in zip(values[1::2], values[2::2], strict=True):
        if step <= start + duration:
            return current + (target - current) * max((step - start) / duration, 0.0)
        start, current = start + duration, target
    return current
