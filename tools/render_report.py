"""Takes the screenshot docs/images/report.png: the shipped clips, labelled towards the first one, and their report.

Needs the `label` extra, playwright and a Chromium of the system:

    python tools/render_report.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from v2r_core import CLIPS
from v2r_core.cli.main import main as v2r

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1100, 1500
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Labels, reports, and takes the picture; 0 if all went well."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"none of {', '.join(BROWSERS)} is installed: apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        # Names without the place of this checkout, which would be seen in the picture.
        clips, labels, page = (Path(folder) / name for name in ("clips", "clips_labelled", "report.html"))
        shutil.copytree(CLIPS, clips, ignore=shutil.ignore_patterns("*.md"))
        failed = v2r(["label", str(clips), "--goal", str(clips / "success.mp4"), "--out", str(labels)])
        failed = failed or v2r(["report", str(labels), "--out", str(page)])
        if failed:
            return failed
        page.write_text(page.read_text(encoding="utf-8").replace(folder, "drawer"), encoding="utf-8")
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            window = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            window.goto(page.as_uri())
            window.screenshot(path=str(OUTPUT))
            chromium.close()
    print(f"written to {OUTPUT}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
