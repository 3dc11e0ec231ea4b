"""Diffusion Reward (Huang et al., ECCV 2024): a diffusion over the codes of the next frame, given two frames before it.

Trained on videos of experts, it is sure of the next frame where things go as an expert would have them go. The reward
that follows from that is in `v2r_core.rewards.diffusion_reward`; frames become codes by a VQ-GAN that a run of method
`vqgan` has trained before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from v2r_core.encoders.checkpoints import CheckpointError, load_strict
from v2r_core.encoders.encoder import Encoder
from v2r_core.methods.diffusion_reward_recipe import (
    CONDITION_FRAMES,
    DENOISER_FIELDS,
    TOKENIZER_FIELDS,
    DiffusionRewardRecipe,
)
from v2r_core.methods.diffusion_reward_release import HEADS, load_released
from v2r_core.methods.method import Batch, Horizon, NetworkExport, RewardExport, Step
from v2r_core.methods.runs import method_of_run
from v2r_core.methods.tokenizer import CodesMethod, latent_encoder, split_rows
from v2r_core.nn.denoiser import DiffusionModel
from v2r_core.nn.denoiser_fold import FoldedDenoiser
from v2r_core.nn.discrete_diffusion import (
    bound_terms,
    draw_steps,
    noised_tokens,
    step_chances,
    update_history,
    weighted_losses,
)
from v2r_core.nn.distributed import gather
from v2r_core.nn.ema import ema_update
from v2r_core.nn.taming_vqgan import TamingVQGAN
from v2r_core.video.augment import whole_view
from v2r_core.video.clips import DataSpec

PICTURE_ROWS = 8


@dataclass(frozen=True)
class DiffusionNoise:
    """Mask sampler: uniform numbers in [0, 1) that steps and noised tokens are drawn by.

    Attributes:
        classes: K + 1.
        tokens: L.
    """

    classes: int
    tokens: int

    def __call__(self, batch: int, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`step_uniform` (N,) and `token_uniform` (N, K + 1, L)."""
        return {
            "step_uniform": torch.rand(batch, generator=generator),
            "token_uniform": torch.rand(batch, self.classes, self.tokens, generator=generator),
        }


