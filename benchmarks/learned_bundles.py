"""Bundles of learned rewards in the size of the preset `tiny`, trained for one step: for speed it does not matter on
what, and how well, a network was trained.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from v2r_core import CLIPS

VIDEO = CLIPS / "success.mp4"
"""What the camera of the measurements shows: so none of its frames is sorted out as unlike the training's."""
TOKENIZERS = {"viper": "tiny", "diffusion-reward": "tiny-diffusion-reward"}
"""Preset of the tokenizer that a method needs."""
METHODS = ("vip", *TOKENIZERS)


def tiny_bundles(folder: Path) -> dict[str, Path]:
    """One bundle for each of `METHODS`, by its name; those that are there are left as they are.

    Raises:
        SystemExit: training or export failed; the reason was printed.
    """
    return {method: _bundle(folder / method, method) for method in METHODS}


def _bundle(folder: Path, method: str) -> Path:
    bundle = folder / "bundle"
    if not (bundle / "bundle.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier attempt left
        words = []
        if preset := TOKENIZERS.get(method):
            words = ["--tokenizer", str(_train("vqgan", preset, folder / "tokenizer"))]
        run = _train(method, "tiny", folder / "run", *words)
        _v2r("export", str(run), "--out", str(bundle))
    return bundle


def _train(method: str, preset: str, run: Path, *words: str) -> Path:
    """Takes one step."""
    options = ["--data", str(VIDEO), "--out", str(run), "--workers", "0", "--cpu", "--stop-after", "1"]
    _v2r("train", method, "--preset", preset, *options, *words)
    return run


def _v2r(*words: str) -> None:
    from v2r_core.cli.main import main as v2r  # noqa: PLC0415 (torch only where it is used)

    if v2r(list(words)):
        raise SystemExit(f"v2r {' '.join(words)} failed")
