"""Checkpoints in the formats that the authors released, loaded strictly.

| format | file | network |
|---|---|---|
| VIP | `{"vip": state}`, keys `module.convnet.` + torchvision's | ResNet, `fc` = Linear(features, hidden_dim) or none |
| R3M | `{"r3m": state}`, the same prefix; `lang_enc`, `lang_rew` beside it | ResNet with no `fc` |

A file is opened with `weights_only=True`; beside tensors and plain containers only `argparse.Namespace` is let in,
where training scripts put their arguments. Every key must be there and have its shape, and none may be left over; else
the error names the keys.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

RESNET_FEATURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
"""Width of the pooled features of torchvision's ResNets."""

_PREFIX = "module.convnet."
_R3M_DROPPED = ("module.lang_enc.", "module.lang_rew.")
_SHOWN = 4


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the message names the file, the keys and the remedy."""


def read_checkpoint(path: str | Path) -> Any:
    """Opens a torch or safetensors file on the CPU.

    Args:
        path: file; the suffix `.safetensors` selects that format, anything else is a torch file.

    Returns:
        What the file holds, usually a dictionary. Tensors and plain containers only.

    Raises:
        CheckpointError: no such file, not such a file, or a torch file that holds more than tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give the path of a checkpoint")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file}: not a safetensors file ({error}); download it again") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: refused, it holds more than tensors, or is no torch file ({_first_line(error)}); "
            "save the bare state dict again with torch.save, on a machine where you may trust the file"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise CheckpointError(f"{file}: not a torch file ({_first_line(error)}); download it again") from error


