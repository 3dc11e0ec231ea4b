from __future__ import annotations

import json
from pathlib import Path

import pytest
import tyro
from robot_bags import SECOND, START, episode, write_bag

from v2r_core.cli import convert as convert_module
from v2r_core.cli.convert import Convert


def command(*words: object) -> Convert:
    return tyro.cli(Convert, args=[str(word) for word in words])


def test_options_are_understood_and_the_table_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bag = write_bag(tmp_path / "bag", episode(mark=False))
    out = tmp_path / "out"
    words = ("--state", "/joint_states", "--action", "/command", "--task", "pick up", "--fps", "10")
    assert command(bag, out, "--to", "lerobot", "--image", "/front/image_raw=top", *words).run() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "episodes 1 " in said
    assert "frames 10, 1.0 s at 10 a second" in said
    assert "observation.images.top 96x48" in said
    assert "observation.state (3), action (2)" in said
    assert "'pick up' (1)" in said
    assert "frames/s" in said
    assert (out / "meta/info.json").is_file()


def test_what_was_left_out_is_said_and_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bags = tmp_path / "bags"
    rows = [row for row in episode(mark=False) if row[1] != "/joint_states" or row[0] > START + SECOND // 4]
    write_bag(bags / "a", rows)
    write_bag(bags / "b", [row for row in episode() if row[1] != "/joint_states"])
    words = (bags, tmp_path / "out", "--to", "lerobot", "--state", "/joint_states")
    assert command(*words, "--json").run() == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames_left_out"] == {"no message of /joint_states yet": 5}
    assert list(summary["failed"]) == ["b"]
    assert list(summary["topics_left_out"]) == ["/command"]
    assert (summary["episodes"], summary["frames"], summary["recordings"]) == (1, 15, 2)
    assert command(*words, "--force").run() == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "failed b: " in said
    assert "left out 5 frames: no message of /joint_states yet" in said
    assert "not taken /command: " in said


def test_who_interrupts_is_told_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows = episode(frames=10) + episode(START + 9 * SECOND, 15, number=1)
    words = (write_bag(tmp_path / "bag", rows), tmp_path / "out", "--to", "lerobot")
    plain = convert_module.convert

    def interrupt(frames: int, _: int) -> None:
        if frames == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "convert", lambda task, _: plain(task, interrupt))
    assert command(*words).run() == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "v2r convert: interrupted; the same command goes on from here\n")
    monkeypatch.undo()
    assert command(*words).run() == 0
    assert "taken over 1 episodes of a run that was interrupted" in " ".join(capsys.readouterr().out.split())


def test_brackets_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_bag(tmp_path / "[bold]bag", episode(frames=5, mark=False))
    assert command("[bold]bag", "[red]out", "--to", "lerobot", "--task", "put the [red] cube into [/b]").run() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "put the [red] cube into [/b]" in said
    assert "written to [red]out" in said and "source [bold]bag" in said


@pytest.mark.parametrize("option", ["--fps", "--gap", "--max-age"])
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, option: str):
    with pytest.raises(ValueError, match=f"{option} 0.*above 0"):
        command(tmp_path, tmp_path / "out", "--to", "bag", option, "0").run()


def test_a_wish_for_bags_is_refused_for_videos(clip: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="states are wishes for bags, and this is videos"):
        command(clip, tmp_path / "out", "--to", "bag", "--state", "/joints").run()
