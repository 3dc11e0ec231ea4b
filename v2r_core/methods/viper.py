"""VIPER (Escontrela et al., NeurIPS 2023): the likelihood of a video under a model of expert videos, as a reward.

    L = -mean log p(token | tokens before, class)

Frames are codes of a VQ-GAN that `vqgan` has trained before, and stays as it is; the model is a transformer over all
tokens of a window of frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from v2r_core.encoders.checkpoints import load_strict, read_run_state
from v2r_core.encoders.encoder import Encoder
from v2r_core.methods.method import Batch, Horizon, NetworkExport, Recipe, RewardExport, Step
from v2r_core.methods.runs import read_run, recipe_of
from v2r_core.methods.tokenizer import CodesMethod, latent_encoder, split_rows
from v2r_core.methods.vqgan import VQGANRecipe, build_tokenizer
from v2r_core.nn.ema import ema_update
from v2r_core.nn.video_gpt import Likelihood, VideoGPT, VideoGPTConfig, token_log_probs
from v2r_core.nn.vqgan import VQGAN
from v2r_core.video.augment import whole_view
from v2r_core.video.clips import DataSpec

PICTURE_ROWS = 4
_TOKENIZER = "tokenizer."


@dataclass(frozen=True, kw_only=True)
class ViperRecipe(Recipe):
    """Settings of VIPER (section 4 and appendix on training).

    `compat`: `official` exports the reward of the released code, the likelihood of the whole window, and decays all
    weights, as its AdamW does; `paper` exports that of the newest frame given those before it (section 3.2), and
    decays none: the settings name Adam.

    Attributes:
        tokenizer: folder of a run of `vqgan`, of any flavour, which must stay where it is.
        classes: that the model is conditioned on: the labels of the videos; 0 for none.
        frames: of a window.
        stride: frames of the video from one of them to the next.
        width: channels of the transformer.
        heads: of its attention.
        layers: its blocks.
        mlp: channels of a block's hidden layer.
        dropout: of what attention and MLP add.
        lr: learning rate of AdamW, constant.
        weight_decay: of all parameters; that which optax has by default.
        ema: share of the old average that stays; in step n no more than (1 + n) / (10 + n), so that short trainings
            have an average too. The release has no such limit; after some 90000 steps it makes no difference.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)
    tokenizer: str = ""
    classes: int = 0
    frames: int = 16
    stride: int = 1
    width: int = 256
    heads: int = 8
    layers: int = 8
    mlp: int = 1024
    dropout: float = 0.1
    lr: float = 1e-4
    weight_decay: float = 1e-4
    ema: float = 0.9999

    @classmethod
    def paper(cls) -> Self:
        """DeepMind Control: 16 tasks, windows of 16 frames; 800,000 steps in the released settings."""
        return cls(epochs=100, batch_size=64, classes=16)

    @classmethod
    def paper_atari(cls) -> Self:
        """Atari: windows of 4 frames, each the fourth, for a tokenizer of the preset `paper-atari`."""
        return cls(epochs=100, batch_size=32, frames=4, stride=4, width=512, mlp=2048)

    @classmethod
    def tiny(cls) -> Self:
        """Windows of 4 frames, two blocks, for a tokenizer of the preset `tiny`."""
        return cls(
            epochs=20,
            batch_size=16,
            frames=4,
            stride=2,
            width=96,
            heads=4,
            layers=2,
            mlp=384,
            dropout=0.0,
            lr=1e-3,
            ema=0.999,
        )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """The paper's two domains, and a small one."""
        return {"paper": cls.paper(), "paper-atari": cls.paper_atari(), "tiny": cls.tiny()}