def read_run_state(path: str | Path) -> dict[str, Tensor]:
    """The state of a training method, from the newest checkpoint of a run of `v2r train`.

    Args:
        path: folder of the run, or the file `method.safetensors` of one checkpoint.

    Raises:
        CheckpointError: neither of them, or a damaged file.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        files = sorted(found.glob("checkpoints/step-*/method.safetensors"))
        if not files:
            raise CheckpointError(f"{found}: no checkpoint in it; give the folder that `v2r train --out` wrote")
        found = files[-1]
    state: dict[str, Tensor] = read_checkpoint(found)
    return state


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file: which weights these were, for the record."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: str, assign: bool = False) -> None:
    """Copies a state dict into a module: same keys, same shapes, nothing missing, nothing left over.

    Args:
        module: receives the tensors in its own dtypes.
        state: tensors by the module's own key names.
        where: file, or file and entry, for the message.
        assign: take the tensors themselves instead of copying: for a module on the meta device, whose initial weights
            were never drawn.

    Raises:
        CheckpointError: with the first few offending keys of each kind and their number.
    """
    own = module.state_dict()
    problems = []
    if missing := [key for key in own if key not in state]:
        problems.append(f"missing {_some(missing)}")
    if extra := [key for key in state if key not in own]:
        problems.append(f"not expected {_some(extra)}")
    shared = [key for key in own if key in state]
    if no_tensor := [key for key in shared if not isinstance(state[key], Tensor)]:
        problems.append(f"not a tensor {_some(no_tensor)}")
    elif wrong := [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in shared
        if state[key].shape != own[key].shape
    ]:
        problems.append(f"wrong shape {_some(wrong)}")
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}; choose the architecture that the file was made for")
    module.load_state_dict(dict(state), strict=True, assign=assign)


def resnet_backbone(arch: str, hidden_dim: int = 0) -> nn.Module:
    """torchvision's ResNet as VIP and R3M use it, with fresh weights.

    Args:
        arch: `resnet18`, `resnet34` or `resnet50`.
        hidden_dim: outputs of the final linear layer; 0 for none, the pooled features are the output then.

    Returns:
        Module from normalised images (N, 3, S, S) to (N, hidden_dim), or (N, 512 or 2048) if that is 0.

    Raises:
        CheckpointError: another architecture.
    """
    if arch not in RESNET_FEATURES:
        raise CheckpointError(f"architecture {arch!r} is none of {', '.join(RESNET_FEATURES)}")
    # No weights are asked for, so nothing is downloaded.
    network: nn.Module = getattr(torchvision.models, arch)(weights=None)
    network.fc = nn.Linear(RESNET_FEATURES[arch], hidden_dim) if hidden_dim else nn.Identity()
    return network


def load_vip_backbone(path: str | Path, arch: str = "resnet50") -> nn.Module:
    """Reads a VIP checkpoint: the released one (`resnet50`, 1024 outputs) or a snapshot of the official trainer.

    The width of the output is read from `fc.weight`; without one the features themselves are the output.

    Args:
        path: torch file `{"vip": state}`, optionally with `global_step` beside it.
        arch: `resnet18`, `resnet34` or `resnet50`.

    Returns:
        The network in evaluation mode; `embedding_dim(network)` tells its width.

    Raises:
        CheckpointError: not such a file, or keys or shapes that do not fit `arch`.
    """
    state = _convnet_state(path, entry="vip", beside=("global_step",), dropped=())
    weight = state.get("fc.weight")
    hidden_dim = len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else 0
    network = resnet_backbone(arch, hidden_dim)
    load_strict(network, state, f"{path} (vip, {arch})")
    return network.eval()


def load_r3m_backbone(path: str | Path, arch: str = "resnet50") -> nn.Module:
    """Reads an R3M checkpoint. The language encoder and its reward head are dropped.

    Args:
        path: torch file `{"r3m": state}`, optionally with `global_step` beside it.
        arch: `resnet18`, `resnet34` or `resnet50`.

    Returns:
        The network in evaluation mode; its outputs are the 512 or 2048 pooled features.

    Raises:
        CheckpointError: not such a file, or keys or shapes that do not fit `arch`.
    """
    state = _convnet_state(path, entry="r3m", beside=("global_step",), dropped=_R3M_DROPPED)
    network = resnet_backbone(arch)
    load_strict(network, state, f"{path} (r3m, {arch})")
    return network.eval()


def identify_checkpoint(path: str | Path) -> str:
    """Name of the encoder that a VIP or R3M checkpoint holds, e.g. `vip:resnet50`, from its keys.

    Raises:
        CheckpointError: no such file, or neither of the two.
    """
    content = read_checkpoint(path)
    entries = content if isinstance(content, dict) else {}
    for family in ("vip", "r3m"):
        if isinstance(entries.get(family), dict):
            keys = entries[family]
            # ResNet-50 has bottlenecks; 18 and 34 differ in the number of blocks of the third stage.
            if f"{_PREFIX}layer1.0.conv3.weight" in keys:
                return f"{family}:resnet50"
            return f"{family}:resnet34" if f"{_PREFIX}layer3.2.conv1.weight" in keys else f"{family}:resnet18"
    found = _some([str(key) for key in entries]) if entries else type(content).__name__
    raise CheckpointError(
        f"{path}: neither a VIP nor an R3M checkpoint, found {found}; for a timm model give its name and --weights"
    )


def embedding_dim(network: nn.Module) -> int:
    """Width of the output of a network that `resnet_backbone` made."""
    if isinstance(network.fc, nn.Linear):
        return network.fc.out_features
    # The last batch norm of the last block tells the width where there is no final layer.
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)][-1].num_features


def official_unit_range(images: Tensor, compat: Literal["official", "paper"] = "official") -> Tensor:
    """How the released VIP brings pixels to [0, 1]: by looking at the largest value of the batch.

    Quirk of the released code: a batch is divided by 255 only if its maximum exceeds 2.0. An almost black uint8 frame
    is therefore used as it is, 255 times too bright, and one bright frame in a batch changes what happens to the
    others. `Encoder` does not do this; the function is here to reproduce published numbers.

    Args:
        images: any real dtype and shape, a whole batch.
        compat: `official` as above; `paper` always divides, as the documented input range 0 to 255 asks (and as the
            released R3M does).

    Returns:
        float32 tensor of the same shape.
    """
    values = images.float()
    if compat == "official" and not bool(values.max() > 2.0):
        return values
    return values / 255.0


def _convnet_state(
    path: str | Path, entry: str, beside: tuple[str, ...], dropped: tuple[str, ...]
) -> dict[str, Tensor]:
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get(entry), dict):
        found = _some([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: no entry {entry!r} with a state dict, found {found}; is it another format?")
    if extra := [str(key) for key in content if key not in (entry, *beside)]:
        raise CheckpointError(f"{path}: not expected beside {entry!r}: {_some(extra)}")
    kept = {key: value for key, value in content[entry].items() if not key.startswith(dropped)}
    if foreign := [key for key in kept if not key.startswith(_PREFIX)]:
        raise CheckpointError(f"{path}: keys of {entry!r} must start with {_PREFIX!r}, found {_some(foreign)}")
    return {key.removeprefix(_PREFIX): value for key, value in kept.items()}


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return f"{shown}, ... ({len(keys)} in all)" if len(keys) > _SHOWN else f"{shown} ({len(keys)} in all)"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
