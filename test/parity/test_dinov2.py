"""Our DINOv2 against the released code (section 5 of the parity kit; schedules have a file of their own)."""

import random

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state
from network import FORMULA, FULL, NETWORK, assert_close, tensor, weights

from v2r_core.nn.block_masking import BlockMasking, collate, draw_block_mask
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
from v2r_core.nn.param_groups import layer_rules
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture

TINY = {
    "vit": ViTConfig(size=56, patch=14, width=32, depth=2, heads=2, layer_scale=1.0, mask_token=True),
    "vit_reg_swiglu": ViTConfig(
        size=56,
        patch=14,
        width=32,
        depth=2,
        heads=2,
        layer_scale=1.0,
        mask_token=True,
        registers=2,
        swiglu=True,
        resampling="antialias",
    ),
}
FULL_SIZE = {
    "checkpoint_vits14": ViTConfig(size=518, patch=14, layer_scale=1.0, mask_token=True, **architecture("small")),
    "checkpoint_vits14_reg4": ViTConfig(
        size=518,
        patch=14,
        layer_scale=1.0,
        mask_token=True,
        registers=4,
        resampling="antialias",
        **architecture("small"),
    ),
}


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("dinov2.npz")


def test_centering(stored):
    def number(key):
        return stored[f"dino_centering/{key}"].item()

    center = torch.zeros(1, stored["dino_centering/teacher_first"].shape[1])
    for call in ("first", "second"):
        logits = tensor(stored, f"dino_centering/teacher_{call}")
        probabilities = centred_probabilities(logits, center, number("teacher_temp"))
        assert_close(probabilities, stored[f"dino_centering/expected_probs_{call}"], FORMULA)
        center = moved_center(center, logits, number("center_momentum"))
        assert_close(center, stored[f"dino_centering/expected_center_after_{call}"], FORMULA)
    local = tensor(stored, "dino_centering/student_local").requires_grad_()
    answers = tensor(stored, "dino_centering/student_global").requires_grad_()
    by_crop = local.unflatten(0, (number("n_local"), number("batch")))
    local_sum = crossed_entropy(by_crop, probabilities.unflatten(0, (2, -1)), number("student_temp"))
    swapped = torch.cat(probabilities.chunk(2)[::-1])
    between = soft_cross_entropy(answers, swapped, number("student_temp")).mean()
    assert_close(local_sum, stored["dino_centering/expected_local_sum"], FORMULA)
    assert_close(between, stored["dino_centering/expected_global"], FORMULA)
    (local_sum + between).backward()
    assert_close(local.grad, stored["dino_centering/expected_grad_local"], FORMULA)
    assert_close(answers.grad, stored["dino_centering/expected_grad_global"], FORMULA)


def test_sinkhorn(stored):
    def number(key):
        return stored[f"dino_sinkhorn/{key}"].item()

    logits, temperature = tensor(stored, "dino_sinkhorn/teacher"), number("teacher_temp")
    found = sinkhorn_knopp(logits, temperature, number("n_iterations"))
    assert_close(found, stored["dino_sinkhorn/expected_assignment"], FORMULA)
    once = sinkhorn_knopp(logits, temperature, 1)
    assert_close(once, stored["dino_sinkhorn/expected_assignment_1_iteration"], FORMULA)
    student = tensor(stored, "dino_sinkhorn/student_local").unflatten(0, (-1, number("batch")))
    local_sum = crossed_entropy(student, found.unflatten(0, (2, -1)), number("student_temp"))
    assert_close(local_sum, stored["dino_sinkhorn/expected_local_sum"], FORMULA)


def test_ibot(stored):
    def number(key):
        return stored[f"ibot/{key}"].item()

    masks = stored["ibot/mask"].astype(bool)
    shares = collate(masks)["mask_weights"]
    assert_close(shares, stored["ibot/expected_weights"], FORMULA)
    first, second = (tensor(stored, f"ibot/teacher_masked_{call}") for call in ("first", "second"))
    center = moved_center(torch.zeros(1, first.shape[1]), first, number("center_momentum"))
    assert_close(center[None], stored["ibot/expected_center_after_first"], FORMULA)
    centred = centred_probabilities(second, center, number("teacher_temp"))
    assert_close(centred, stored["ibot/expected_probs_second"], FORMULA)
    student = tensor(stored, "ibot/student_masked").requires_grad_()
    loss = ibot_loss(student, centred, shares, len(masks), number("student_temp"))
    assert_close(loss, stored["ibot/expected_loss_centering"], FORMULA)
    loss.backward()
    assert_close(student.grad, stored["ibot/expected_grad_centering"], FORMULA)
    assigned = sinkhorn_knopp(second, number("teacher_temp"))
    assert_close(assigned, stored["ibot/expected_sinkhorn_second"], FORMULA)
    loss = ibot_loss(student, assigned, shares, len(masks), number("student_temp"))
    assert_close(loss, stored["ibot/expected_loss_sinkhorn"], FORMULA)


def test_koleo(stored):
    x = tensor(stored, "koleo/x").requires_grad_()
    loss = koleo_loss(x, stored["koleo/eps"].item())
    assert_close(loss, stored["koleo/expected_loss"], FORMULA)
    loss.backward()
    assert_close(x.grad, stored["koleo/expected_grad"], FORMULA)


