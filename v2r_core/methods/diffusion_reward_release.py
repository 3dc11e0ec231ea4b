"""The released files of Diffusion Reward (tauhuang/diffusion_reward on the Hugging Face hub), loaded strictly.

* `vqgan.pt`: state dict of the VQ-GAN.
* `best.pth`: `model`, the VQ-GAN below `content_codec.model.` and the diffusion below `transformer.`; `ema`, the moving
  average of the diffusion; and what the training goes on with, which is not read.

Files are opened with `weights_only=True`. Sizes are read from the shapes; what shapes do not tell is as released: two
residual blocks a level, attention at 16 x 16, 16 heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from v2r_core.encoders.checkpoints import CheckpointError, load_strict, read_checkpoint
from v2r_core.methods.classifier import entries_below
from v2r_core.nn.denoiser import DenoiserConfig, DiffusionModel
from v2r_core.nn.taming_vqgan import RELEASED_CODEBOOK, TamingConfig, TamingVQGAN

CODEC = "content_codec.model."
DIFFUSION = "transformer."
HEADS = 16

_CONDITION = "condition_emb.emb.weight"
_STEM = "encoder.model.0.weight"
_FIRST_LEVELS = ("encoder.model.1.block.2.weight", "encoder.model.4.block.2.weight", "encoder.model.7.block.2.weight")
_SIZE = 64


@dataclass(frozen=True)
class Released:
    """What a released file holds.

    Attributes:
        tokenizer: the VQ-GAN.
        model: the diffusion, None in `vqgan.pt`.
        average: its moving average, which the released code rewards with; None where the file has none.
    """

    tokenizer: TamingVQGAN
    model: DiffusionModel | None = None
    average: DiffusionModel | None = None


def load_released(path: str | Path, heads: int = HEADS) -> Released:
    """Loads `vqgan.pt` or `best.pth`; all networks are in evaluation mode.

    Args:
        path: the file.
        heads: attention heads of the diffusion.

    Raises:
        CheckpointError: not such a file; a key is missing or left over, or has another shape; keys are named.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; give vqgan.pt or best.pth as released")
    if _is_tokenizer(content):
        return Released(_tokenizer(content, str(path)))
    state = content.get("model")
    if not isinstance(state, dict):
        found = ", ".join(str(key) for key in list(content)[:4])
        raise CheckpointError(
            f"{path}: neither a VQ-GAN nor a file with an entry 'model', found {found}; give vqgan.pt or best.pth"
        )
    if foreign := [key for key in state if not str(key).startswith((CODEC, DIFFUSION))]:
        raise CheckpointError(
            f"{path}: keys of 'model' must start with {CODEC} or {DIFFUSION}, found {', '.join(foreign[:4])}"
        )
    where = f"{path}, entry 'model'"
    tokenizer = _tokenizer(entries_below(state, CODEC, ""), where)
    model = _diffusion(entries_below(state, DIFFUSION, ""), heads, where)
    average = None
    if "ema" in content:
        entry = content["ema"]
        # The average is kept with or without the prefix of the whole model.
        whole = f"{DIFFUSION}{_CONDITION}" in entry
        average = _diffusion(entries_below(entry, DIFFUSION, "") if whole else entry, heads, f"{path}, entry 'ema'")
    return Released(tokenizer, model, average)


def _is_tokenizer(content: Mapping[str, Any]) -> bool:
    return any(str(key).startswith(("encoder.model.", "codebook.")) for key in content)


def _tokenizer(state: Mapping[str, Tensor], where: str) -> TamingVQGAN:
    codes, latent = _shape(state, RELEASED_CODEBOOK, 2, where)
    channels = [_shape(state, key, 4, where)[0] for key in (_STEM, *_FIRST_LEVELS)]
    config = TamingConfig(size=_SIZE, channels=tuple(channels), latent=latent, codes=codes)
    network = TamingVQGAN(config)
    load_strict(network, state, where)
    return network.eval()


def _diffusion(state: Mapping[str, Tensor], heads: int, where: str) -> DiffusionModel:
    codes, condition_width = _shape(state, _CONDITION, 2, where)
    width = _shape(state, "transformer.content_emb.emb.weight", 2, where)[1]
    grid = _shape(state, "transformer.content_emb.height_emb.weight", 2, where)[0]
    steps = _shape(state, "log_at", 1, where)[0]
    numbers = {int(found[1]) for key in state if (found := re.match(r"transformer\.blocks\.(\d+)\.", key))}
    if width % heads:
        raise CheckpointError(f"{where}: width {width} is no multiple of {heads} heads; give the number it has")
    config = DenoiserConfig(
        codes=codes,
        grid=grid,
        width=width,
        depth=max(len(numbers), 1),
        heads=heads,
        condition_width=condition_width,
        steps=steps,
    )
    network = DiffusionModel(config)
    load_strict(network, state, where)
    return network.eval()


def _shape(state: Mapping[str, Tensor], key: str, axes: int, where: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{where}: missing {key}; give vqgan.pt or best.pth as released")
    tensor = state[key]
    if not isinstance(tensor, Tensor) or tensor.ndim != axes:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise CheckpointError(f"{where}: {key} is {found}, a tensor of {axes} axes expected")
    return tuple(tensor.shape)
