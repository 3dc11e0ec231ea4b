"""A video scored towards its own last frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from v2r_core.deploy.stream import Scorer, VideoScore, flat, judge
from v2r_core.rewards.goal import Goal, goal_from_demonstration, goal_name
from v2r_core.rewards.reward import RewardCurve
from v2r_core.rewards.uvd import decompose
from v2r_core.video.resize import Frame
from v2r_core.video.video import Video


def score_towards_own_end(
    scorer: Scorer, video: Video, on_progress: Callable[[int, int], None] | None = None
) -> tuple[VideoScore, Goal]:
    """Scores a video towards its own end, and embeds each frame only once for it.

    Args:
        scorer: of one camera; its goal is replaced by the video's own.
        video: what `open_video` gives.
        on_progress: called with (frames embedded, frames in all).

    Returns:
        The score, whose `encoder_ms` includes waiting for frames, and the goal that was made for it.
    """
    start = time.perf_counter()
    embeddings = scorer.embed(Counted(video, on_progress) if on_progress else video)
    encoding = time.perf_counter() - start
    milestones = decompose(flat(embeddings)).indices if scorer.reward_name == "uvd" else None
    goal = goal_from_demonstration(embeddings, goal_name(video.name), milestones)
    scorer.set_goal(goal)
    judged = [judge(scorer.reward.observe(embedding)) for embedding in embeddings]
    scored = VideoScore(
        stamps=np.asarray(video.stamps, np.float64)[: len(judged)],
        curve=RewardCurve.from_samples(sample for sample, _ in judged),
        status=np.array([status for _, status in judged], np.int64),
        encoder_ms=encoding / len(judged) * 1e3,
        seconds=time.perf_counter() - start,
    )
    return scored, goal


@dataclass(frozen=True)
class Counted:
    """A video that reports how far its reader is."""

    video: Video
    on_progress: Callable[[int, int], None]

    def __len__(self) -> int:
        return len(self.video)

    def __iter__(self) -> Iterator[Frame]:
        for done, frame in enumerate(self.video, 1):
            self.on_progress(done, len(self.video))
            yield frame
