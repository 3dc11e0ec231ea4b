"""Labels many videos: in this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

from v2r_core.label.outcome import Outcome
from v2r_core.label.table import Labels
from v2r_core.label.video_labeller import LabellerOptions, VideoLabeller, VideoTask
from v2r_core.label.workers import run_all


def label_all(
    tasks: Sequence[VideoTask], options: LabellerOptions, workers: int = 0, ray: str | None = None
) -> Generator[Outcome, None, None]:
    """Labels videos, each as one episode.

    Args:
        tasks: which, and towards which goals.
        options: the model; every worker loads it.
        workers: spawned processes; 0: this one. One that dies (out of memory, a crash of a decoder) costs the video
            that it was at, and is replaced. On Ray: at most so many actors; 0: as many as the cluster has GPUs, or CPUs
            if it has no GPU.
        ray: address of a Ray cluster, "" for one that is started on this machine, None for no Ray; see
            `cluster.label_on_ray`.

    Yields:
        One outcome a task, in any order. A task that fails gives an outcome with an error, never an exception. Close
        the iterator if you leave it early: that ends the workers.

    Raises:
        BundleError, ProviderError, ValueError: the model cannot be loaded.
        RuntimeError: workers die while they load it; Ray is not installed or not there.
    """
    if ray is not None:
        from v2r_core.label.cluster import label_on_ray  # noqa: PLC0415 (Ray takes seconds to load)

        yield from label_on_ray(tasks, options, workers, ray)
        return
    for done in run_all(partial(make_labeller, options), tasks, workers):
        yield Outcome.of(done)


def make_labeller(options: LabellerOptions) -> Callable[[VideoTask], Labels]:
    """What labels one video after the other."""
    return VideoLabeller(options).label