class Viper(CodesMethod):
    """Trains the video model of VIPER.

    Args:
        recipe: the settings.
        horizon: how long the training is.

    Raises:
        ValueError: `tokenizer` is empty, or not a run of `vqgan`.
    """

    name = "viper"
    recipe_type = ViperRecipe
    labels = "optional"
    model: VideoGPT
    average: VideoGPT

    def __init__(self, recipe: ViperRecipe, horizon: Horizon) -> None:
        tokenizer = _fresh_tokenizer(recipe.tokenizer)
        super().__init__(recipe, horizon, tokenizer, VideoGPT(_config(recipe, tokenizer)))
        self.recipe = recipe

    @staticmethod
    def data(recipe: ViperRecipe) -> DataSpec:
        """Windows of whole frames, which come as codes; the size of the view is that of the tokenizer."""
        size = _tokenizer_recipe(recipe.tokenizer).size if recipe.tokenizer else VQGANRecipe.paper().size
        return DataSpec((whole_view(size),), recipe.frames, recipe.stride)

    def begin(self) -> None:
        """Reads the tokenizer's weights.

        Raises:
            CheckpointError: the run has no checkpoint.
        """
        state = read_run_state(Path(self.recipe.tokenizer).expanduser())
        kept = {key.removeprefix(_TOKENIZER): value for key, value in state.items() if key.startswith(_TOKENIZER)}
        load_strict(self.tokenizer, kept, self.recipe.tokenizer)

    def loss(self, batch: Batch, step: int) -> Step:
        """Mean negative log-likelihood of a token, in nats.

        Args:
            batch: `features`: windows, float32 (N, T, L + 1), as `frozen` gives them; with classes `labels`, int64
                (N,), -1 where there is none: the layer norms then have scale 1 and bias 0.
            step: not used.

        Raises:
            ValueError: classes without labels, labels without classes, or a label beyond them.
        """
        codes, distances = split_rows(batch["features"])
        labels = self._labels(batch)
        logits = self.model(functional.embedding(codes, self.tokenizer.codebook), labels)
        loss = -token_log_probs(logits, codes).mean()
        if self.training:
            self.distances.add(distances)
        metrics = {
            "accuracy": (logits.argmax(dim=-1) == codes).float().mean(),
            "nats_per_frame": loss.detach() * codes.shape[-1],
        }
        return Step(loss, metrics)

    def _labels(self, batch: Batch) -> Tensor | None:
        classes, labels = self.recipe.classes, batch.get("labels")
        if (labels is not None) != bool(classes):
            raise ValueError(
                f"{self.name}: classes is {classes}, and labels are {'missing' if labels is None else 'given'}; "
                "give labels and their number, or neither"
            )
        if labels is not None and int(labels.max()) >= classes:
            raise ValueError(f"{self.name}: label {int(labels.max())} with {classes} classes; raise classes")
        return labels

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW on all that is trained."""
        group = {"params": list(self.model.parameters()), "lr_scale": 1.0, "wd_scale": 1.0}
        return torch.optim.AdamW([group], lr=self.recipe.lr, fused=True)

    def schedule(self, step: int) -> dict[str, float]:
        """Nothing changes with time."""
        decay = self.recipe.weight_decay if self.recipe.compat == "official" else 0.0
        return {"lr": self.recipe.lr, "weight_decay": decay}

    def after_step(self, step: int) -> None:
        """Moves the average."""
        ema_update(self.average, self.model, min(self.recipe.ema, (1 + step) / (10 + step)))

    @torch.no_grad()
    def picture(self, batch: Batch) -> NDArray[np.uint8]:
        """Windows as the tokenizer draws them, each over the most likely token at every place, given those before it.

        Args:
            batch: see `loss`.

        Returns:
            uint8 RGB (2 S * windows, S * T, 3), at most 4 windows.
        """
        codes, _ = split_rows(batch["features"][:PICTURE_ROWS])
        labels = self._labels(batch)
        chosen = None if labels is None else labels[:PICTURE_ROWS]
        likely = self.average(functional.embedding(codes, self.tokenizer.codebook), chosen).argmax(dim=-1)
        rows = torch.stack([codes, likely], dim=1).flatten(0, 1)
        return self.draw_codes(rows)

    def encoder(self) -> Encoder:
        """Frames to latents before quantisation, (N, h * w * z), row-major, z fastest."""
        return latent_encoder(self.tokenizer, "viper-vqgan", "trained with VIPER")

    def reward_export(self) -> RewardExport:
        """The averaged transformer with its code table, which the host quantises with, too.

        Raises:
            ValueError: not trained yet.
        """
        recipe, device = self.recipe, self.tokenizer.codebook.device
        # Two rows: a graph that is traced with one may take it for a constant. Every code is among them.
        shape = (2, recipe.frames, self.tokenizer.grid**2)
        codes = torch.arange(math.prod(shape), device=device).reshape(shape) % len(self.tokenizer.codebook)
        inputs = {"codes": codes}
        if recipe.classes:
            inputs["label"] = torch.tensor([0, recipe.classes - 1], device=device)
        codebook = self.tokenizer.codebook.detach()
        return RewardExport(
            name=self.name,
            parameters={
                "frames": recipe.frames,
                "stride": recipe.stride,
                "mode": "joint" if recipe.compat == "official" else "conditional",
                "classes": recipe.classes,
            },
            networks={"likelihood": NetworkExport(Likelihood(self.average, codebook).eval(), inputs, "log_prob")},
            tensors=self.code_tensors(),
        )


def _tokenizer_recipe(run: str) -> VQGANRecipe:
    if not run:
        raise ValueError("viper needs the tokenizer of a run of vqgan; name its folder as tokenizer")
    recipe = recipe_of(read_run(run), run)
    if not isinstance(recipe, VQGANRecipe):
        raise ValueError(f"{run}: a run with a {type(recipe).__name__}; give a run of vqgan as tokenizer")
    return recipe


def _fresh_tokenizer(run: str) -> VQGAN:
    recipe = _tokenizer_recipe(run)
    # Building it draws random numbers, on which this method's own weights must not depend.
    with torch.random.fork_rng(devices=[]):
        return build_tokenizer(recipe)


def _config(recipe: ViperRecipe, tokenizer: VQGAN) -> VideoGPTConfig:
    names = ("frames", "classes", "width", "heads", "layers", "mlp", "dropout")
    codes, dim = tokenizer.codebook.shape
    chosen = {name: getattr(recipe, name) for name in names}
    return VideoGPTConfig(grid=tokenizer.grid, codes=codes, code_dim=dim, **chosen)
