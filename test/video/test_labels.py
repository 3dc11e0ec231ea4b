"""Labels from folders and from a file, and the part of them that is kept."""

import pytest
from lerobot_data import TOP, write_dataset
from PIL import Image

from v2r_core.video.footage import find_videos
from v2r_core.video.labels import Labels, class_folder, read_labels

VIDEOS = ["data/push/1.mp4", "data/push/2.mp4", "data/reach/1b.mp4", "data/other/3.mp4"]


def test_folders_are_classes():
    labels = read_labels("folders", VIDEOS)
    assert labels.classes == ("other", "push", "reach")
    assert labels.of_names(["data/push/2.mp4#7", "data/reach/1b.mp4#0", "else.mp4#1"]) == [1, 2, -1]


def test_a_file_by_path_or_by_name(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("video,label\ndata/push/1.mp4,good\n3.mp4,bad\n")
    labels = read_labels(file, VIDEOS)
    assert labels.classes == ("bad", "good")
    assert labels.of_video == {"data/push/1.mp4": 1, "data/other/3.mp4": 0}


def write_images(folder, count=2):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_images_is_a_class(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "images" / name)
    videos = find_videos([tmp_path / "images"])
    labels = read_labels("folders", videos)
    assert labels.classes == ("cat", "dog")
    assert labels.of_names([f"{tmp_path}/images/dog#1", f"{tmp_path}/images/cat#0"]) == [1, 0]


def test_the_classes_are_those_of_the_probe(tmp_path):
    """`v2r eval probe` and `v2r train --labels folders` read the same folders."""
    from v2r_core.evaluate.features import list_recordings

    write_images(tmp_path / "train" / "cat")
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "train" / "dog" / "1.mp4").touch()
    probed = {str(recording.path): recording.label for recording in list_recordings(tmp_path, "train")}
    assert {name: class_folder(name).name for name in find_videos([tmp_path / "train"])} == probed
    assert sorted(probed.values()) == ["cat", "dog"]


def test_bags_and_episodes(tmp_path):
    pick = write_dataset(tmp_path / "pick", lengths=(2, 2))
    bag = tmp_path / "push" / "run1"
    bag.mkdir(parents=True)
    (bag / "metadata.yaml").touch()
    videos = [*find_videos([pick]), str(bag), f"{bag}:/camera/image_raw"]
    assert [class_folder(video).name for video in videos] == ["pick", "pick", "push", "push"]


@pytest.mark.parametrize("name", ["pick#1", f"pick#1/{TOP}", "{folder}#1", f"{{folder}}#1/{TOP}"])
def test_an_episode_in_a_file(tmp_path, name):
    pick = write_dataset(tmp_path / "pick", lengths=(2, 2))
    file = tmp_path / "labels.csv"
    file.write_text(f"video,label\n{name.format(folder=pick)},good\npick#0,bad\n{TOP},all\n")
    assert read_labels(file, find_videos([pick])).of_names([f"{pick}#{n}/{TOP}#0" for n in (0, 1)]) == [0, 1]


def test_a_single_class_is_refused(tmp_path):
    write_images(tmp_path / "images" / "cat")
    with pytest.raises(ValueError, match=r"one class only, 'cat', of 1 videos in .*/images/cat; .*a folder for each"):
        read_labels("folders", find_videos([tmp_path / "images"]))
    file = tmp_path / "labels.csv"
    file.write_text("video,label\n1.mp4,good\n2.mp4,good\n")
    with pytest.raises(ValueError, match=r"labels .*csv: one class only, 'good', of 2 videos in .*/data/push"):
        read_labels(file, VIDEOS)


def test_a_fraction_keeps_some_of_every_class():
    labels = Labels(("a", "b"), {f"{name}{number}": label for label, name in enumerate("ab") for number in range(20)})
    kept = labels.fraction(0.1, seed=0)
    assert sorted(kept.of_video.values()) == [0, 0, 1, 1]
    assert kept.of_video == labels.fraction(0.1, seed=0).of_video
    assert kept.of_video != labels.fraction(0.1, seed=1).of_video
    assert sorted(labels.fraction(0.001, seed=0).of_video.values()) == [0, 1]


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_labels(tmp_path / "none.csv", VIDEOS)
    file = tmp_path / "labels.csv"
    file.write_text("name,class\na,b\n")
    with pytest.raises(ValueError, match="columns are"):
        read_labels(file, VIDEOS)
    file.write_text("video,label\nunknown.mp4,b\n")
    with pytest.raises(ValueError, match="none of the 4 videos"):
        read_labels(file, VIDEOS)
    with pytest.raises(ValueError, match="label_fraction is 0"):
        Labels(("a",), {"a": 0}).fraction(0, seed=0)
