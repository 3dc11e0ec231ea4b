"""What an agent sees of a camera frame: pixels at its own size, or a frozen embedding.

An embedding leaves nothing of the picture to learn: no convolution to train, an order of magnitude less work an update.
VIP's and R3M's policies were trained that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.runtime import Session
from v2r_core.rl.options import PIXELS
from v2r_core.rl.replay_files import Layout
from v2r_core.video.resize import Frame, Preprocess, resize_frame

Step = tuple[NDArray[Any], float, bool, dict[str, Any]]
"""What a step gave: row of the replay, reward, whether nothing can follow, info."""


class Observer(Protocol):
    """From a camera frame to a row of the replay."""

    preprocess: Preprocess

    @property
    def shape(self) -> tuple[int, ...]: ...
    def layout(self, action_dim: int) -> Layout: ...
    def __call__(self, frame: Frame) -> NDArray[Any]: ...


class PixelObserver:
    """The frame itself.

    Args:
        size: side S in pixels that frames are resized to.
    """

    def __init__(self, size: int) -> None:
        self.preprocess = Preprocess(size, "squash", size, (0.0,) * 3, (1.0,) * 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, S, S)."""
        return (3, self.preprocess.size, self.preprocess.size)

    def layout(self, action_dim: int) -> Layout:
        """Rows of the replay: uint8 (3, S, S)."""
        return Layout(self.shape, "uint8", action_dim)

    def __call__(self, frame: Frame) -> NDArray[np.uint8]:
        """A frame, uint8 RGB (H, W, 3), as uint8 (3, S, S)."""
        return np.ascontiguousarray(resize_frame(frame, self.preprocess).transpose(2, 0, 1))


class EmbeddingObserver:
    """What the encoder of a bundle makes of the frame.

    Args:
        bundle: folder of a bundle; its reward is not used.
        threads: CPU threads of ONNX Runtime.
    """

    def __init__(self, bundle: str | Path, threads: int = 1) -> None:
        loaded = load_bundle(bundle)
        self._session = Session(loaded, threads=threads)
        self._dim = loaded.manifest.encoder.embedding_dim
        self.preprocess = loaded.preprocess

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (self._dim,)

    def layout(self, action_dim: int) -> Layout:
        """Rows of the replay: float32 (D,)."""
        return Layout(self.shape, "float32", action_dim)

    def __call__(self, frame: Frame) -> NDArray[np.float32]:
        """A frame, uint8 RGB (H, W, 3), as float32 (D,)."""
        return self._session(resize_frame(frame, self.preprocess)[None])[0]


def make_observer(observation: str, size: int) -> Observer:
    """The observer that is meant.

    Args:
        observation: "pixels", or the folder of a bundle.
        size: side in pixels, for pixels.
    """
    return PixelObserver(size) if observation == PIXELS else EmbeddingObserver(observation)


class Observed(gymnasium.ObservationWrapper[Any, Any, Frame]):
    """An environment of camera frames as an agent sees it.

    Args:
        env: gives uint8 RGB (H, W, 3).
        make: builds the observer; called here, so that it is built in the process in which the environment runs.

    Attributes:
        last_frame: the newest camera frame.
        history: seed and actions of the episode that `come_back` goes through.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], make: Callable[[], Observer]) -> None:
        super().__init__(env)
        self._observer = make()
        layout = self._observer.layout(1)
        if layout.frame_dtype == "uint8":
            self.observation_space = gymnasium.spaces.Box(0, 255, layout.frame_shape, np.uint8)
        else:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, layout.frame_shape, np.float32)
        self.last_frame: Frame = np.zeros((1, 1, 3), np.uint8)
        self.history: tuple[int, Sequence[NDArray[np.float32]]] = (0, ())

    def observation(self, observation: Frame) -> NDArray[Any]:
        """The frame as a row of the replay."""
        self.last_frame = observation
        return self._observer(observation)

    def come_back(self) -> tuple[NDArray[Any], list[Step]]:
        """Goes through `history` again; the row after the reset, and what each step gave."""
        seed, actions = self.history
        first, _ = self.reset(seed=seed)
        steps = []
        for action in actions:
            row, reward, terminated, _, info = self.step(action)
            steps.append((row, float(reward), terminated, info))
        return first, steps
