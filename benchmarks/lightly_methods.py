"""The five methods as lightly's users put them together, from lightly's own modules and losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    DINOProjectionHead,
    IJEPAPredictorTIMM,
    MAEDecoderTIMM,
    MaskedVisionTransformerTIMM,
    MoCoProjectionHead,
    SimCLRProjectionHead,
)
from torch import Tensor, nn
from torch.nn import functional

TrainStep = Callable[[dict[str, object]], float]


@dataclass(frozen=True)
class Size:
    """What both sides have in common.

    Attributes:
        image: side of a (global) view in pixels.
        local: side of DINO's local views in pixels.
        locals: number of them.
        patch: side of a patch in pixels.
        width, depth, heads: of the vision transformer.
        batch: examples in a step.
        queue: keys of MoCo.
        prototypes: of DINO.
        decoder_width, decoder_depth, decoder_heads: of MAE's decoder and I-JEPA's predictor.
    """

    image: int = 64
    local: int = 32
    locals: int = 6
    patch: int = 8
    width: int = 192
    depth: int = 4
    heads: int = 3
    batch: int = 64
    queue: int = 4096
    prototypes: int = 4096
    decoder_width: int = 96
    decoder_depth: int = 2
    decoder_heads: int = 3


def moco(size: Size) -> TrainStep:
    """MoCo v2, ResNet-18."""
    backbone = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-1])
    head = MoCoProjectionHead(512, 512, 128)
    keys, key_head = copy.deepcopy(backbone), copy.deepcopy(head)
    utils.deactivate_requires_grad(keys)
    utils.deactivate_requires_grad(key_head)
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(size.queue, 128))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step(batch: dict[str, object]) -> float:
        first, second = batch["views"]  # type: ignore[misc]
        utils.update_momentum(backbone, keys, m=0.999)
        utils.update_momentum(head, key_head, m=0.999)
        query = head(backbone(first).flatten(start_dim=1))
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(second)
            key = utils.batch_unshuffle(key_head(keys(shuffled).flatten(start_dim=1)), order)
        return _finish(criterion(query, key), optimizer)

    return step


def simclr(size: Size) -> TrainStep:
    """SimCLR, ResNet-18."""
    backbone = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-1])
    head = SimCLRProjectionHead(512, 512, 128)
    criterion = NTXentLoss(temperature=0.1)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-6)

    def step(batch: dict[str, object]) -> float:
        first, second = (head(backbone(view).flatten(start_dim=1)) for view in batch["views"])  # type: ignore[attr-defined]
        return _finish(criterion(first, second), optimizer)

    return step


def dino(size: Size) -> TrainStep:
    """DINO, a small vision transformer."""
    student = _vit(size, dynamic_img_size=True, global_pool="token")
    teacher = copy.deepcopy(student)
    head = DINOProjectionHead(size.width, 2048, 256, size.prototypes, freeze_last_layer=1)
    teacher_head = DINOProjectionHead(size.width, 2048, 256, size.prototypes)
    utils.deactivate_requires_grad(teacher)
    utils.deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(output_dim=size.prototypes, warmup_teacher_temp_epochs=5)
    optimizer = torch.optim.AdamW([*student.parameters(), *head.parameters()], lr=1e-4)

    def step(batch: dict[str, object]) -> float:
        views: list[Tensor] = batch["views"]  # type: ignore[assignment]
        utils.update_momentum(student, teacher, m=0.996)
        utils.update_momentum(head, teacher_head, m=0.996)
        with torch.no_grad():
            targets = [teacher_head(teacher(view)) for view in views[:2]]
        outputs = [head(student(view)) for view in views]
        loss = criterion(targets, outputs, epoch=1)
        optimizer.zero_grad()
        loss.backward()
        head.cancel_last_layer_gradients(current_epoch=1)
        optimizer.step()
        return float(loss.detach())

    return step


def mae(size: Size) -> TrainStep:
    """MAE, a small vision transformer."""
    backbone = MaskedVisionTransformerTIMM(_vit(size))
    patches = (size.image // size.patch) ** 2
    decoder = MAEDecoderTIMM(
        patches, size.patch, embed_dim=size.width, decoder_embed_dim=size.decoder_width,
        decoder_depth=size.decoder_depth, decoder_num_heads=size.decoder_heads,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([*backbone.parameters(), *decoder.parameters()], lr=1.5e-4, betas=(0.9, 0.95))

    def step(batch: dict[str, object]) -> float:
        images: Tensor = batch["views"][0]  # type: ignore[index]
        keep, masked = utils.random_token_mask((len(images), patches + 1), mask_ratio=0.75)
        encoded = decoder.embed(backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, (len(images), patches + 1))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(images, size.patch), masked - 1)
        target = utils.normalize_mean_var(target, dim=-1)
        return _finish(functional.mse_loss(predicted, target), optimizer)

    return step


def ijepa(size: Size) -> TrainStep:
    """I-JEPA, a small vision transformer; the same masks as ours are given."""
    encoder = MaskedVisionTransformerTIMM(_vit(size, class_token=False, global_pool="avg"))
    target_encoder = copy.deepcopy(encoder)
    utils.deactivate_requires_grad(target_encoder)
    patches = (size.image // size.patch) ** 2
    predictor = IJEPAPredictorTIMM(patches, size.decoder_depth, size.width, size.decoder_width, size.heads)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3)

    def step(batch: dict[str, object]) -> float:
        images: Tensor = batch["views"][0]  # type: ignore[index]
        context: Tensor = batch["context"]  # type: ignore[assignment]
        targets: list[Tensor] = list(batch["targets"])  # type: ignore[call-overload]
        with torch.no_grad():
            hidden = target_encoder.encode(images)
            hidden = functional.layer_norm(hidden, (hidden.shape[-1],))
            hidden = utils.apply_masks(hidden, targets)
        predicted = predictor(encoder.encode(images, idx_keep=context), context, targets)
        loss = functional.smooth_l1_loss(predicted, hidden)
        result = _finish(loss, optimizer)
        utils.update_momentum(encoder, target_encoder, m=0.996)
        return result

    return step


def _vit(size: Size, **options: object) -> nn.Module:
    model: nn.Module = timm.models.vision_transformer.VisionTransformer(
        img_size=size.image,
        patch_size=size.patch,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=0,
        **options,
    )
    return model


def _finish(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
