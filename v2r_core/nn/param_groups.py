"""Parameter groups with learning rates that fall towards the input (DINOv2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

_FIRST = ("cls_token", "register_tokens", "mask_token", "pos_embed", "patch_embed.")


@dataclass(frozen=True)
class ParameterRule:
    """How a parameter is optimised.

    Attributes:
        lr_scale: factor on the learning rate.
        wd_scale: factor on the weight decay, 0 or 1.
        last_layer: it belongs to the prototypes.
    """

    lr_scale: float
    wd_scale: float
    last_layer: bool


def layer_rules(network: nn.Module, decay: float, patch_embed_scale: float) -> dict[str, ParameterRule]:
    """The rule of each trainable parameter of a transformer or a head.

    Args:
        network: its blocks are `blocks.<i>`; a network without blocks has no layers.
        decay: factor on the learning rate from one block to the one below, and from the first to what is before it.
        patch_embed_scale: factor for the patch embedding besides.

    Returns:
        name to rule. Not decayed are biases, and names with "norm" or "gamma" in them; tokens and tables are.
    """
    names = [name for name, weight in network.named_parameters() if weight.requires_grad]
    blocks = {name: int(found[1]) for name in names if (found := re.match(r"blocks\.(\d+)\.", name))}
    above = max(blocks.values(), default=-1) + 2
    rules = {}
    for name in names:
        layer = 0 if name.startswith(_FIRST) else blocks.get(name, above - 1) + 1
        scale: float = decay ** (above - layer) * (patch_embed_scale if name.startswith("patch_embed.") else 1.0)
        plain = name.endswith(".bias") or "norm" in name or "gamma" in name
        rules[name] = ParameterRule(scale, 0.0 if plain else 1.0, "last_layer" in name)
    return rules


def layer_groups(network: nn.Module, decay: float, patch_embed_scale: float) -> list[dict[str, Any]]:
    """Groups for an optimizer, one for all parameters of the same rule; prototypes have the key `last_layer_lr`."""
    weights = dict(network.named_parameters())
    groups: dict[ParameterRule, dict[str, Any]] = {}
    for name, rule in layer_rules(network, decay, patch_embed_scale).items():
        fresh: dict[str, Any] = {"params": [], "lr_scale": rule.lr_scale, "wd_scale": rule.wd_scale}
        if rule.last_layer:
            fresh["lr_key"] = "last_layer_lr"
        groups.setdefault(rule, fresh)["params"].append(weights[name])
    return list(groups.values())
