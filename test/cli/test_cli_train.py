"""`v2r train`: method and preset decide which options there are; a run is trained, resumed and exported."""

import json
import shutil

import numpy as np
import pytest
from clip_writer import write_video
from PIL import Image

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


@pytest.mark.parametrize("cache", [(), ("--cache", "kept")])
def test_episodes_of_a_dataset_are_videos_of_their_own(cache, tmp_path, capsys, monkeypatch):
    """Three videos are converted into one dataset, which has them in one mp4; vip learns from each by itself."""
    monkeypatch.chdir(tmp_path)
    lengths = (12, 20, 9)
    (tmp_path / "clips").mkdir()
    for number, length in enumerate(lengths):
        write_video(tmp_path / "clips" / f"{number}.mp4", count=length, size=(64, 64))
    assert main(["convert", "clips", "set", "--to", "lerobot"]) == 0
    small = [
        "--encoder",
        "random:timm:resnet10t",
        "--size",
        "32",
        "--batch-size",
        "4",
        "--samples",
        "12",
        "--epochs",
        "2",
    ]
    words = ["train", "vip", "--preset", "tiny", "--data", "set", "--out", "run", "--workers", "0", "--cpu", *small]
    words += cache
    assert main([*words, "--stop-after", "2", "--log-every", "1"]) == 0
    assert main([*words, "--resume", "--log-every", "1"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sources"] == [f"set#{number}/observation.images.camera" for number in range(3)]
    assert record["skipped"] == []
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    if cache:
        about = [json.loads(file.read_text()) for file in (tmp_path / "kept").glob("*.json")]
        assert sorted(len(each["stamps"]) for each in about) == sorted(lengths)
        assert len(list((tmp_path / "kept" / "features").glob("*.safetensors"))) == 3


def test_negatives_among_the_episodes_of_a_dataset(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("experts", "random"):
        (tmp_path / f"{name}_clips").mkdir()
        shutil.copy(clip, tmp_path / f"{name}_clips" / "0.mp4")
        assert main(["convert", f"{name}_clips", name, "--to", "lerobot"]) == 0
    small = [
        "--encoder",
        "random:timm:resnet10t",
        "--size",
        "32",
        "--batch-size",
        "4",
        "--samples",
        "8",
        "--epochs",
        "1",
    ]
    words = [
        "train",
        "time-rewarder",
        "--preset",
        "tiny",
        "--data",
        "experts",
        "random",
        "--workers",
        "0",
        "--cpu",
        *small,
    ]
    assert main([*words, "--out", "none", "--negatives", "*/random/*"]) == 1
    assert "the videos are experts#0/observation.images.camera, random#0/" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--out", "run", "--negatives", "random#*"]) == 0


def test_folders_of_images_are_classes(tmp_path, capsys):
    """A network that has learned nothing does not know them apart; with a single class it would be always right."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(16):
            picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / name / f"{number}.png")
    common = ["--preset", "tiny", "--workers", "0", "--cpu", "--epochs", "1", "--batch-size", "16", "--size", "32"]
    common += ["--stop-after", "1"]
    first = ["train", "simclrv2", *common, "--memory", "64", "--data", str(tmp_path / "images")]
    assert main([*first, "--out", str(tmp_path / "first")]) == 0
    fine = ["train", "simclrv2-finetune", *common, "--labels", "folders", "--classes", "2"]
    fine += ["--start-from", str(tmp_path / "first"), "--out", str(tmp_path / "second")]
    assert main([*fine, "--data", str(tmp_path / "images" / "cat")]) == 1
    assert "one class only, 'cat'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "second").exists()
    assert main([*fine, "--data", str(tmp_path / "images")]) == 0
    assert "2 classes: cat, dog" in capsys.readouterr().err
    assert json.loads((tmp_path / "second" / "run.json").read_text())["classes"] == ["cat", "dog"]
    (line,) = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["accuracy"] < 1
