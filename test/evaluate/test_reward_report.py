"""The report: plain JSON with counts, one HTML file that asks nothing of anybody, a line a metric."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from v2r_core.evaluate.reward_html import HEADLINES, make_html, write_html
from v2r_core.evaluate.reward_report import (
    RewardReport,
    as_json,
    show,
    terminal_lines,
    write_json,
)
from v2r_core.evaluate.reward_row import Row
from v2r_core.evaluate.reward_stats import Estimate
from v2r_core.evaluate.scored_models import ScoredModel

NAN = float("nan")


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.open: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[key] for key in ("src", "href", "srcset", "action") if key in given]
        self.scripts += tag == "script"
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() not in {tag}:
            assert self.open, f"</{tag}> closes nothing"


def test_json_is_plain_and_says_why(report: RewardReport, tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", report)
    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert found == json.loads(json.dumps(as_json(report)))
    pixels, clock, steps = found["models"]
    assert not pixels["control"] and clock["control"]
    assert pixels["metrics"]["auroc"]["value"] == 1 and pixels["metrics"]["auroc"]["why_not"] is None
    assert (
        steps["metrics"]["voc_success"]["value"] is None and "step reward" in steps["metrics"]["voc_success"]["why_not"]
    )
    still = pixels["metrics"]["voc_still"]
    assert (still["value"], still["count"], still["undefined"]) == (None, 0, 4)
    assert found["data"]["episodes"] == 12 and found["data"]["successes"] == 4
    assert len(found["data"]["subset"]) == 2
    assert "train" in found["data"]["goals"]
    matrix = pixels["goal_confusion"]["mean_final_value"]
    assert matrix[0][0] > matrix[0][1] and matrix[1][1] > matrix[1][0]
    assert len(pixels["episodes"]) == 12


def test_html_is_one_file_that_loads_nothing(report: RewardReport, tmp_path: Path) -> None:
    write_html(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert all(page.alts)
    assert not page.open
    # Names from outside are text, not markup.
    assert page.scripts == 1 and "<script>alert" not in text
    assert "&lt;held&gt; &amp; out" in text
    for model in report.models:
        assert model.run.model.name in text
    for word in ("not meaningful: a step reward", "undefined (4)", "why not", "Curves over film strips"):
        assert word in text
    assert 'name="viewport"' in text and 'lang="en"' in text


def test_headlines_are_rows(report: RewardReport) -> None:
    assert set(HEADLINES) <= {row.key for row in report.models[0].rows}
    assert "</table>" in make_html(report)


def printed(report: RewardReport, width: int) -> str:
    """What the terminal shows."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(terminal_lines(report, width))
    return captured.get()


def test_a_line_a_metric_in_the_terminal(report: RewardReport) -> None:
    lines = printed(report, 200).splitlines()
    for row in report.models[0].rows:
        assert sum(line.split()[:1] == [row.key] for line in lines) == 1, row.key


def test_many_models_fit_a_narrow_terminal(report: RewardReport) -> None:
    """Three rewards with intervals and two controls."""
    pixels, clock, steps = report.models
    wide = type(pixels)(pixels.run, [_undefined(row) for row in pixels.rows], False)
    many = replace(report, models=[pixels, wide, replace(steps, control=False), clock, steps])
    text = printed(many, 80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    for place, row in enumerate(pixels.rows):
        found = [words for words in lines if words[:1] == [row.key]]
        assert 1 < len(found) < 5, "some models share a table"
        numbers = " ".join(" ".join(words[1:]) for words in found)
        for model in many.models:
            if not model.rows[place].why_not:
                assert show(model.rows[place], interval=not model.control) in numbers
    assert text.count("report.html says") == 1


def test_a_long_name_is_broken_and_not_cut(report: RewardReport) -> None:
    name = "runs/of_a_folder_with_a_name_that_goes_on_and_on/and_on_and_on/bundle"
    model = report.models[0]
    run = replace(model.run, model=_Named(model.run.model, name))
    text = printed(replace(report, models=[replace(model, run=run)]), 80)
    head = text[: text.index(model.rows[0].section)]
    assert head.count("\n") > 3
    assert "".join(head.split()).endswith(name)


class _Named:
    """A model under another name."""

    def __init__(self, model: ScoredModel, name: str) -> None:
        self.name, self.kind = name, model.kind


def _undefined(row: Row) -> Row:
    """The row with as many digits as there can be."""
    estimate = replace(row.estimate, value=-0.9731, low=-0.9999, high=-0.9111, undefined=12)
    return row if row.why_not or row.unit else replace(row, estimate=estimate)


def test_numbers_for_people() -> None:
    row = Row("section", "key", "title", "higher")
    assert show(row.without("because")) == "because"
    assert show(Row("s", "k", "t", "", Estimate(NAN, NAN, NAN, 0, 3))) == "undefined (3)"
    found = Row("s", "k", "t", "", Estimate(0.9731, 0.95, 0.99, 10, 2))
    assert show(found) == "0.973 [0.950, 0.990] (2 undefined)"
    assert show(found, interval=False) == "0.973 (2 undefined)"
    assert show(Row("s", "k", "t", "", Estimate(12.34, NAN, NAN, 10, 0), unit="ms")) == "12.3 ms"