class DiffusionRewardMethod(CodesMethod):
    """Trains the video model of Diffusion Reward.

    Args:
        recipe: the settings.
        horizon: how long the training is.
    """

    name = "diffusion-reward"
    recipe_type = DiffusionRewardRecipe
    model: DiffusionModel
    average: DiffusionModel

    def __init__(self, recipe: DiffusionRewardRecipe, horizon: Horizon) -> None:
        tokenizer = TamingVQGAN(recipe.tokenizer_config())
        super().__init__(recipe, horizon, tokenizer, DiffusionModel(recipe.denoiser_config()))
        self.recipe = recipe

    @staticmethod
    def data(recipe: DiffusionRewardRecipe) -> DataSpec:
        """Three whole frames: two that the third is predicted from."""
        noise = DiffusionNoise(recipe.codes + 1, recipe.grid**2)
        return DataSpec((whole_view(recipe.size),), CONDITION_FRAMES + 1, recipe.stride, masks=noise)

    def begin(self) -> None:
        """Reads the tokenizer.

        Raises:
            ValueError: `tokenizer` is empty, neither a run nor a released file, or has other sizes; they are named.
        """
        recipe = self.recipe
        if not recipe.tokenizer:
            raise ValueError(f"{self.name} needs the tokenizer of a run of vqgan; name its folder as tokenizer")
        source = Path(recipe.tokenizer).expanduser()
        found = load_released(source).tokenizer if source.is_file() else _tokenizer_of_run(source)
        for name in TOKENIZER_FIELDS:
            theirs, ours = getattr(found.config, name), getattr(recipe, name)
            if theirs != ours:
                raise ValueError(f"{source}: its {name} is {theirs}, the recipe's {ours}; set {name} to {theirs}")
        load_strict(self.tokenizer, found.state_dict(), str(source))

    def loss(self, batch: Batch, step: int) -> Step:
        """Bound of the next frame's log-likelihood at one step of the noise, and the auxiliary loss (section 4.1).

        Args:
            batch: `features`: three frames in order, float32 (N, 3, L + 1), as `token_rows` gives them; `step_uniform`
                (N,) and `token_uniform` (N, K + 1, L), see `DiffusionNoise`.
            step: not used.
        """
        codes, distances = split_rows(batch["features"])
        condition, x0 = codes[:, :CONDITION_FRAMES].flatten(1), codes[:, CONDITION_FRAMES]
        model, recipe = self.model, self.recipe
        table = step_chances(model.Lt_history, model.Lt_count)
        t = draw_steps(table, batch["step_uniform"])
        chances = table[t]
        tokens = noised_tokens(x0, t, model.schedule, recipe.codes, batch["token_uniform"])
        main, auxiliary = bound_terms(model(tokens, t, condition), x0, tokens, t, model.schedule)
        losses = weighted_losses(main, auxiliary, t, chances, recipe.diffusion_steps, recipe.auxiliary_weight)
        self._remember(t, main, distances)
        bound = (main.detach() / chances).mean() / x0.shape[1]
        return Step(losses.sum() / x0.numel(), {"bound_per_token": bound})

    @torch.no_grad()
    def _remember(self, t: Tensor, main: Tensor, distances: Tensor) -> None:
        if not self.training:
            return
        model = self.model
        history, visits = update_history(model.Lt_history, model.Lt_count, gather(t), gather(main))
        model.Lt_history.copy_(history)
        model.Lt_count.copy_(visits)
        self.distances.add(gather(distances))

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW on all that is trained."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        group = {"params": trained, "lr_scale": 1.0, "wd_scale": 1.0}
        return torch.optim.AdamW([group], lr=self.schedule(0)["lr"], betas=self.recipe.betas, fused=True)

    def schedule(self, step: int) -> dict[str, float]:
        """Linear warm-up, then constant; weight decay stays."""
        recipe = self.recipe
        lr = recipe.lr * min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
        return {"lr": lr, "weight_decay": recipe.weight_decay}

    def adjust_gradients(self, step: int) -> dict[str, float]:
        """Clips in the first steps, later only measures."""
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        limit = self.recipe.clip if step < self.recipe.clip_steps else float("inf")
        return {"grad_norm": float(nn.utils.clip_grad_norm_(trained, limit))}

    def after_step(self, step: int) -> None:
        """Moves the average, every `ema_every` steps."""
        if (step + 1) % self.recipe.ema_every == 0:
            ema_update(self.average, self.model, self.recipe.ema)

    @torch.no_grad()
    def picture(self, batch: Batch) -> NDArray[np.uint8]:
        """The condition, the next frame and the most likely one of each token, all as the tokenizer draws them.

        Args:
            batch: see `loss`.

        Returns:
            uint8 RGB, at most 8 rows of 4 frames.
        """
        codes, _ = split_rows(batch["features"][:PICTURE_ROWS])
        masks = torch.full_like(codes[:, 0], self.recipe.codes)
        t = torch.full_like(masks[:, 0], self.recipe.diffusion_steps - 1)
        likely = self.average(masks, t, codes[:, :CONDITION_FRAMES].flatten(1)).argmax(dim=1)
        shown = torch.cat([codes, likely[:, None]], dim=1)
        return self.draw_codes(shown)

    def encoder(self) -> Encoder:
        """Frames to latents before quantisation, (N, L Z), row-major, Z fastest."""
        return latent_encoder(self.tokenizer, "diffusion-reward-vqgan", "trained with Diffusion Reward")

    def reward_export(self) -> RewardExport:
        """The averaged denoiser, with tables for what depends on the condition only, and the codebook.

        The official likelihood looks at three frames, all others at two; the graph is for one of them.

        Raises:
            ValueError: not trained yet.
        """
        recipe, length = self.recipe, self.recipe.grid**2
        frames = 3 if recipe.mode == "likelihood" and recipe.compat == "official" else CONDITION_FRAMES
        device = self.tokenizer.codebook.device
        # Two rows: a graph that is traced with one may take it for a constant. The largest values that there are, since
        # the exporter's check of the graph draws below the examples'.
        largest = {
            "tokens": ((2, length), recipe.codes),
            "t": ((2,), recipe.diffusion_steps - 1),
            "condition": ((2, frames * length), recipe.codes - 1),
        }
        inputs = {name: torch.full(shape, value, device=device) for name, (shape, value) in largest.items()}
        return RewardExport(
            name="diffusion",
            parameters={
                "mode": recipe.mode,
                "compat": recipe.compat,
                "skip_step": recipe.skip_step,
                "samples": recipe.samples,
                "steps": recipe.diffusion_steps,
                "stride": recipe.stride,
            },
            networks={"denoiser": NetworkExport(FoldedDenoiser(self.average).eval(), inputs, "log_x0")},
            tensors=self.code_tensors(),
        )


def from_released(path: str | Path, heads: int = HEADS) -> DiffusionRewardMethod:
    """A released `best.pth` as a method that was trained: its encoder and reward can be exported.

    The file does not say how far its training frames are from their codes, so there is no threshold yet: give distances
    of expert frames, as `methods.tokenizer.token_rows` finds them, to `distances.add`.

    Args:
        path: the file.
        heads: attention heads of the denoiser.

    Raises:
        CheckpointError: not such a file, or one of the tokenizer alone.
    """
    released = load_released(path, heads)
    if released.model is None:
        raise CheckpointError(f"{path}: a tokenizer alone; give best.pth, which has the diffusion too")
    sizes = {name: getattr(released.tokenizer.config, name) for name in TOKENIZER_FIELDS}
    sizes |= {name: getattr(released.model.config, name) for name in DENOISER_FIELDS}
    recipe = DiffusionRewardRecipe(epochs=100, batch_size=4, diffusion_steps=released.model.config.steps, **sizes)
    method = DiffusionRewardMethod(recipe, Horizon(steps_per_epoch=1, epochs=100, batch_size=4, examples=4))
    load_strict(method.tokenizer, released.tokenizer.state_dict(), str(path))
    load_strict(method.model, released.model.state_dict(), str(path))
    load_strict(method.average, (released.average or released.model).state_dict(), str(path))
    return method


def _tokenizer_of_run(run: Path) -> TamingVQGAN:
    # Building it draws random numbers, on which this method's own weights must not depend.
    with torch.random.fork_rng(devices=[]):
        found = [module for module in method_of_run(run).modules() if isinstance(module, TamingVQGAN)]
    if len(found) != 1:
        raise CheckpointError(
            f"{run}: no tokenizer of this paper in it; give a run of vqgan in the flavour diffusion-reward"
        )
    return found[0]
