"""Where one episode of a recording ends and the next one begins."""

from __future__ import annotations

from rosbags.interfaces import Connection

from v2r_core.deploy.pacing import RESTART_NS
from v2r_core.label.messages import EPISODE, SECOND_NS


class EpisodeCutter:
    """Told of every image and every mark in the order of recording, says which images begin an episode.

    An episode begins after a mark, after a gap that is too long, and where the stamps jump back as those of a stream
    that was started again. A mark is any message on the topic of the marks; v2r_msgs/Episode is published when an
    episode is over. Marks count by their place in the recording, not by a stamp, which may come from another clock than
    the camera's. Marks with no image between them count once.
    """

    def __init__(self, gap: float | None = None) -> None:
        """Starts before the first image.

        Args:
            gap: seconds between two images above which the later one begins an episode; None: no gap does.
        """
        self._gap_ns = None if gap is None else round(gap * SECOND_NS)
        self._newest_ns: int | None = None
        self._marked = False

    def mark(self) -> None:
        """There was a message on the topic of the marks."""
        self._marked = True

    def begins(self, moment_ns: int) -> bool:
        """Whether a usable image is the first one of an episode other than the first.

        Args:
            moment_ns: its stamp, or when it was recorded if it has none.
        """
        marked, self._marked = self._marked, False
        newest = self._newest_ns
        if newest is None or marked:
            self._newest_ns = moment_ns
            return newest is not None
        since = moment_ns - newest
        if -RESTART_NS < since <= 0:  # late: the episode goes on from the newer one
            return False
        self._newest_ns = moment_ns
        return since < 0 or (self._gap_ns is not None and since > self._gap_ns)


def mark_topic(connections: list[Connection], topic: str | None) -> str | None:
    """The topic that marks episodes: a named one, or the only one of v2r_msgs/Episode; None if there is none.

    Raises:
        ValueError: no such topic, or several and none was named.
    """
    if topic is not None:
        there = sorted({connection.topic for connection in connections})
        if topic not in there:
            raise ValueError(f"no topic {topic!r} to mark episodes; topics: {', '.join(there)}")
        return topic
    found = sorted({connection.topic for connection in connections if connection.msgtype == EPISODE})
    if len(found) > 1:
        raise ValueError(f"several topics of {EPISODE}: {', '.join(found)}; choose one with --episode-topic")
    return found[0] if found else None
