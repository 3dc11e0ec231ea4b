"""Video files and folders of images: the right frame at the right time, in bounded memory, or a clear refusal."""

import math
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_writer import HEIGHT, WIDTH, number_of, numbered, write_video
from PIL import Image

from v2r_core.video import files, open_video
from v2r_core.video.files import ImageFolder, VideoFile
from v2r_core.video.video import VideoError

B_FRAMES = {"bf": "3", "g": "12"}
KINDS = {
    "b_frames.mp4": ("libx264", B_FRAMES),
    "open_gop.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=none"}),
    "b_frames.mkv": ("libx264", B_FRAMES),
    "b_frames.mov": ("mpeg4", {"bf": "2", "g": "12"}),
    "intra.avi": ("mjpeg", {}),
    "b_frames.avi": ("mpeg4", {"bf": "2", "g": "12"}),
    "no_times.avi": ("libx264", {"bf": "2", "g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    "vp8.webm": ("libvpx", {"g": "12"}),
    "animated.gif": ("gif", {}),
    "one_key.mp4": ("libx264", {"g": "1000"}),
}


def write_kind(folder: Path, name: str, **extra: object) -> Path:
    codec, options = KINDS[name]
    return write_video(folder / name, codec, options=options, **extra)


@pytest.mark.parametrize("name", KINDS)
def test_every_access_gives_the_frame_of_that_number(tmp_path, name):
    with open_video(write_kind(tmp_path, name)) as video:
        assert len(video) == 40
        frames = list(video)
        assert [number_of(frame) for frame in frames] == list(range(40))
        assert {(frame.shape, frame.dtype) for frame in frames} == {((HEIGHT, WIDTH, 3), np.dtype(np.uint8))}
        shuffled = [*range(0, 40, 7), *random.Random(0).choices(range(40), k=60), *range(39, -1, -1), *range(40)]
        for index in shuffled:
            np.testing.assert_array_equal(video[index], frames[index], err_msg=f"frame {index}")
        np.testing.assert_array_equal(video[-1], frames[39])
        np.testing.assert_array_equal(video[np.int64(-40)], frames[0])
        for outside in (40, -41):
            with pytest.raises(IndexError, match=f"frame {outside} of 40"):
                video[outside]


@pytest.mark.parametrize("name", KINDS)
def test_stamps_are_those_of_a_full_decode(tmp_path, name):
    path = write_kind(tmp_path, name)
    video = VideoFile(path)
    with av.open(str(path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    # Where the container has no times, the decoder's are in a wrong order; as a set they are right.
    np.testing.assert_allclose(video.stamps, sorted(times), rtol=0, atol=1e-9)
    assert video.stamps.dtype == np.float64
    assert video.fps == pytest.approx(39 / (max(times) - min(times)), rel=1e-9)


def test_variable_frame_rate(tmp_path):
    pts = np.cumsum(np.random.default_rng(0).integers(5, 200, 40)).tolist()
    path = write_video(
        tmp_path / "vfr.mkv", options=B_FRAMES, time_base=Fraction(1, 1000), pts=[p - pts[0] for p in pts]
    )
    with open_video(path) as video:
        np.testing.assert_allclose(video.stamps, (np.array(pts) - pts[0]) / 1000, rtol=0, atol=1e-9)
        assert [number_of(video[index]) for index in (30, 2, 39, 17)] == [30, 2, 39, 17]


def test_edit_list_hides_frames(tmp_path):
    path = write_video(
        tmp_path / "edited.mp4",
        options=B_FRAMES,
        time_base=Fraction(1, 30),
        pts=list(range(-6, 34)),
        mux={"use_editlist": "1", "avoid_negative_ts": "disabled"},
    )
    with open_video(path) as video:
        shown = [number_of(frame) for frame in video]
        assert shown == list(range(6, 40))
        assert [number_of(video[index]) for index in (20, 0, 33)] == [26, 6, 39]
        assert video.stamps[0] == 0


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_display_rotation_is_applied(tmp_path, rotation, turns):
    upright = write_video(tmp_path / "upright.mp4", count=3)
    rotated = write_video(tmp_path / "rotated.mp4", count=3, rotation=rotation)
    with open_video(upright) as plain, open_video(rotated) as turned:
        np.testing.assert_array_equal(turned[2], np.rot90(plain[2], turns))


def test_vp8_reference_frames_are_not_counted(tmp_path):
    shown = write_video(tmp_path / "shown.webm", "libvpx", options={"g": "12"})
    hidden = tmp_path / "hidden.webm"
    with av.open(str(shown)) as source, av.open(str(hidden), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            data = bytearray(bytes(packet))
            if number == 5:
                data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            target.mux(copy)
    with open_video(hidden) as video:
        assert len(video) == 39
        assert [number_of(video[index]) for index in (38, 4, 5, 20)] == [39, 4, 6, 21]


def test_recording_that_starts_before_a_key_frame(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", options={"g": "12", "bf": "0"})
    cut = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][5:]:
            packet.stream = stream
            target.mux(packet)
    with open_video(cut) as video:
        first = number_of(video[0])
        assert first > 5
        assert [number_of(frame) for frame in video] == list(range(first, 40))


def test_iterating_does_not_disturb_random_access(tmp_path):
    with open_video(write_kind(tmp_path, "b_frames.mp4")) as video:
        for index, frame in enumerate(video):
            assert number_of(frame) == index
            assert number_of(video[(index * 17) % 40]) == (index * 17) % 40


def test_few_frames_are_kept(tmp_path):
    path = write_kind(tmp_path, "b_frames.mp4")
    video = VideoFile(path)
    assert video[3] is video[3]
    assert not video[3].flags.writeable
    video = VideoFile(path, kept_bytes=5 * video[0].nbytes + 1)
    for index in range(40):
        video[index]
    assert len(video._cache) == 5
    video = VideoFile(path, kept_bytes=0)
    assert number_of(video[0]) == 0
    assert len(video._cache) == 1


def test_sequential_access_decodes_every_frame_once(tmp_path, monkeypatch):
    seeks = []
    seek = files._Decoder._seek
    monkeypatch.setattr(files._Decoder, "_seek", lambda self, key: seeks.append(key) or seek(self, key))
    with open_video(write_kind(tmp_path, "b_frames.mp4")) as video:
        for index in range(0, 40, 2):
            video[index]
        # Past a key frame it jumps, as nothing between is needed; it never goes back.
        assert seeks == sorted(set(seeks))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("begin", "end"), [(0, 5), (14, 14), (17, 30), (36, 39)])
def test_a_span_has_the_frames_of_the_whole(tmp_path, name, begin, end):
    path = write_kind(tmp_path, name)
    with VideoFile(path) as whole:
        half = 0.5 * float(np.diff(whole.stamps).min())
        with VideoFile(path, 1, 0, (whole.stamps[begin] - half, whole.stamps[end] + half)) as part:
            numbers = np.searchsorted(whole.stamps, part.stamps)
            np.testing.assert_array_equal(whole.stamps[numbers], part.stamps)
            assert set(range(begin, end + 1)) <= set(numbers)
            assert [number_of(frame) for frame in part] == numbers.tolist()
            for index in random.Random(0).choices(range(len(part)), k=15):
                np.testing.assert_array_equal(part[index], whole[int(numbers[index])])


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mp4", "hevc.mp4"])
def test_a_span_reads_nothing_else(tmp_path, name):
    """What lies before it is not decoded, what lies behind it not even looked for."""
    path = write_kind(tmp_path, name, mux={"movflags": "faststart"})
    with VideoFile(path) as video:
        stamps = video.stamps
    with av.open(str(path)) as container:
        packets = [(each.pos, each.size) for each in container.demux(video=0) if each.size]
    data = bytearray(path.read_bytes())
    begin = min(pos for pos, _ in packets)
    middle = packets[22][0]
    data[begin + 60 : packets[10][0]] = bytes(packets[10][0] - begin - 60)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"cannot be decoded|is missing"), VideoFile(path) as video:
        list(video)
    with VideoFile(path, span=(stamps[26], stamps[39])) as video:
        assert [number_of(frame) for frame in video][-14:] == list(range(26, 40))
    path = write_kind(tmp_path, name, mux={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:middle])
    with pytest.raises(VideoError, match="truncated"):
        VideoFile(path)
    with VideoFile(path, span=(stamps[0], stamps[9])) as video:
        assert [number_of(frame) for frame in video][:10] == list(range(10))


def test_jump_ahead_skips_what_lies_between(tmp_path, monkeypatch):
    seeks = []
    seek = files._Decoder._seek
    monkeypatch.setattr(files._Decoder, "_seek", lambda self, key: seeks.append(key) or seek(self, key))
    with open_video(write_kind(tmp_path, "vp9.webm")) as video:
        assert [number_of(video[index]) for index in (0, 38)] == [0, 38]
        assert seeks == [36]


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mp4", "b_frames.mkv"])
def test_container_that_seeks_too_far(tmp_path, name):
    """Some containers find key frames by decoding time; frames behind the wrong one would be decoded wrongly."""

    class Overshooting:
        def __init__(self, container):
            self._container = container

        def seek(self, stamp, **options):
            self._container.seek(int(stamp + 0.4 / options["stream"].time_base), **options)

        def __getattr__(self, attribute):
            return getattr(self._container, attribute)

    video = VideoFile(write_kind(tmp_path, name))
    frames = list(video)
    for index in (25, 14, 30, 26, 3):
        video._decoder._container = Overshooting(video._decoder._container)
        np.testing.assert_array_equal(video[index], frames[index], err_msg=f"frame {index}")


def test_memory_does_not_grow_with_length(tmp_path):
    path = write_video(tmp_path / "long.mp4", "mpeg4", 900, options={"g": "30"}, size=(480, 640))
    script = (
        "import resource, sys; from v2r_core.video import open_video\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "video = open_video(sys.argv[1]); video[0]; before = peak()\n"
        "for frame in video: pass\n"
        "for index in range(len(video)): video[index]\n"
        "for index in range(0, len(video), 60): video[index]\n"
        "print(peak() - before, len(video) * video[0].nbytes / 2**20)"
    )
    out = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    grown, whole = (float(number) for number in out.stdout.split())
    assert whole > 750
    assert grown < 150


@pytest.mark.parametrize("name", ["fast.mp4", "plain.mp4", "b_frames.mkv", "vp9.webm", "b_frames.avi"])
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_truncated_files_are_refused(tmp_path, name, part):
    codec, options = KINDS.get(name, ("libx264", B_FRAMES))
    mux = {"movflags": "faststart"} if name == "fast.mp4" else None
    path = write_video(tmp_path / name, codec, 120, options=options, mux=mux)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(VideoError, match=f"{name}.*truncated"):
        open_video(path)


def test_damaged_frame_is_named_and_the_others_still_read(tmp_path):
    path = write_kind(tmp_path, "vp9.webm")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][18]
    found = data.find(bytes(packet))
    data[found : found + 4] = b"\x00\x00\x00\x00"
    path.write_bytes(data)
    with open_video(path) as video:
        with pytest.raises(VideoError, match="frame 18"):
            video[18]
        assert [number_of(video[index]) for index in (17, 30, 3)] == [17, 30, 3]


def test_file_cut_between_two_frames_is_refused(tmp_path):
    path = write_video(tmp_path / "cut.mp4", mux={"movflags": "faststart"})
    with av.open(str(path)) as container:
        boundary = [packet.pos for packet in container.demux(video=0) if packet.size][25]
    path.write_bytes(path.read_bytes()[:boundary])
    with pytest.raises(VideoError, match=r"ends after 25 frames.*truncated"):
        open_video(path)


def test_what_is_no_video_is_refused(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(VideoError, match="no video file"):
            open_video(path)


def test_unknown_codec_is_refused(tmp_path):
    path = write_kind(tmp_path, "b_frames.avi")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoError, match="codec of its video stream is not known"):
        open_video(path)


def test_metadata_in_another_encoding_does_no_harm(tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Gerat-title"
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = HEIGHT, WIDTH
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(0), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"Gerat-title", "Gerät-title".encode("latin-1")))
    assert len(open_video(path)) == 1


