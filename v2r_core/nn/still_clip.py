"""A transformer of clips, used on single images."""

from __future__ import annotations

import dataclasses

import torch

from v2r_core.nn.vit import VisionTransformer


@torch.no_grad()
def still_clip(transformer: VisionTransformer) -> VisionTransformer:
    """The transformer of images that equals a transformer of clips on `tubelet` copies of the image.

    All frames of a tubelet are the same, so the kernel of the patch embedding can be summed over time: a convolution in
    two dimensions is left, which costs half as much and is a graph that a robot can run. The patches have the positions
    of the first time step. (V-JEPA's evaluation on images repeats the image over the whole clip instead: eight times
    the tokens.)

    Args:
        transformer: V-JEPA's encoder, or V-JEPA 2's.

    Returns:
        A copy with `config.frames` 1, in the same mode and on the same device.

    Raises:
        ValueError: it takes images already.
    """
    config = transformer.config
    if config.frames == 1:
        raise ValueError("the transformer takes images already; a transformer of clips expected")
    with torch.device("meta"):
        flat = VisionTransformer(dataclasses.replace(config, frames=1, tubelet=1))
    state = dict(transformer.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=2)
    if config.positions != "rotary":
        patches = config.grid[1] * config.grid[2]
        state["pos_embed"] = state["pos_embed"][:, :patches]
    flat.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    return flat.train(transformer.training)
