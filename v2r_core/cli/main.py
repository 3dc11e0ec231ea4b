"""`v2r`: one verb a file; the dataclass of each is its command line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

VERBS = {
    "train": "a representation or a reward from your own videos",
    "score": "rewards of a video: curve.csv, curve.png, summary.json",
    "label": "rewards for recorded data: rosbags, LeRobot datasets, videos",
    "view": "what is labelled, in Rerun or as an .rrd file",
    "report": "one offline HTML page about what is labelled",
    "convert": "one kind of recording as another: rosbags, LeRobot datasets, videos",
    "eval": "how good an encoder or a reward is",
    "decompose": "the subgoals of a demonstration, as a picture (UVD)",
    "goal": "a goal as a file, calibrated on several executions",
    "rl": "a policy from rewards (DrQ-v2): observe, train, eval",
    "export": "an encoder, a reward or a policy as a bundle for the robot",
    "standardize": "mean and deviation of a bundle's step reward on expert videos",
    "models": "encoders and bundles that there are",
    "engine": "build a bundle's TensorRT engine ahead of time",
    "doctor": "what is wrong with this machine, and what to do about it",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0 done, 1 refused (the reason is on stderr), 2 not understood, 130 interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    verb = words[0] if words else "--help"
    if verb in {"-h", "--help"}:
        print("usage: v2r VERB [OPTIONS]\n\n" + "\n".join(f"  {name:11} {text}" for name, text in VERBS.items()))
        print("\nv2r VERB --help lists the options of a verb.")
        return 0
    if verb not in VERBS:
        print(f"v2r: no verb {verb!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return _run(verb, words[1:])
    except KeyboardInterrupt:
        print(f"v2r {verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("V2R_TRACEBACK"):
            raise
        print(f"v2r {verb}: {error}", file=sys.stderr)
        return 1


def _run(verb: str, words: list[str]) -> int:
    import tyro  # noqa: PLC0415 (a tenth of a second that the help does not need)

    kind = _command(verb)
    # Where one option decides which others there are, the verb reads its words itself.
    parse = getattr(kind, "parse", None)
    command = parse(words) if parse else tyro.cli(kind, args=words, prog=f"v2r {verb}")
    return int(command.run())


def _command(verb: str) -> Any:
    # Each verb imports what it needs and no more: `score` must not wait for torch.
    return getattr(importlib.import_module(f"v2r_core.cli.{verb}"), verb.capitalize())
