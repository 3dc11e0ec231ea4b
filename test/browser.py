"""A page in a headless Chromium, for tests that click through it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    """An open page.

    Attributes:
        page: of playwright.
        said: what it wrote to the console, and errors of its scripts.
        asked: addresses that it asked for, itself and data URIs left out.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def column(self, table: str, heading: str) -> list[str]:
        """The words in a column of the rows that are seen, from top to bottom."""
        return self.page.evaluate(
            """([table, heading]) => {
              const heads = [...document.querySelectorAll(table + ' thead th')];
              const place = heads.findIndex(each => each.innerText.split('\\n')[0].trim().startsWith(heading));
              const rows = [...document.querySelectorAll(table + ' tbody tr')].filter(row => row.offsetParent !== null);
              return rows.map(row => row.cells[place].innerText.trim());
            }""",
            [table, heading],
        )

    def sorted_by(self, table: str) -> list[tuple[str, str]]:
        """Heading and direction of each column that says that the table is sorted by it."""
        heads = self.page.locator(f"{table} thead th[aria-sort]")
        return [
            (each.inner_text().split("\n")[0].strip(" ▲▼"), each.get_attribute("aria-sort")) for each in heads.all()
        ]


@contextmanager
def opened(path: Path, javascript: bool = True) -> Iterator[Opened]:
    """Opens a file; skips the test where there is no browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            context = browser.new_context(java_script_enabled=javascript, viewport={"width": 1200, "height": 900})
            page = context.new_page()
            result = Opened(page)
            page.on("console", lambda message: result.said.append(message.text))
            page.on("pageerror", lambda error: result.said.append(str(error)))

            def ask(request: Any) -> None:
                if not request.url.startswith("data:") and request.url != path.as_uri():
                    result.asked.append(request.url)

            page.on("request", ask)
            page.goto(path.as_uri())
            yield result
        finally:
            browser.close()


def assert_not_blank(picture: Path) -> None:
    """A screenshot with more on it than one colour."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[0] > 500 and pixels.shape[1] > 500
    assert (pixels != pixels[0, 0]).any(axis=2).mean() > 0.02
