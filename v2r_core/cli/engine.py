"""`v2r engine`: pays for the TensorRT engine before the first start does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from v2r_core import DEFAULT_BUNDLE
from v2r_core.deploy.bundle import Precision, load_bundle
from v2r_core.deploy.runtime import PROVIDERS, Session, engine_cache_root, engine_key


@dataclass(frozen=True)
class Engine:
    """Builds a bundle's TensorRT engine on this machine and keeps it, so that the node starts at once."""

    bundle: Annotated[Path, tyro.conf.Positional] = DEFAULT_BUNDLE
    """Folder of the bundle."""
    precision: Precision = "fp16"
    """Which graph to build."""

    def run(self) -> int:
        """Builds, checks and times the engine.

        Raises:
            ProviderError: there is no TensorRT here.
        """
        console = Console()
        bundle = load_bundle(self.bundle)
        start = time.perf_counter()
        with console.status(f"building the {self.precision} engine of {bundle.manifest.name}, this can take minutes"):
            session = Session(bundle, self.precision, ["tensorrt", "cuda"])
        seconds = time.perf_counter() - start
        if session.provider != PROVIDERS["tensorrt"]:
            console.print(f"{session.provider} runs instead of TensorRT; `v2r doctor` says why")
            return 1
        folder = engine_cache_root() / engine_key(bundle, self.precision)
        console.print(f"ready after {seconds:.0f} s, {session.warm_up():.2f} ms a frame; kept in {folder}")
        return 0
