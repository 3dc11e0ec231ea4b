"""Methods by name; a method's module is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from v2r_core.methods.method import Method

METHODS = {
    "moco": "v2r_core.methods.moco:Moco",
    "simclr": "v2r_core.methods.simclr:SimCLR",
    "simclrv2": "v2r_core.methods.simclrv2:SimCLRv2",
    "simclrv2-finetune": "v2r_core.methods.simclrv2:Finetune",
    "simclrv2-distill": "v2r_core.methods.simclrv2:Distill",
    "dino": "v2r_core.methods.dino:Dino",
    "dinov2": "v2r_core.methods.dinov2:DinoV2",
    "mae": "v2r_core.methods.mae:MAE",
    "ijepa": "v2r_core.methods.ijepa:IJepa",
    "vjepa": "v2r_core.methods.vjepa:VJepa",
    "vqgan": "v2r_core.methods.vqgan:VQGANMethod",
    "viper": "v2r_core.methods.viper:Viper",
    "diffusion-reward": "v2r_core.methods.diffusion_reward:DiffusionRewardMethod",
    "vip": "v2r_core.methods.vip:Vip",
    "time-rewarder": "v2r_core.methods.time_rewarder:TimeRewarder",
}


def load_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: no such method.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    loaded: type[Method] = getattr(importlib.import_module(module), attribute)
    return loaded
