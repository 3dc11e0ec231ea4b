"""`v2r train`: method and preset decide which options there are; a run is trained, resumed and exported."""

import json
import shutil

import pytest

from v2r_core.cli.main import main
from v2r_core.cli.train import Train
from v2r_core.methods import METHODS, load_method


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_presets(name):
    presets = load_method(name).recipe_type.presets()
    assert {"paper", "tiny"} <= presets.keys()
    for preset in presets:
        command = Train.parse([name, "--preset", preset, "--data", "a", "b", "--out", "run"])
        assert command.recipe == presets[preset]
        assert [str(path) for path in command.data] == ["a", "b"]


def test_a_field_of_the_recipe_is_an_option():
    command = Train.parse(["mae", "--preset=tiny", "--data", "a", "--out", "run", "--mask-ratio", "0.5", "--seed", "3"])
    assert command.recipe.mask_ratio == 0.5
    assert command.options.seed == 3


def test_unknown_preset_and_method(capsys):
    assert main(["train", "mae", "--preset", "huge", "--data", "a", "--out", "run"]) == 1
    assert "mae has no preset 'huge'; there are paper, tiny" in capsys.readouterr().err
    assert main(["train", "mea", "--data", "a", "--out", "run"]) == 1
    assert "no method 'mea'; there are moco" in capsys.readouterr().err


def test_the_help_lists_the_methods(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "simclrv2" in capsys.readouterr().out


def test_missing_data_is_an_error_with_the_path(tmp_path, capsys):
    arguments = ["train", "mae", "--preset", "tiny", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.slow
def test_train_resume_export(clip, tmp_path, capsys):
    """From a video to a bundle that scores it."""
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    size = ["--size", "32", "--batch-size", "8", "--epochs", "2", "--warmup-epochs", "1", "--workers", "0", "--cpu"]
    words = ["train", "mae", "--preset", "tiny", "--data", str(clip), "--out", str(run), *size]
    assert main([*words, "--stop-after", "2"]) == 0
    assert main([*words, "--resume"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 10
    assert list(run.glob("picture-*.png"))
    assert main(["export", str(run), "--out", str(bundle)]) == 0
    assert "trained with mae, 10 steps" in (bundle / "README.md").read_text()
    assert main(["score", str(clip), "--model", str(bundle), "--out", str(tmp_path / "score"), "--json"]) == 0
    assert '"frames": 40' in capsys.readouterr().out


def test_a_run_takes_no_other_weights(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    assert main(["export", str(tmp_path), "--size", "32", "--out", str(tmp_path / "bundle")]) == 1
    assert "a run has its own weights, size and mode" in capsys.readouterr().err


@pytest.mark.slow
def test_the_three_steps_of_simclrv2(clip, tmp_path, capsys):
    """Pre-training, fine-tuning on half of the labels, distillation: each begins with the run before."""
    data = tmp_path / "data"
    for label in ("left", "right"):
        (data / label).mkdir(parents=True)
        for number in range(2):
            shutil.copy(clip, data / label / f"{number}.mp4")
    common = ["--preset", "tiny", "--data", str(data), "--workers", "0", "--cpu", "--epochs", "1", "--batch-size", "16"]
    common += ["--size", "32", "--stop-after", "1"]
    runs = {name: str(tmp_path / name) for name in ("first", "second", "third")}
    assert main(["train", "simclrv2", *common, "--out", runs["first"], "--memory", "64"]) == 0
    labels = ["--labels", "folders", "--classes", "2"]
    fine = ["train", "simclrv2-finetune", *common, *labels, "--label-fraction", "0.5", "--out", runs["second"]]
    assert main(fine) == 1
    assert "begins with the weights of a run of simclrv2; name it as start_from" in capsys.readouterr().err
    assert main([*fine, "--start-from", runs["first"]]) == 0
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["classes"] == ["left", "right"]
    assert len(record["sources"]) == 2
    distil = ["train", "simclrv2-distill", *common, "--classes", "2", "--start-from", runs["second"]]
    assert main([*distil, "--out", runs["third"]]) == 0
    assert main(["train", "simclrv2-finetune", *common, "--out", str(tmp_path / "none")]) == 1
    assert "needs labels" in capsys.readouterr().err


def test_negatives_that_match_no_video_are_refused_before_the_run_begins(clip, tmp_path, capsys):
    words = ["--preset", "tiny-goal", "--negatives", "*/random/*", "--encoder", "random:timm:resnet10t", "--cpu"]
    assert main(["train", "time-rewarder", *words, "--data", str(clip), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "no video matches '*/random/*'" in error
    assert clip.name in error.replace("\n", "")
    assert not (tmp_path / "run").exists()
