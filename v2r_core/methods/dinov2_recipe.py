"""DINOv2's settings: the released configurations, how to go on from released weights, and a small one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from v2r_core.methods.method import Recipe


@dataclass(frozen=True, kw_only=True)
class DinoV2Recipe(Recipe):
    """Settings of DINOv2 (table 16 and the released configurations).

    An epoch is a pass over the data; the released code counts 1250 steps as an epoch, whatever the data.

    `compat`: the released code inverts the probabilities of blurring, so that the first global crop is never blurred;
    `paper` blurs as published.

    Attributes:
        architecture: a name of `v2r_core.nn.vit.ARCHITECTURES`.
        patch: side of a patch in pixels.
        size: side of a global crop in pixels.
        local_size: side of a local crop in pixels.
        local_count: local crops of a frame; 0 for none.
        global_scale: parts of the frame's area that global crops show.
        local_scale: parts of the frame's area that local crops show.
        flip: probability of mirroring a crop.
        pool: what the encoder gives in the end: the `cls` token or the `mean` of the patches.
        registers: register tokens.
        swiglu: SwiGLU instead of the GELU MLP.
        layer_scale: initial value of LayerScale.
        drop_path: stochastic depth of all of the student's blocks, on a random part of the batch.
        prototypes: outputs K of a head.
        head_hidden: hidden channels of a head.
        head_bottleneck: channels before the prototypes.
        separate_heads: patches have a head of their own.
        mask_ratio: least and largest part of a masked crop's patches.
        mask_probability: part of the global crops that is masked.
        centering: of the teacher: `center`, a moving average, or `sinkhorn`, equal use within the batch.
        dino_weight: of the loss between crops.
        ibot_weight: of the loss of masked patches.
        koleo_weight: of the regulariser; 0 for none.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's logits after its warm-up.
        teacher_temperature_start: divides them at first.
        teacher_warmup_epochs: epochs of a linear warm-up of the teacher's temperature.
        center_momentum: of the centers.
        momentum: of the teacher at first; it rises to 1 along a cosine.
        base_lr: learning rate at batch size 1024; it goes with the square root of the batch size.
        min_lr: learning rate at the end.
        warmup_epochs: of the learning rate.
        layer_decay: factor on the learning rate from one block to the one below.
        patch_embed_scale: factor on the learning rate of the patch embedding besides.
        weight_decay: at first; biases, norms and LayerScale are not decayed.
        final_weight_decay: at the end of a cosine.
        clip: largest norm of the gradient of backbone and of each head; 0 for no limit.
        freeze_last_layer: epochs in which the prototypes have learning rate 0.
        init_from: file of a released DINOv2 backbone to begin with; empty for none.
        continue_from: folder of an earlier run of this method to begin with, or its `method.safetensors`; empty for
            none.
        head_warmup_epochs: epochs at first in which only the heads learn.
        backbone_lr_scale: factor on the backbone's learning rate.
    """

    architecture: str = "large"
    patch: int = 16
    size: int = 224
    local_size: int = 96
    local_count: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    flip: float = 0.5
    pool: Literal["cls", "mean"] = "cls"
    registers: int = 0
    swiglu: bool = False
    layer_scale: float = 1e-5
    drop_path: float = 0.3
    prototypes: int = 65536
    head_hidden: int = 2048
    head_bottleneck: int = 256
    separate_heads: bool = False
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    mask_probability: float = 0.5
    centering: Literal["center", "sinkhorn"] = "center"
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    teacher_temperature_start: float = 0.04
    teacher_warmup_epochs: int = 30
    center_momentum: float = 0.9
    momentum: float = 0.992
    base_lr: float = 4e-3
    min_lr: float = 1e-6
    warmup_epochs: int = 10
    layer_decay: float = 0.9
    patch_embed_scale: float = 0.2
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    clip: float = 3.0
    freeze_last_layer: int = 1
    paths: ClassVar[tuple[str, ...]] = ("init_from", "continue_from")
    init_from: str = ""
    continue_from: str = ""
    head_warmup_epochs: int = 0
    backbone_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, a number above 0 expected")
        if self.size % self.patch or self.local_size % self.patch:
            raise ValueError(
                f"crops of {self.size} and {self.local_size} pixels are no multiples of the patch, {self.patch}"
            )
        if self.init_from and self.continue_from:
            raise ValueError("init_from and continue_from are both given; a run begins with one of them")

    @classmethod
    def paper(cls, setting: Literal["short", "long"] = "short") -> Self:
        """The released configurations.

        Args:
            setting: `short`: ViT-L/16, made for ImageNet-1k. `long`: ViT-L/14, made for the paper's large data:
                Sinkhorn-Knopp, heads apart, twice the prototypes, SwiGLU, no layer-wise decay.
        """
        if setting == "short":
            return cls(epochs=100, batch_size=2048, precision="fp16")
        return cls(
            epochs=500,
            batch_size=3072,
            precision="fp16",
            patch=14,
            local_size=98,
            swiglu=True,
            drop_path=0.4,
            prototypes=131072,
            head_bottleneck=384,
            separate_heads=True,
            centering="sinkhorn",
            momentum=0.994,
            base_lr=2e-4,
            warmup_epochs=80,
            layer_decay=1.0,
            final_weight_decay=0.2,
        )

    @classmethod
    def high_resolution(cls) -> Self:
        """The last phase of the long setting, 518 pixels; give the run before it as `continue_from`."""
        return dataclasses.replace(
            cls.paper("long"), epochs=10, size=518, warmup_epochs=0, teacher_warmup_epochs=0, freeze_last_layer=0
        )

    @classmethod
    def released(cls) -> Self:
        """Goes on from the released ViT-S/14 on one device; give its file as `init_from`."""
        return dataclasses.replace(
            cls.paper("long"),
            epochs=30,
            batch_size=128,
            architecture="small",
            swiglu=False,
            layer_scale=1.0,
            drop_path=0.1,
            prototypes=8192,
            head_bottleneck=256,
            momentum=0.998,
            warmup_epochs=3,
            teacher_warmup_epochs=5,
            head_warmup_epochs=2,
            backbone_lr_scale=0.2,
        )

    @classmethod
    def tiny(cls) -> Self:
        """64 pixels in patches of 8, four blocks, two local crops, 1024 prototypes."""
        return cls(
            epochs=12,
            batch_size=32,
            architecture="mini",
            patch=8,
            size=64,
            local_size=32,
            local_count=2,
            global_scale=(0.4, 1.0),
            local_scale=(0.1, 0.4),
            flip=0.0,
            pool="mean",
            layer_scale=0.1,
            drop_path=0.0,
            prototypes=1024,
            head_hidden=512,
            head_bottleneck=128,
            centering="sinkhorn",
            teacher_warmup_epochs=5,
            momentum=0.99,
            base_lr=5e-3,
            warmup_epochs=2,
            patch_embed_scale=1.0,
        )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """Both settings, the phase at high resolution, released weights on one device, and a small one."""
        return {
            "paper": cls.paper(),
            "tiny": cls.tiny(),
            "paper-long": cls.paper("long"),
            "paper-high-resolution": cls.high_resolution(),
            "released": cls.released(),
        }
