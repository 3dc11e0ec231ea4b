"""The report in a browser: sorted, filtered, read without scripts, and nothing that leaves the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import assert_not_blank, opened
from labelled_sets import rising, write_video_set

from v2r_core.look.labelled import open_labelled
from v2r_core.look.report import write_report

TABLE = "#episodes"
EVIL = "<script>alert(1)</script>.mp4"
ENDS = {f"run_{number}.mp4": 0.3 + 0.1 * number for number in range(7)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven episodes that end at 0.3 to 0.9, in an order that is neither, and one with a name that is a script."""
    folder = tmp_path_factory.mktemp("report")
    labels = {name: rising(12 + place, end, name) for place, (name, end) in enumerate(ENDS.items())}

    odd = rising(30, 1.0, EVIL, goal_source="<img src=x onerror=alert(2)>")
    labels[EVIL] = replace(odd, status=np.where(np.arange(30) > 8, 4, odd.status))
    with open_labelled(write_video_set(folder, labels, {"<b>broken.mp4": "moov atom <i>not</i> found"})) as labelled:
        write_report(folder / "report.html", labelled)
    return folder / "report.html"


def test_sorting_by_click_and_by_key(report: Path) -> None:
    with opened(report) as seen:
        assert seen.column(TABLE, "final progress") == ["1.000", *(f"{end:.3f}" for end in ENDS.values())]
        assert seen.sorted_by(TABLE) == []
        button = seen.page.get_by_role("button", name="final progress")
        descending = ["1.000", *(f"{end:.3f}" for end in sorted(ENDS.values(), reverse=True))]
        button.click()
        assert seen.column(TABLE, "final progress") == descending
        assert seen.sorted_by(TABLE) == [("final progress", "descending")]
        button.focus()
        seen.page.keyboard.press("Enter")
        assert seen.column(TABLE, "final progress") == descending[::-1]
        assert seen.sorted_by(TABLE) == [("final progress", "ascending")]
        # Numbers as numbers: as text, "30" would come before "9".
        seen.page.get_by_role("button", name="frames", exact=True).click()
        assert seen.column(TABLE, "frames") == [str(n) for n in (30, *range(18, 11, -1))]
        assert seen.sorted_by(TABLE) == [("frames", "descending")]
        seen.page.get_by_role("button", name="episode", exact=True).click()
        assert seen.column(TABLE, "episode") == [EVIL, *sorted(ENDS)]
        # What has no value comes last, both ways.
        for _ in range(2):
            seen.page.get_by_role("button", name="outlier", exact=True).click()
            assert [bool(text) for text in seen.column(TABLE, "outlier")] == [True] + [False] * 7
        assert (seen.said, seen.asked) == ([], [])


def test_filter(report: Path) -> None:
    with opened(report) as seen:
        field = seen.page.get_by_label("Only rows with")
        field.fill("RUN_3")
        assert seen.column(TABLE, "episode") == ["run_3.mp4"]
        assert seen.page.locator("p.filter output").inner_text() == "1 of 8"
        field.fill("no such episode")
        assert seen.column(TABLE, "episode") == []
        field.fill("")
        assert len(seen.column(TABLE, "episode")) == 8
        assert (seen.said, seen.asked) == ([], [])


def test_pictures_and_links_are_there(report: Path) -> None:
    with opened(report) as seen:
        shown = seen.page.evaluate(
            "[...document.images].map(each => each.complete && each.naturalWidth > 300 && each.naturalHeight)"
        )
        assert shown == [72] * 8
        figures = seen.page.locator("figure.episode")
        assert figures.first.locator("figcaption strong").inner_text() == "run_0.mp4"
        links = seen.page.locator(f"{TABLE} tbody a")
        targets = [each.get_attribute("href") for each in links.all()]
        assert len(targets) == 8 and all(seen.page.locator(target).count() == 1 for target in targets)
        assert seen.page.locator("script").count() == 1 and seen.page.locator("img[src=x], i, main b").count() == 0
        assert (seen.said, seen.asked) == ([], [])


def test_without_scripts(report: Path) -> None:
    with opened(report, javascript=False) as seen:
        assert seen.page.locator(f"{TABLE} tbody tr").count() == 8
        assert not seen.page.locator("p.filter").is_visible()
        assert seen.page.locator("figure.episode svg").first.is_visible()


def test_a_narrow_window_scrolls_only_its_tables(report: Path) -> None:
    with opened(report) as seen:
        seen.page.set_viewport_size({"width": 380, "height": 800})
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 380


def test_headings_stand_above_their_columns(report: Path) -> None:
    with opened(report) as seen:
        aligned = "part => [...document.querySelectorAll(part)].map(each => getComputedStyle(each).textAlign)"
        heads, cells = (
            seen.page.evaluate(aligned, f"{TABLE} {part}") for part in ("thead th", "tbody tr:first-child > *")
        )
        assert heads == cells
        assert heads == ["left", *["right"] * 10, *["left"] * 3]


def test_a_screenshot_is_not_blank(report: Path, tmp_path: Path) -> None:
    with opened(report) as seen:
        seen.page.screenshot(path=str(tmp_path / "report.png"))
    assert_not_blank(tmp_path / "report.png")
