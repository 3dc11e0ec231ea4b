"""Labels from folders and from a file, and the part of them that is kept."""

import pytest

from v2r_core.video.labels import Labels, read_labels

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
