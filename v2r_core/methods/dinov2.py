"""DINOv2 (Oquab et al. 2023): DINO for crops, iBOT for masked patches, KoLeo for spread.

The student sees the two global crops with some patches masked, and the local crops; the teacher, its moving average,
sees the whole global crops. One loss compares class tokens of different crops, another one masked patches with the same
patches unmasked.

Two ways to begin with weights instead of noise, each a run of its own:

* `init_from`: a released backbone. Heads were never released, so that fresh ones first learn alone
  (`head_warmup_epochs`), and the backbone then warms up behind them, at `backbone_lr_scale` of the learning rate.
* `continue_from`: the weights of an earlier run, averages, heads and centres included, at another `size` if wanted.
  This is the paper's short phase at high resolution in the end (section 5, "Adapting the resolution"): the views of a
  run have one size, so that the phase is a second run, with all schedules compressed into it.

The settings are in `dinov2_recipe.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from v2r_core.encoders.checkpoints import load_strict, read_checkpoint, read_run_state
from v2r_core.encoders.encoder import Encoder, WeightsInfo
from v2r_core.methods.dinov2_recipe import DinoV2Recipe
from v2r_core.methods.method import Batch, Horizon, Method, Step
from v2r_core.nn.block_masking import BlockMasking
from v2r_core.nn.dino_head import DinoHead
from v2r_core.nn.dino_losses import (
    centred_probabilities,
    crossed_entropy,
    ibot_loss,
    koleo_loss,
    moved_center,
    sinkhorn_knopp,
    soft_cross_entropy,
)
from v2r_core.nn.ema import copy_for_ema, ema_update
from v2r_core.nn.param_groups import layer_groups
from v2r_core.nn.schedules import table_value, warmup_cosine_table
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture, with_table_for
from v2r_core.video.augment import dinov2_views
from v2r_core.video.clips import DataSpec
from v2r_core.video.resize import Preprocess

WATCHED_ROWS = 64
"""Teacher rows of a batch that are handed out to be watched for collapse."""
_REFERENCE_BATCH = 1024


class DinoV2Network(nn.Module):
    """A transformer, a head for class tokens, and one for patches if they do not share it: student or teacher."""

    def __init__(self, recipe: DinoV2Recipe) -> None:
        super().__init__()
        config = ViTConfig(
            size=recipe.size,
            patch=recipe.patch,
            registers=recipe.registers,
            resampling="antialias" if recipe.registers else "offset",
            layer_scale=recipe.layer_scale,
            swiglu=recipe.swiglu,
            drop_path=recipe.drop_path,
            drop_path_uniform=True,
            mask_token=True,
            pool=recipe.pool,
            **architecture(recipe.architecture),
        )
        self.backbone = VisionTransformer(config)
        shape = (config.width, recipe.prototypes, recipe.head_hidden, recipe.head_bottleneck)
        self.dino_head = DinoHead(*shape)
        self.ibot_head = DinoHead(*shape) if recipe.separate_heads else None

    def heads(self, features: list[Tensor], patches: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features (N_i, D) of class tokens and of patches (n, D) to logits (N_i, K) and (n, K)."""
        if self.ibot_head is not None:
            return list(self.dino_head.parts(features)), self.ibot_head(patches)
        *logits, of_patches = self.dino_head.parts([*features, patches])
        return logits, of_patches


