"""Labels a folder of videos in a process of its own, which a test kills. Says when it begins."""

from __future__ import annotations

import sys
from pathlib import Path

from v2r_core.label.video_labeller import LabellerOptions
from v2r_core.label.videos import VideosTask, label_videos


def main(folder: str, out: str, model: str, workers: str) -> None:
    print("begins", flush=True)
    done = label_videos(
        VideosTask((Path(folder),), Path(out), overlay=True), LabellerOptions(Path(model)), int(workers)
    )
    print(done.kept, done.labelled, len(done.failed), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
