"""Files that the authors of the representation learners released, loaded strictly into our networks.

| family | file | what is taken |
|---|---|---|
| `moco` | `moco_v1_*`, `moco_v2_*.pth.tar` | `module.encoder_q.` without `fc` |
| `mocov3` | `r-50-*`, `vit-s-*`, `vit-b-*.pth.tar` | `module.base_encoder.` without projector |
| `simclr` | TensorFlow variables as `.npz` | `base_model/` |
| `dino` | `dino_*_pretrain.pth`, `*_full_checkpoint.pth` | the flat state, or the teacher's `backbone.` |
| `dinov2` | `dinov2_vit*14[_reg4]_pretrain.pth` | the flat state |
| `mae` | `mae_pretrain_*`, `mae_visualize_*.pth` | `model` without decoder |
| `ijepa` | `IN1K-vit.*.pth.tar`, `IN22K-*` | `target_encoder`, as in the paper's evaluation |
| `vjepa` | `vitl16.pth.tar` and the like | `target_encoder` |
| `vjepa2` | `vitl.pt`, `vith.pt`, `vitg*.pt` | `target_encoder`, or `encoder` where that is all there is |

Family and size are read from the keys and shapes. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from v2r_core.encoders.checkpoints import (
    CheckpointError,
    file_sha256,
    load_strict,
    read_checkpoint,
    resnet_backbone,
)
from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.nn.resnet import SimCLRResNet, simclr_from_tensorflow
from v2r_core.nn.still_clip import still_clip
from v2r_core.nn.vit import VisionTransformer, ViTConfig
from v2r_core.video.resize import Preprocess

State = dict[str, Tensor]

LICENSES = {
    "moco": "as facebookresearch/moco: MIT is the licence of its code; none is stated for its weights",
    "mocov3": "CC-BY-NC-4.0",
    "simclr": "Apache-2.0 is the licence of the code; none is stated for its weights",
    "dino": "Apache-2.0",
    "dinov2": "Apache-2.0",
    "mae": "CC-BY-NC-4.0",
    "ijepa": "CC-BY-NC-4.0",
    "vjepa": "CC-BY-NC-4.0",
    "vjepa2": "MIT is the licence of the code; none is stated for its weights",
}
"""Family to the licence of the released weights, as far as it is known."""


@dataclass(frozen=True)
class _Format:
    """How a file is told and read: a key that only it has, the entries it lies under, prefix, what to leave away."""

    family: str
    mark: str
    entry: tuple[str, ...] = ()
    prefix: str = ""
    beside: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


# The first that fits is taken.
_FORMATS = (
    _Format("moco", "module.queue", prefix="module.encoder_q.", beside=("module.",), dropped=("fc.",)),
    _Format(
        "mocov3",
        "module.predictor.0.weight",
        prefix="module.base_encoder.",
        beside=("module.",),
        dropped=("fc.", "head."),
    ),
    _Format("vjepa", "module.backbone.patch_embed.proj.weight", prefix="module.backbone."),
    _Format("ijepa", "module.pos_embed", ("target_encoder", "encoder"), prefix="module."),
    _Format("dino", "backbone.norm.weight", ("teacher",), prefix="backbone.", beside=("head.",)),
    _Format("dino", "backbone.conv1.weight", ("teacher",), prefix="backbone.", beside=("head.",)),
    _Format("mae", "cls_token", ("model",), dropped=("decoder_", "mask_token")),
    _Format("dinov2", "mask_token"),
    _Format("dino", "cls_token"),
    _Format("dino", "conv1.weight"),
)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
_MOCOV3_SMALL_HEADS = 12
_VJEPA2_GIANT_HEADS = 22
_VJEPA2_SIZE = 256


def load_released(path: str | Path, size: int | None = None, family: str | None = None) -> Encoder:
    """Reads a released file of any family above.

    Args:
        path: the file.
        size: side of the input in pixels; by default the one that the weights were made for. Position tables are
            brought to it once, here.
        family: what the caller takes the file for; None to be told by its keys.

    Returns:
        The encoder in evaluation mode. Transformers give the class token where there is one and the mean of the patch
        tokens otherwise; V-JEPA's take a camera image as a still clip (`v2r_core.nn.still_clip`).

    Raises:
        CheckpointError: not such a file, or one of another family; or keys that are missing, left over or of another
            shape, which are named.
    """
    file = Path(path).expanduser()
    found, state = _open(file)
    if family not in (None, found):
        raise CheckpointError(f"{file}: {family} asked for, but its keys are those of {found}; ask for {found}")
    family = found
    where = f"{file} ({family})"
    if family == "simclr":
        network, side, width = _simclr(state, where), 224, 2048
    elif "conv1.weight" in state:
        network, side, width = _resnet50(state, where), 224, 2048
    else:
        transformer = _transformer(family, state, size, where)
        network, side, width = transformer, transformer.config.size, transformer.config.width
    mean, std = ((0.0,) * 3, (1.0,) * 3) if family == "simclr" else (_IMAGENET_MEAN, _IMAGENET_STD)
    preprocess = Preprocess(size or side, "crop", round((size or side) * 256 / 224), mean, std)
    info = WeightsInfo(source=file.name, license=LICENSES[family], sha256=file_sha256(file))
    return Encoder(f"{family}:{file.name.split('.')[0]}", network, preprocess, width, info).eval()


def identify_released(path: str | Path) -> str:
    """Family of a released file.

    Raises:
        CheckpointError: no such file, or none of these families.
    """
    return _open(Path(path).expanduser())[0]


def _open(file: Path) -> tuple[str, State]:
    """Family and state of the encoder, with prefixes and heads taken off."""
    if file.suffix == ".npz":
        return "simclr", _read_npz(file)
    content = read_checkpoint(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, a dictionary of tensors expected")
    for entry in ("target_encoder", "teacher", "model", "state_dict", "encoder"):
        if isinstance(content.get(entry), dict):
            return _strip(file, content[entry], entry)
    return _strip(file, content, "")


def _strip(file: Path, state: Mapping[str, Any], entry: str) -> tuple[str, State]:
    for made in _FORMATS:
        if made.mark in state and (not made.entry or entry in made.entry):
            flat = _under(file, state, made)
            if made.family == "vjepa" and not _is_vjepa1(flat):
                # V-JEPA 2 ignores the table that its files may carry.
                return "vjepa2", {key: value for key, value in flat.items() if key != "pos_embed"}
            return made.family, flat
    shown = ", ".join(list(state)[:4]) or "nothing"
    raise CheckpointError(
        f"{file}: none of the released formats ({', '.join(LICENSES)}), found {shown}; "
        "for a timm model give its name and --weights"
    )


def _under(file: Path, state: Mapping[str, Any], made: _Format) -> State:
    """The encoder's entries without the prefix; heads and the rest of a method's state are left away."""
    strange = [key for key in state if not key.startswith((made.prefix, *made.beside))]
    if strange:
        raise CheckpointError(
            f"{file} ({made.family}): keys start with {made.prefix!r}, found {', '.join(strange[:4])}; another file?"
        )
    kept = {key.removeprefix(made.prefix): state[key] for key in state if key.startswith(made.prefix)}
    return {key: value for key, value in kept.items() if not (made.dropped and key.startswith(made.dropped))}


def _is_vjepa1(state: State) -> bool:
    table, kernel = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if table is None or kernel is None:
        return False
    # A fixed sin-cos table has sine of 0, which is 0, and cosine of 0, which is 1, in its first row.
    first = table[0, 0]
    return bool(((first == 0) | (first == 1)).all()) and table.shape[1] < 8 * 24 * 24 + 1


def _read_npz(file: Path) -> State:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give the path of a checkpoint")
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {key: torch.from_numpy(opened[key]) for key in opened.files if key.startswith("base_model/")}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: no .npz of plain arrays ({error}); write it with np.savez") from error


def _resnet50(state: State, where: str) -> nn.Module:
    network = resnet_backbone("resnet50")
    load_strict(network, state, where)
    return network.eval()


def _simclr(variables: State, where: str) -> nn.Module:
    network = SimCLRResNet(50)
    load_strict(network, simclr_from_tensorflow(variables, where), where)
    return network.eval()


def _transformer(family: str, state: State, size: int | None, where: str) -> VisionTransformer:
    config = _config(family, state, size, where)
    # Drawing a billion initial weights only to overwrite them would take most of the time.
    with torch.device("meta"):
        network = VisionTransformer(config)
    load_strict(network, {key: value.float() for key, value in state.items()}, where, assign=True)
    if config.frames > 1:
        network = still_clip(network)
    if size is not None and size != network.config.size:
        network = network.resized(size)
    return network.eval()


def _config(family: str, state: State, size: int | None, where: str) -> ViTConfig:
    """The transformer that a state's shapes describe."""
    try:
        kernel = state["patch_embed.proj.weight"]
        hidden = state.get("blocks.0.mlp.fc1.weight")
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{where}: no vision transformer (missing {error}); is the file complete?") from error
    width, patch = kernel.shape[0], kernel.shape[-1]
    if width not in _HEADS:
        raise CheckpointError(f"{where}: width {width} is none of {', '.join(map(str, _HEADS))}")
    heads = _HEADS[width]
    if family == "mocov3" and width == 384:
        heads = _MOCOV3_SMALL_HEADS
    if family == "vjepa2" and width == 1408:
        heads = _VJEPA2_GIANT_HEADS
    clip = kernel.ndim == 5
    class_token = "cls_token" in state
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    if "pos_embed" in state:
        tokens = state["pos_embed"].shape[1] - int(class_token)
        # V-JEPA's clips have eight steps of two frames.
        side = math.isqrt(tokens // 8 if clip else tokens)
    else:
        # Rotary positions have no table that would tell.
        side = (size or _VJEPA2_SIZE) // patch
    fixed = family in ("mocov3", "mae", "ijepa", "vjepa")
    return ViTConfig(
        size=side * patch,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden.shape[0] / width if hidden is not None else 4.0,
        frames=16 if clip else 1,
        tubelet=kernel.shape[2] if clip else 1,
        class_token=class_token,
        registers=registers,
        positions="rotary" if family == "vjepa2" else "sincos" if fixed else "learned",
        order="row" if family == "mocov3" else "column",
        resampling="antialias" if registers else "offset",
        layer_scale=1.0 if "blocks.0.ls1.gamma" in state else None,
        swiglu="blocks.0.mlp.w12.weight" in state,
        mask_token="mask_token" in state,
        pool="cls" if class_token else "mean",
    )
