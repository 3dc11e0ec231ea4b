"""A tiny method and tiny videos to train on."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from v2r_core.methods import METHODS


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the method `toy`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(METHODS, "toy", "toy_method:Toy")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of two videos of twenty frames each."""
    folder = tmp_path / "videos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for _ in range(20):
                picture = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder
