"""The page of `v2r eval reward` in a browser: its tables sort, and nothing leaves the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import assert_not_blank, opened

from v2r_core.evaluate.reward_html import write_html
from v2r_core.evaluate.reward_report import RewardReport


@pytest.fixture(scope="module")
def page(report: RewardReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward_page") / "report.html"
    write_html(path, report)
    return path


def test_headlines_sort_by_click(page: Path) -> None:
    with opened(page) as seen:
        first = "div.wide:has(caption:text-is('Headline numbers')) table"
        # The helper asks the document itself, which knows only plain selectors.
        seen.page.locator(first).evaluate("table => { table.id = 'headlines'; }")
        names = seen.column("#headlines", "model")
        assert len(names) == 3
        seen.page.locator("#headlines").get_by_role("button", name="model", exact=True).click()
        assert seen.column("#headlines", "model") == sorted(names, key=str.lower)
        assert seen.sorted_by("#headlines") == [("model", "ascending")]
        # Undefined numbers are last, whichever way the others go.
        heads = seen.page.locator("#headlines thead button")
        for number in range(1, heads.count()):
            for falling in (True, False):
                heads.nth(number).click()
                values = seen.page.evaluate(
                    "n => [...document.querySelectorAll('#headlines tbody tr')].map(r => r.cells[n].dataset.value)",
                    number,
                )
                known = [float(value) for value in values if value is not None]
                assert values[: len(known)] == [value for value in values if value is not None]
                assert known == sorted(known, reverse=falling)
                assert seen.page.locator("#headlines th[aria-sort]").count() == 1
        assert (seen.said, seen.asked) == ([], [])


def test_a_screenshot_is_not_blank(page: Path, tmp_path: Path) -> None:
    with opened(page) as seen:
        seen.page.screenshot(path=str(tmp_path / "page.png"))
        assert (seen.said, seen.asked) == ([], [])
    assert_not_blank(tmp_path / "page.png")
