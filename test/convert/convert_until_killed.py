"""Converts in a process of its own, which a test kills. Says how many frames it has, and what it took over."""

from __future__ import annotations

import sys
from pathlib import Path

from v2r_core.convert.parts import Wishes
from v2r_core.convert.run import ConvertTask, convert
from v2r_core.convert.sources import Kind


def main(source: str, out: str, to: Kind, *states: str) -> None:
    def tell(frames: int, _: int) -> None:
        print(frames, flush=True)

    done = convert(ConvertTask(Path(source), Path(out), to, Wishes(states=states)), tell)
    print("done", done.resumed, done.episodes, done.frames, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
