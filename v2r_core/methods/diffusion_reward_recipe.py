"""Settings of Diffusion Reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from v2r_core.methods.method import Recipe
from v2r_core.nn.denoiser import DenoiserConfig
from v2r_core.nn.taming_vqgan import TamingConfig

CONDITION_FRAMES = 2
TOKENIZER_FIELDS = ("size", "channels", "residual_blocks", "attention_resolutions", "grid", "latent", "codes")
"""Settings that the tokenizer has too."""
DENOISER_FIELDS = ("codes", "grid", "width", "depth", "heads", "condition_width", "compat")


@dataclass(frozen=True, kw_only=True)
class DiffusionRewardRecipe(Recipe):
    """Settings of Diffusion Reward (section 4 and appendix).

    `compat`: with `official` the network sees its condition as a bag of codes, whose table is never trained, as in the
    released code; `paper` trains the table and tells the network frames and places. It decides what the likelihood
    reward is conditioned on, too, see `v2r_core.rewards.diffusion_reward`.

    Attributes:
        tokenizer: folder of a run of `vqgan` in the flavour of this paper, or a released `vqgan.pt`; its sizes must be
            those below.
        size: side of the frames in pixels.
        channels: of the tokenizer's stem and levels.
        residual_blocks: of each level.
        attention_resolutions: sides at which levels have attention.
        grid: side of the token grid.
        latent: channels of a code.
        codes: entries of the codebook.
        width: channels of the denoiser.
        depth: its blocks.
        heads: its attention heads.
        condition_width: channels of the condition.
        diffusion_steps: T.
        stride: frames of the video from one frame of a sample to the next.
        lr: learning rate of AdamW after the warm-up.
        warmup_steps: over which it rises from 0.
        betas: AdamW's.
        weight_decay: of all parameters.
        auxiliary_weight: of the direct loss on the predicted codes.
        ema: share of the old average that stays when it is moved.
        ema_every: steps from one move to the next.
        clip: largest norm of the gradient, in the first `clip_steps` steps.
        clip_steps: see `clip`.
        mode: which reward is exported.
        skip_step: steps left out between two calls of the exported reward's chain.
        samples: chains a frame of the exported reward.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)
    tokenizer: str = ""
    size: int = 64
    channels: tuple[int, ...] = (128, 128, 256, 256)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    grid: int = 8
    latent: int = 64
    codes: int = 1024
    width: int = 128
    depth: int = 16
    heads: int = 16
    condition_width: int = 1024
    diffusion_steps: int = 100
    stride: int = 1
    lr: float = 4.5e-4
    warmup_steps: int = 5000
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.045
    auxiliary_weight: float = 1e-3
    ema: float = 0.99
    ema_every: int = 25
    clip: float = 0.5
    clip_steps: int = 5000
    mode: Literal["entropy", "likelihood"] = "entropy"
    skip_step: int = 9
    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("diffusion_steps", "stride", "ema_every", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 expected")

    @classmethod
    def paper(cls) -> Self:
        """The released settings of MetaWorld and Adroit."""
        return cls(epochs=100, batch_size=4)

    @classmethod
    def tiny(cls) -> Self:
        """64 codes, four blocks of 64 channels, on a tokenizer of the preset `tiny-diffusion-reward`."""
        return cls(
            epochs=8,
            batch_size=16,
            # A small model tells most by how likely the frame is that came, given place and order of those before.
            compat="paper",
            mode="likelihood",
            stride=4,
            channels=(32, 32, 32, 64),
            residual_blocks=1,
            attention_resolutions=(),
            latent=16,
            codes=64,
            width=64,
            depth=4,
            heads=4,
            condition_width=64,
            lr=2e-3,
            warmup_steps=50,
            ema=0.99,
            ema_every=1,
            clip_steps=200,
        )

    def tokenizer_config(self) -> TamingConfig:
        """Sizes of the tokenizer."""
        return TamingConfig(**{name: getattr(self, name) for name in TOKENIZER_FIELDS})

    def denoiser_config(self) -> DenoiserConfig:
        """Sizes of the denoiser."""
        chosen = {name: getattr(self, name) for name in DENOISER_FIELDS}
        return DenoiserConfig(**chosen, frames=CONDITION_FRAMES, steps=self.diffusion_steps)