def test_block_masks(stored):
    def number(key):
        return stored[f"block_mask/{key}"].item()

    rng = random.Random(number("seed"))
    grid = (number("height"), number("width"))
    limits = (number("max_patches"), number("min_patches"), number("min_aspect"))
    found = [draw_block_mask(rng, grid, target, *limits) for target in stored["block_mask/target_count"].tolist()]
    np.testing.assert_array_equal(np.stack(found), stored["block_mask/expected_mask"])
    np.testing.assert_array_equal([mask.sum() for mask in found], stored["block_mask/expected_count"])


def test_collate(stored):
    def number(key):
        return stored[f"collate/{key}"].item()

    side = round(number("n_tokens") ** 0.5)
    sampler = BlockMasking(
        (side, side),
        ratio=(number("mask_ratio_min"), number("mask_ratio_max")),
        probability=number("mask_probability"),
        min_patches=stored["block_mask/min_patches"].item(),
        min_aspect=stored["block_mask/min_aspect"].item(),
    )
    masks = sampler.draw(random.Random(number("seed")), number("batch"))
    np.testing.assert_array_equal(masks, stored["collate/expected_mask"])
    np.testing.assert_array_equal(masks.sum(axis=1), stored["collate/expected_counts"])
    assert sampler.most(number("batch")) == number("expected_upperbound")
    found = collate(masks)
    assert len(found["mask_indices"]) == number("expected_n_masked")
    on_grid = torch.zeros(masks.size)
    on_grid[found["mask_indices"]] = found["mask_weights"]
    assert_close(on_grid.reshape(masks.shape), stored["collate/expected_weights_on_grid"], FORMULA)


@pytest.mark.parametrize("check", ["param_groups_vit", "param_groups_head"])
def test_learning_rates_of_layers(stored, check):
    heads = DinoHead(8, 8, hidden=8, bottleneck=4)
    network = VisionTransformer(TINY["vit_reg_swiglu"]) if check == "param_groups_vit" else heads
    found = layer_rules(
        network, stored[f"{check}/arg_layer_decay"].item(), stored[f"{check}/arg_patch_embed_mult"].item()
    )
    prefix = f"{check}/lr_multiplier/"
    names = [key.removeprefix(prefix) for key in stored if key.startswith(prefix)]
    assert set(found) == set(names)
    for name in names:
        rule = found[name]
        np.testing.assert_allclose(rule.lr_scale, stored[f"{prefix}{name}"], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(rule.wd_scale, stored[f"{check}/wd_multiplier/{name}"], rtol=1e-9, atol=1e-15)
        assert rule.last_layer == bool(stored[f"{check}/is_last_layer/{name}"])


@pytest.mark.parametrize("check", list(TINY))
def test_transformer(stored, check):
    config = TINY[check]
    network = VisionTransformer(config).eval()
    network.load_state_dict(weights(stored, f"{check}/weights/"))
    images, other = tensor(stored, f"{check}/image"), tensor(stored, f"{check}/image_28x42")
    mask = tensor(stored, f"{check}/mask").bool()
    with torch.no_grad():
        tokens, masked = network.tokens(images), network.tokens(images, mask=mask)
        for found, ending in ((tokens, ""), (masked, "_masked")):
            assert_close(found[:, 0], stored[f"{check}/expected_cls{ending}"], NETWORK)
            assert_close(found[:, config.prefix :], stored[f"{check}/expected_patches{ending}"], NETWORK)
        if config.registers:
            assert_close(tokens[:, 1 : config.prefix], stored[f"{check}/expected_registers"], NETWORK)
        assert_close(network(other), stored[f"{check}/expected_cls_28x42"], NETWORK)
        assert_close(network.class_tokens(other), stored[f"{check}/expected_cls_28x42"], NETWORK)
        rows, columns = (side // config.patch for side in other.shape[-2:])
        assert_close(network.position_table((1, rows, columns)), stored[f"{check}/expected_pos_28x42"], NETWORK)
        last = torch.stack(network.last_tokens(images, 2))
        assert_close(last[:, :, config.prefix :], stored[f"{check}/expected_last2_patches"], NETWORK)
        assert_close(last[:, :, 0], stored[f"{check}/expected_last2_cls"], NETWORK)


def test_head(stored):
    found = weights(stored, "head/weights/")
    hidden, width = found["mlp.0.weight"].shape
    prototypes, bottleneck = found["last_layer.weight_v"].shape
    head = DinoHead(width, prototypes, hidden, bottleneck)
    head.load_state_dict(found)
    assert_close(head(tensor(stored, "head/x")), stored["head/expected_out"], NETWORK)
    assert head.last_layer.weight_g.requires_grad == bool(stored["head/weight_g_is_trainable"])


@pytest.mark.parametrize("check", list(FULL_SIZE))
def test_full_size(stored, check):
    config = FULL_SIZE[check]
    seed = int(stored[f"{check}/fill_seed"])
    network = VisionTransformer(config).eval()
    network.load_state_dict(fill_state({key: value.shape for key, value in network.state_dict().items()}, seed))
    with torch.no_grad():
        tokens = network.tokens(fill_input(seed, (1, 3, 224, 224)))
        assert_close(tokens[:, 0], stored[f"{check}/expected_cls_224"], FULL)
        assert_close(tokens[:, config.prefix :].mean(dim=1), stored[f"{check}/expected_mean_patch_224"], FULL)
        large = network(fill_input(seed, (1, 3, 518, 518), "input_518"))
        assert_close(large, stored[f"{check}/expected_cls_518"], FULL)