def test_sound_only_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        open_video(path)


def test_closed_video_says_so(tmp_path):
    video = open_video(write_kind(tmp_path, "b_frames.mp4"))
    video.close()
    video.close()
    with pytest.raises(VideoError, match="closed"):
        video[0]


def save_images(folder: Path, names: list[str], **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(numbered(number)).save(folder / name, **options)
    return folder


def test_folder_in_natural_order(tmp_path):
    names = ["a1.png", "a2.png", "a10.png", "b.JPG", "b3.bmp", "b12.webp", "b12a.jpeg"]
    folder = save_images(tmp_path / "images", names)
    (folder / "notes.txt").write_text("left out")
    Image.new("RGB", (3, 3)).save(folder / ".hidden.png")
    with open_video(folder, fps=4) as video:
        numbers = [number_of(frame) for frame in video]
        assert sorted(numbers) == list(range(7))
        assert numbers[:3] == [0, 1, 2]
        assert numbers.index(4) < numbers.index(5)
        np.testing.assert_allclose(video.stamps, np.arange(7) / 4)
        assert (video.fps, video.name, len(video)) == (4, "images", 7)
        np.testing.assert_array_equal(video[-7], numbered(0))
        with pytest.raises(IndexError):
            video[7]


def test_folder_refusals(tmp_path):
    folder = save_images(tmp_path / "images", ["0.png", "1.png"])
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folder / "2.png")
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes()[:60])
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(folder / "4.png")
    with ImageFolder(folder, 10) as video:
        with pytest.raises(VideoError, match=f"frame 2 is {WIDTH}x{HEIGHT + 1}, the first one {WIDTH}x{HEIGHT}"):
            video[2]
        with pytest.raises(VideoError, match=r"3\.png"):
            video[3]
        with pytest.raises(VideoError, match=r"4\.png.*not 8-bit"):
            video[4]
    with pytest.raises(VideoError, match="closed"):
        video[0]
    for fps in (0, -1, math.nan, math.inf):
        with pytest.raises(VideoError, match="fps is"):
            ImageFolder(folder, fps)
