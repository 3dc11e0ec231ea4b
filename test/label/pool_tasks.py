"""Tasks for workers, in a module that loads at once. As a program: keeps workers busy until a test ends it."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial

from v2r_core.label.workers import run_all


def doze(seconds: float) -> float:
    """A task that takes so long."""
    time.sleep(seconds)
    return seconds


def crash(number_of_signal: int, number: int) -> int:
    """Squares, but for 2, which a signal ends, and 4, which just ends."""
    if number == 2:
        os.kill(os.getpid(), number_of_signal)
    if number == 4:
        os._exit(3)
    return number * number


def die() -> None:
    """A worker that does not come up."""
    os._exit(9)


class TwoWordsError(Exception):
    """Cannot be unpickled from its message alone."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def refuse() -> None:
    """A worker whose model is none."""
    raise TwoWordsError("no", "model")


def main(count: str, at_once: str) -> None:
    """Says when workers are busy, or when they are about to be started."""
    # A shell that starts the tests in the background lets them ignore interrupts, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = int(count)
    if at_once:
        print("begins", flush=True)
    for seen, _ in enumerate(run_all(partial(partial, doze), [0.2] * workers + [60.0] * workers, workers), 1):
        if seen == workers and not at_once:
            print("begins", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