class DinoV2(Method):
    """DINOv2. Networks have the names of the released training checkpoints.

    Args:
        recipe: the settings.
        horizon: how long the training is.

    Raises:
        ValueError: no such architecture, or warm-ups that are longer than the training.
    """

    name = "dinov2"
    recipe_type = DinoV2Recipe
    dino_center: Tensor
    ibot_center: Tensor

    def __init__(self, recipe: DinoV2Recipe, horizon: Horizon) -> None:
        super().__init__(recipe, horizon)
        self.recipe = recipe
        self.student = DinoV2Network(recipe)
        self.teacher = copy_for_ema(self.student).eval()
        self.register_buffer("dino_center", torch.zeros(1, recipe.prototypes))
        self.register_buffer("ibot_center", torch.zeros(1, recipe.prototypes))
        per_epoch, steps = horizon.steps_per_epoch, horizon.steps
        peak = recipe.base_lr * math.sqrt(horizon.batch_size / _REFERENCE_BATCH)
        alone, warmup = recipe.head_warmup_epochs * per_epoch, recipe.warmup_epochs * per_epoch
        self._lr = warmup_cosine_table(peak, recipe.min_lr, steps, warmup)
        self._backbone_lr = recipe.backbone_lr_scale * np.concatenate(
            [np.zeros(min(alone, steps)), warmup_cosine_table(peak, recipe.min_lr, steps - alone, warmup)]
        )
        self._weight_decay = warmup_cosine_table(recipe.weight_decay, recipe.final_weight_decay, steps)
        self._momentum = warmup_cosine_table(recipe.momentum, 1.0, steps)
        warm = recipe.teacher_warmup_epochs * per_epoch
        self._temperature = warmup_cosine_table(
            recipe.teacher_temperature, recipe.teacher_temperature, warm, warm, recipe.teacher_temperature_start
        )

    @staticmethod
    def data(recipe: DinoV2Recipe) -> DataSpec:
        """Two global crops and their masks, then the local crops."""
        views = dinov2_views(
            recipe.size,
            recipe.local_size,
            recipe.local_count,
            recipe.global_scale,
            recipe.local_scale,
            "released" if recipe.compat == "official" else "published",
        )
        side = recipe.size // recipe.patch
        masks = BlockMasking((side, side), recipe.mask_ratio, recipe.mask_probability)
        return DataSpec(views=tuple(dataclasses.replace(view, flip=recipe.flip) for view in views), masks=masks)

    def train(self, mode: bool = True) -> Self:
        """The teacher stays in evaluation mode: no stochastic depth."""
        super().train(mode)
        self.teacher.eval()
        return self

    def begin(self) -> None:
        """Reads the weights that the recipe names.

        Raises:
            CheckpointError: no such file, or one of another network; the keys are named.
        """
        recipe = self.recipe
        if recipe.init_from:
            state = read_checkpoint(recipe.init_from)
            backbone = self.student.backbone
            load_strict(backbone, with_table_for(backbone, state, "pos_embed"), f"{recipe.init_from} (dinov2)")
            self.teacher.load_state_dict(self.student.state_dict())
        if recipe.continue_from:
            state = read_run_state(recipe.continue_from)
            for name in ("student.backbone.pos_embed", "teacher.backbone.pos_embed"):
                state = with_table_for(self.student.backbone, state, name)
            load_strict(self, state, f"{recipe.continue_from} (dinov2)")

    def loss(self, batch: Batch, step: int) -> Step:
        """The three losses.

        Args:
            batch: `views`: two global crops (N, 3, S, S), then local ones (N, 3, s, s); `mask`, `mask_indices` and
                `mask_weights` of the global crops, crop by crop, see `v2r_core.nn.block_masking.collate`.
            step: the optimizer step.
        """
        recipe, temperature = self.recipe, self.schedule(step)["teacher_temperature"]
        images, where = torch.cat(batch["views"][:2]), batch["mask_indices"]
        count = recipe.local_count
        crops, patches = self._teach(images, where, temperature)
        seen, masked = self._features(self.student, images, batch["mask"], where)
        features = [seen]
        if count:
            features.append(self.student.backbone.class_tokens(torch.cat(batch["views"][2:])))
        (answers, *local), of_patches = self.student.heads(features, masked)
        # Each global crop answers what the teacher says about the other one.
        swapped = torch.cat(crops.chunk(2)[::-1])
        terms = 2 * soft_cross_entropy(answers, swapped, recipe.student_temperature).mean()
        if local:
            by_crop = local[0].unflatten(0, (count, -1))
            terms = terms + crossed_entropy(by_crop, crops.unflatten(0, (2, -1)), recipe.student_temperature)
        dino = terms / (2 + 2 * count)
        ibot = ibot_loss(of_patches, patches, batch["mask_weights"], len(images), recipe.student_temperature)
        loss = recipe.dino_weight * dino + recipe.ibot_weight * ibot
        metrics = {"dino_loss": dino.detach(), "ibot_loss": ibot.detach()}
        if recipe.koleo_weight:
            # The two crops of an image must not be driven apart, so that each has its own neighbours.
            koleo = torch.stack([koleo_loss(chunk) for chunk in seen.chunk(2)]).sum()
            loss = loss + recipe.koleo_weight * koleo
            metrics["koleo_loss"] = koleo.detach()
        return Step(loss, metrics, seen.detach(), crops[:WATCHED_ROWS])

    @torch.no_grad()
    def _teach(self, images: Tensor, where: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Probabilities of whole images (2 N, K) and of the patches that the student does not see (n, K)."""
        recipe = self.recipe
        seen, hidden = self._features(self.teacher, images, None, where)
        (crops,), patches = self.teacher.heads([seen], hidden)
        if recipe.centering == "sinkhorn":
            return sinkhorn_knopp(crops, temperature), sinkhorn_knopp(patches, temperature)
        told = tuple(
            centred_probabilities(logits, center, temperature)
            for logits, center in ((crops, self.dino_center), (patches, self.ibot_center))
        )
        self.dino_center.copy_(moved_center(self.dino_center, crops, recipe.center_momentum))
        self.ibot_center.copy_(moved_center(self.ibot_center, patches, recipe.center_momentum))
        return told[0], told[1]

    def _features(
        self, network: DinoV2Network, images: Tensor, mask: Tensor | None, where: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class tokens (2 N, D) and the patches (n, D) at flat indices."""
        tokens = network.backbone.tokens(images, mask=mask)
        patches = tokens[:, network.backbone.config.prefix :]
        return tokens[:, 0], patches.flatten(0, 1)[where]

    def adjust_gradients(self, step: int) -> dict[str, float]:
        """Clips backbone and heads, each for itself."""
        limit = self.recipe.clip or float("inf")
        return {
            f"grad_norm_{name}": float(nn.utils.clip_grad_norm_(part.parameters(), limit))
            for name, part in self.student.named_children()
        }

    def after_step(self, step: int) -> None:
        """The teacher follows the student, heads and all."""
        ema_update(self.teacher, self.student, float(self._momentum[step]))

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with layer-wise rates."""
        recipe = self.recipe
        groups: list[dict[str, object]] = []
        for name, part in self.student.named_children():
            for group in layer_groups(part, recipe.layer_decay, recipe.patch_embed_scale):
                if name == "backbone":
                    group["lr_key"] = "backbone_lr"
                groups.append(group)
        return torch.optim.AdamW(groups, lr=self.schedule(0)["lr"], fused=True)

    def schedule(self, step: int) -> dict[str, float]:
        """All by step. `lr` is that of the heads, `last_layer_lr` of their prototypes."""
        lr = float(self._lr[step])
        frozen = step < self.recipe.freeze_last_layer * self.horizon.steps_per_epoch
        return {
            "lr": lr,
            "last_layer_lr": 0.0 if frozen else lr,
            "backbone_lr": float(self._backbone_lr[step]),
            "weight_decay": float(self._weight_decay[step]),
            "momentum": float(self._momentum[step]),
            "teacher_temperature": table_value(self._temperature, step, self.recipe.teacher_temperature),
        }

    def encoder(self) -> Encoder:
        """The teacher's backbone."""
        recipe, backbone = self.recipe, self.teacher.backbone
        view = self.data(recipe).views[0]
        preprocess = Preprocess(recipe.size, "squash", round(recipe.size * 256 / 224), view.mean, view.std)
        info = WeightsInfo(source="trained with DINOv2", license="as its training videos allow")
        return Encoder(f"dinov2-{recipe.architecture}", backbone, preprocess, backbone.embedding_dim, info).eval()
