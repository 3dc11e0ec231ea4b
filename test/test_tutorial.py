"""docs/tutorial.md, run as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


def script() -> str:
    """All bash and python blocks in their order, as one bash script."""
    parts = ["set -euo pipefail"]
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL):
        parts.append(code if language == "bash" else f"python - <<'END_OF_PYTHON'\n{code}END_OF_PYTHON")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(600)
def test_tutorial_runs_as_written(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="the tutorial plays a live graph")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tour = tmp_path / "out" / "tour"
    summaries = {
        name: json.loads((tour / name / "summary.json").read_text()) for name in ("success_2", "half", "other")
    }
    # What the text promises.
    assert summaries["success_2"]["final_progress"] > 0.95
    assert 0.5 < summaries["half"]["final_progress"] < 0.85
    assert set(summaries["other"]["status"]) == {"out_of_distribution"}
    assert (tour / "uvd" / "overlay.mp4").stat().st_size > 10_000
    assert (tour / "demo" / "reward.png").is_file()
