"""A reward_node that takes its time for every image; `test_closed_loop.py` starts it as a process."""

from __future__ import annotations

import time
from typing import Any

from v2r_ros.reward_node import main
from v2r_ros.scoring import MessageScorer, Scored

SECONDS = 0.3


def slowly(self: MessageScorer, *given: Any) -> Scored:
    time.sleep(SECONDS)
    return score(self, *given)


score = MessageScorer.score

if __name__ == "__main__":
    MessageScorer.score = slowly  # type: ignore[method-assign]
    raise SystemExit(main())
