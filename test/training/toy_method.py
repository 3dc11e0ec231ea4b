"""A method that trains in milliseconds: two views, a target network, dropout, and a queue-like buffer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.nn.ema import copy_for_ema, ema_update
from v2r_core.video.augment import View
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(Recipe):
    """Settings of the toy.

    Attributes:
        lr: learning rate.
        poison_step: step in which the loss is made NaN; -1 for never.
        kill_step: step in which the process kills itself; -1 for never.
    """

    lr: float = 0.05
    poison_step: int = -1
    kill_step: int = -1

    @classmethod
    def paper(cls) -> ToyRecipe:
        return cls(epochs=2, batch_size=8)

    @classmethod
    def tiny(cls) -> ToyRecipe:
        return cls(epochs=2, batch_size=4)


def draw_noise(batch: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"noise": torch.rand(batch, 4, generator=generator)}


class Toy(Method):
    name = "toy"
    recipe_type = ToyRecipe

    def __init__(self, recipe: ToyRecipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.online = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 4))
        self.target = copy_for_ema(self.online)
        self.register_buffer("memory", torch.zeros(4))

    @staticmethod
    def data(recipe: Any) -> DataSpec:
        return DataSpec(views=(View(size=16), View(size=16)), masks=draw_noise)

    def loss(self, batch: Batch, step: int) -> Step:
        if step == self.recipe.kill_step:
            os.kill(os.getpid(), 9)
        first, second = batch["views"]
        features = self.online(first)
        with torch.no_grad():
            goal = self.target(second) + batch["noise"] + self.memory
            self.memory.mul_(0.9).add_(features.detach().mean(dim=0), alpha=0.1)
        loss = (features - goal).square().mean()
        if step == self.recipe.poison_step:
            loss = loss * float("nan")
        return Step(loss, {"spread": features.detach().std()}, features.detach())

    def after_step(self, step: int) -> None:
        ema_update(self.target, self.online, 0.9)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.online.parameters())

    def schedule(self, step: int) -> dict[str, float]:
        return {"lr": self.recipe.lr * (1 - step / self.horizon.steps), "weight_decay": 0.01}

    def encoder(self) -> Encoder:
        return Encoder("toy", self.target, Preprocess(16, "squash", 18), 4, WeightsInfo("toy", "none")).eval()
