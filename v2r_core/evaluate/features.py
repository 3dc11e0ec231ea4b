"""Frozen features of labelled videos: what every probe works on.

A data set is a folder with the splits `train` and `heldout`. In a split lie

* videos with a side-car: `train/push_3.mp4` and `train/push_3.npz` as tools/render_experts.py writes them; the label is
  the side-car's `task`;
* or a folder for each class, with videos in it, or with images: `train/cat/1.png`. The label is the folder's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.runtime import Session
from v2r_core.encoders.encoder import Encoder, numpy_embed
from v2r_core.nn.vit import VisionTransformer
from v2r_core.rewards.baselines import pixel_embedding
from v2r_core.video.augment import View
from v2r_core.video.draws import draw_boxes, uniforms_needed
from v2r_core.video.resize import Frame, Preprocess, resize_frame
from v2r_core.video.source import VIDEO_SUFFIXES, open_video
from v2r_core.video.video import IMAGE_SUFFIXES

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

BATCH = 64
"""Frames that an encoder gets at a time."""

PIXEL_SIZE = 64
"""Side that frames are brought to before their thumbnails are taken."""


class ProbeDataError(ValueError):
    """A data set cannot be probed; the message names the file or folder and the remedy."""


@dataclass(frozen=True)
class Embedder:
    """Anything that turns frames into features.

    Attributes:
        name: for tables.
        preprocess: how frames are brought to `embed`'s size.
        embed: from uint8 (N, S, S, 3) to float32 (N, D).
    """

    name: str
    preprocess: Preprocess
    embed: Embed


@dataclass(frozen=True)
class Recording:
    """One video of a split, and its class (None if nothing tells it)."""

    path: Path
    label: str | None


@dataclass(frozen=True)
class Truth:
    """True positions of one video, one row a frame, metres: gripper (T, 3) and object (T, 3), and the task."""

    gripper: NDArray[np.float64]
    object: NDArray[np.float64]
    task: str


@dataclass(frozen=True)
class Features:
    """Features of frames out of several videos.

    Attributes:
        features: float32 (N, D); with augmented views (V, N, D).
        video: int64 (N,): index of the recording that a row is from.
        frame: int64 (N,): its frame number there.
    """

    features: NDArray[np.float32]
    video: NDArray[np.int64]
    frame: NDArray[np.int64]


def pixel_embedder() -> Embedder:
    """16 x 16 thumbnails of the whole frame, 768 features: the baseline that needs no encoder."""
    return Embedder("pixels", Preprocess(PIXEL_SIZE), pixel_embedding)


def encoder_embedder(encoder: Encoder, blocks: int = 1) -> Embedder:
    """An encoder's embeddings, or the class tokens of its last blocks side by side (DINO's linear protocol).

    Args:
        encoder: is used as it is then, in evaluation mode.
        blocks: 1 for the encoder's own output; n for the n last blocks of a vision transformer with a class token,
            each behind the final norm: n times as many features.

    Raises:
        ProbeDataError: several blocks of a network that has none to offer.
    """
    if blocks == 1:
        return Embedder(encoder.name, encoder.preprocess, numpy_embed(encoder))
    deep = Encoder(
        encoder.name, _LastBlocks(encoder.backbone, blocks), encoder.preprocess, encoder.embedding_dim, encoder.weights
    )
    return Embedder(f"{encoder.name}, {blocks} blocks", encoder.preprocess, numpy_embed(deep.to(encoder.mean.device)))


def bundle_embedder(folder: str | Path, threads: int = 0) -> Embedder:
    """A bundle's encoder as the robot runs it.

    Raises:
        BundleError: not a bundle, or a damaged one.
    """
    bundle = load_bundle(Path(folder))
    session = Session(bundle, threads=threads, batch=BATCH)
    return Embedder(bundle.manifest.name, bundle.manifest.encoder.preprocess.preprocess(), session)


class _LastBlocks(nn.Module):
    def __init__(self, backbone: nn.Module, blocks: int) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, blocks
        own = isinstance(backbone, VisionTransformer) and backbone.config.class_token
        if not own and not (
            hasattr(backbone, "get_intermediate_layers") and getattr(backbone, "cls_token", None) is not None
        ):
            raise ProbeDataError(
                f"{type(backbone).__name__} is no vision transformer with a class token; use one block, its output"
            )

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(self.backbone, VisionTransformer):
            layers = self.backbone.last_tokens(images, self.blocks)
            return torch.cat([tokens[:, 0] for tokens in layers], dim=1)
        timm_vit: Any = self.backbone
        layers = timm_vit.get_intermediate_layers(images, self.blocks, return_prefix_tokens=True, norm=True)
        return torch.cat([prefix[:, 0] for _, prefix in layers], dim=1)


def list_recordings(data: str | Path, split: str) -> list[Recording]:
    """Videos of a split in order of their names.

    Raises:
        ProbeDataError: there is no such folder, or nothing in it.
    """
    folder = Path(data).expanduser() / split
    if not folder.is_dir():
        raise ProbeDataError(f"{folder}: no such folder; a data set has the folders train and heldout")
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix.lower() in VIDEO_SUFFIXES:
            found.append(Recording(entry, _side_car_task(entry)))
        elif entry.is_dir():
            found += _class_folder(entry)
    if not found:
        raise ProbeDataError(f"{folder}: no videos in it; tools/render_experts.py makes some")
    return found


def read_truth(video: Path) -> Truth:
    """The side-car of a video.

    Raises:
        ProbeDataError: missing, damaged, or without what the probe needs.
    """
    file = video.with_suffix(".npz")
    if not file.is_file():
        raise ProbeDataError(f"{file}: no such file; positions are probed on videos from tools/render_experts.py")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            truth = Truth(arrays["gripper"], arrays["object"], str(arrays["task"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ProbeDataError(f"{file}: not a side-car of tools/render_experts.py ({error}); render it again") from error
    shape = truth.gripper.shape
    if len(shape) != 2 or shape[1] != 3 or truth.object.shape != shape:
        raise ProbeDataError(f"{file}: gripper {shape} and object {truth.object.shape}, (T, 3) each expected")
    return truth


def embed_recordings(
    embedder: Embedder,
    recordings: Sequence[Recording],
    frames: int,
    views: int = 0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """Features of evenly spaced frames of each video.

    Args:
        embedder: what makes the features.
        recordings: the videos.
        frames: frames a video, first and last included; all of a shorter one.
        views: 0 for each frame as it is; V for V random crops, flipped in half of the cases, of each: see
            `random_views`.
        seed: of the crops; a frame's crops do not depend on the other videos.
        on_progress: gets the number of videos done, and of all.

    Raises:
        VideoError: a video cannot be read. It is not skipped: results on other data could not be compared.
    """
    rows: list[NDArray[np.float32]] = []
    video: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    for index, recording in enumerate(recordings):
        with open_video(recording.path) as source:
            chosen = np.unique(np.linspace(0, len(source) - 1, min(frames, len(source))).round().astype(np.int64))
            pictures = [source[int(number)] for number in chosen]
        if views:
            rng = np.random.default_rng([seed, index])
            crops = [random_views(pictures, embedder.preprocess.size, rng) for _ in range(views)]
            rows.append(np.stack([_embed(embedder, view) for view in crops]))
        else:
            rows.append(_embed(embedder, pictures))
        video.append(np.full(len(chosen), index, np.int64))
        numbers.append(chosen)
        on_progress(index + 1, len(recordings))
    return Features(np.concatenate(rows, axis=1 if views else 0), np.concatenate(video), np.concatenate(numbers))


def random_views(frames: Sequence[Frame], size: int, rng: np.random.Generator) -> list[Frame]:
    """What all papers' linear probes train on: a random part of 8 to 100 % of the area, flipped in half of the cases.

    Args:
        frames: uint8 RGB (H, W, 3).
        size: S, side of the encoder's input.
        rng: source of randomness.

    Returns:
        For each frame a crop, brought to uint8 RGB (S, S, 3).
    """
    view, whole = View(size=size), Preprocess(size, "squash")
    heights, widths = (np.array([frame.shape[axis] for frame in frames], np.int64) for axis in (0, 1))
    boxes = draw_boxes(view, rng.random((len(frames), uniforms_needed(view))), heights, widths)
    views = []
    for frame, (top, left, height, width), flip in zip(frames, boxes.box, boxes.flip, strict=True):
        crop = resize_frame(np.ascontiguousarray(frame[top : top + height, left : left + width]), whole)
        views.append(crop[:, ::-1] if flip else crop)
    return views


def class_numbers(
    train: Sequence[str | None], test: Sequence[str | None]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Numbers the classes in alphabetical order.

    Returns:
        The classes, and the class numbers of both, int64.

    Raises:
        ProbeDataError: a video without a class, or a class that training does not have.
    """
    if None in train or None in test:
        raise ProbeDataError("a video has neither a side-car nor a class folder; put videos into a folder a class")
    classes = sorted({label for label in train if label is not None})
    if unknown := sorted({str(label) for label in test} - set(classes)):
        raise ProbeDataError(f"held-out classes {', '.join(unknown)} do not occur in training")
    number = {label: index for index, label in enumerate(classes)}
    numbers = [np.array([number[str(label)] for label in part], np.int64) for part in (train, test)]
    return classes, numbers[0], numbers[1]


def _embed(embedder: Embedder, pictures: Sequence[Frame]) -> NDArray[np.float32]:
    prepared = [resize_frame(picture, embedder.preprocess) for picture in pictures]
    batches = (np.stack(prepared[at : at + BATCH]) for at in range(0, len(prepared), BATCH))
    return np.concatenate([embedder.embed(batch) for batch in batches])


def _side_car_task(video: Path) -> str | None:
    return read_truth(video).task if video.with_suffix(".npz").is_file() else None


def _class_folder(folder: Path) -> list[Recording]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    videos = [Recording(file, folder.name) for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
        # A folder of images opens as a video; its frames are the images.
        return [Recording(folder, folder.name)]
    return videos
