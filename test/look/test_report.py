"""The report's numbers and rules, without a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_sets import rising, write_video_set

from v2r_core.cli.main import main
from v2r_core.deploy.stream import Status
from v2r_core.label.table import Labels, write_labels
from v2r_core.look.labelled import open_labelled
from v2r_core.look.report import write_report
from v2r_core.look.report_pictures import curve_svg
from v2r_core.look.report_stats import CURVE_POINTS, collect, resample, stamp_gaps
from v2r_core.page import make_page, write_page


def gathered(tmp_path: Path, labels: dict[str, Labels]):
    with open_labelled(write_video_set(tmp_path, labels)) as labelled:
        return collect(labelled)


def test_numbers_of_an_episode(tmp_path: Path) -> None:
    labels = rising(21, 0.8)
    stamps = np.delete(np.arange(24), [7, 8, 15]) / 10
    status = labels.status.copy()
    status[[3, 4]] = Status.BAD_IMAGE
    facts = gathered(tmp_path, {"a.mp4": replace(labels, stamps=stamps, status=status)})
    (episode,) = facts.episodes
    assert (episode.frames, episode.gaps, episode.missing, episode.backwards) == (21, 2, 3, 0)
    assert episode.seconds == pytest.approx(2.3)
    assert episode.final_progress == pytest.approx(0.8) and episode.max_progress == pytest.approx(0.8)
    assert episode.mean_reward == pytest.approx(0.04) and episode.bumps == 0 and episode.order == 1
    assert episode.status == (18, 0, 0, 2, 0, 1, 0)
    assert episode.invalid == pytest.approx(2 / 21)
    assert facts.progress.sum() == 21 and facts.progress[16] == 1 and not facts.progress[17:].any()


def test_gaps_in_stamps() -> None:
    assert stamp_gaps(np.arange(10) / 30) == (0, 0, 0)
    assert stamp_gaps(np.array([0.0])) == (0, 0, 0)
    assert stamp_gaps(np.array([])) == (0, 0, 0)
    assert stamp_gaps(np.zeros(4)) == (0, 0, 3)
    # Jitter is no gap; a jump back is none either, but said.
    assert stamp_gaps(np.array([0, 1, 2.3, 3.1, 4, 9, 2, 3])) == (1, 4, 1)


def test_missing_numbers_are_bridged() -> None:
    numbers = np.array([np.nan, 1, np.nan, 3, np.nan])
    curve = resample(numbers)
    assert curve.shape == (CURVE_POINTS,)
    assert (curve[0], curve[-1]) == (1, 3) and (np.diff(curve) >= 0).all()
    assert np.isnan(resample(np.array([np.nan, 1, np.nan]))).all()


def test_ranking_is_by_progress_or_by_order(tmp_path: Path) -> None:
    ends = {"low.mp4": 0.2, "high.mp4": 0.9, "middle.mp4": 0.5}
    facts = gathered(tmp_path / "given", {name: rising(12, end, name) for name, end in ends.items()})
    assert facts.rank_by == "final progress"
    assert [each.name for each in facts.ranked()] == ["high.mp4", "middle.mp4", "low.mp4"]
    # Compared with their own ends all arrive: what differs is how.
    own = {name: rising(12, 1.0, name, goal_source="last") for name in ("steady.mp4", "shaky.mp4")}
    shaky = own["shaky.mp4"].curve
    mixed = shaky.value[[0, 4, 2, 6, 1, 8, 3, 10, 5, 7, 9, 11]]
    own["shaky.mp4"] = replace(own["shaky.mp4"], curve=replace(shaky, value=mixed))
    facts = gathered(tmp_path / "own", own)
    assert facts.rank_by == "order"
    assert [each.name for each in facts.ranked()] == ["steady.mp4", "shaky.mp4"]


def test_step_rewards_are_ranked_by_their_mean(tmp_path: Path) -> None:
    def stepped(name: str, level: float) -> Labels:
        labels = rising(12, 1.0, name)
        nothing = np.full(12, np.nan)
        curve = replace(labels.curve, value=nothing, progress=nothing, reward=np.full(12, level))
        return replace(labels, curve=curve)

    facts = gathered(tmp_path, {name: stepped(name, level) for name, level in {"a.mp4": -1.0, "b.mp4": 2.0}.items()})
    assert (facts.rank_by, facts.score) == ("mean reward", "reward")
    assert [each.name for each in facts.ranked()] == ["b.mp4", "a.mp4"]


def test_outliers_by_each_rule(tmp_path: Path) -> None:
    labels = {f"{number}.mp4": rising(12, 1.0 - number * 0.01, f"{number}.mp4") for number in range(8)}
    falling = labels["2.mp4"].curve
    labels["2.mp4"] = replace(labels["2.mp4"], curve=replace(falling, progress=falling.progress[::-1].copy()))
    unsure = labels["4.mp4"].curve
    labels["4.mp4"] = replace(labels["4.mp4"], curve=replace(unsure, uncertainty=np.full(12, 0.9)))
    labels["6.mp4"] = replace(labels["6.mp4"], status=np.full(12, Status.BAD_IMAGE, np.int64))
    facts = gathered(tmp_path, labels)
    reasons = {facts.episodes[place].name: " ".join(texts) for place, texts in facts.outliers.items()}
    assert reasons.keys() == {"2.mp4", "4.mp4", "6.mp4"}
    assert "away from the median curve" in reasons["2.mp4"]
    assert "uncertainty 0.90, the median episode has 0.20" in reasons["4.mp4"]
    assert "100% of its frames cannot be trusted" in reasons["6.mp4"]


def test_equal_episodes_are_no_outliers(tmp_path: Path) -> None:
    labels = {f"{number}.mp4": rising(12, 1.0, f"{number}.mp4") for number in range(6)}
    last = labels["5.mp4"].curve
    labels["5.mp4"] = replace(labels["5.mp4"], curve=replace(last, progress=last.progress * 0.999))
    assert gathered(tmp_path, labels).outliers == {}


def test_a_damaged_table_and_a_lost_video_do_not_stop_it(tmp_path: Path) -> None:
    folder = write_video_set(tmp_path, {name: rising(12, 0.5, name) for name in ("a.mp4", "b.mp4", "c.mp4")})
    (folder / "labels" / "a.mp4.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "videos" / "b.mp4").unlink()
    with open_labelled(folder) as labelled:
        found = write_report(tmp_path / "deep" / "report.html", labelled)
    assert [each.name for each in found.episodes] == ["b.mp4", "c.mp4"]
    assert "label the video again" in found.failed["a.mp4"]
    text = (tmp_path / "deep" / "report.html").read_text()
    assert "no pictures: " in text and "no such file" in text
    assert text.count('<img alt="c.mp4') == 1


def test_a_thousand_episodes_stay_small(tmp_path: Path) -> None:
    folder = write_video_set(tmp_path, {"a.mp4": rising(12, 0.5, "a.mp4")})
    table = (folder / "labels" / "a.mp4.parquet").read_bytes()
    manifest = (folder / "manifest.jsonl").read_text().splitlines()[-1]
    lines = []
    for number in range(1000):
        (folder / "labels" / f"{number}.mp4.parquet").write_bytes(table)
        (tmp_path / "videos" / f"{number}.mp4").hardlink_to(tmp_path / "videos" / "a.mp4")
        lines.append(manifest.replace("a.mp4", f"{number}.mp4"))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    with open_labelled(folder) as labelled:
        write_report(tmp_path / "report.html", labelled)
    text = (tmp_path / "report.html").read_text()
    assert text.count('<th scope="row" data-value') == 1000
    assert text.count("<img ") == 8
    assert len(text) < 2_000_000


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], clip: Path) -> None:
    folder = write_video_set(tmp_path, {"a.mp4": rising(12, 0.5, "a.mp4")}, {"b.mp4": "broken"})
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html"), "--shown", "1"]) == 0
    assert "episodes: 1, outliers: 0, without labels: 1" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().count("<img ") == 1
    assert main(["report", str(clip), "--out", str(tmp_path / "no.html")]) == 1
    assert "label it first" in capsys.readouterr().err
    assert not (tmp_path / "no.html").exists()


def test_an_episode_without_a_frame_does_not_stop_it(tmp_path: Path) -> None:
    folder = write_video_set(tmp_path, {name: rising(12, 0.5, name) for name in ("a.mp4", "b.mp4")})
    write_labels(folder / "labels" / "b.mp4.parquet", rising(0, 0.5, "b.mp4"))
    with open_labelled(folder) as labelled:
        found = write_report(tmp_path / "report.html", labelled)
    assert [each.frames for each in found.episodes] == [12, 0]
    assert '<th scope="row" data-value="b.mp4">' in (tmp_path / "report.html").read_text()


def test_a_status_that_flickers_for_an_hour_stays_small() -> None:
    labels = rising(100_000)
    flickering = np.where(np.arange(100_000) % 2, Status.OUT_OF_DISTRIBUTION, Status.OK).astype(np.int64)
    assert len(curve_svg(replace(labels, status=flickering), "flicker")) < 100_000
    # A single frame is seen, however long the episode.
    once = np.where(np.arange(100_000) == 70_000, Status.BAD_IMAGE, Status.OK).astype(np.int64)
    assert curve_svg(replace(labels, status=once), "once").count("#d5d5d5") == 2
    assert curve_svg(replace(labels, status=np.zeros_like(once)), "never").count("#d5d5d5") == 0


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", make_page("name \udcff of a file", []))
    assert "name ? of a file" in (tmp_path / "page.html").read_text()
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_page(tmp_path / "taken", "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["page.html", "taken"]
