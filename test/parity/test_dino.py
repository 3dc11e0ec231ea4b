"""Our DINO against the released code (section 4 of the parity kit; schedules, LARS and kNN have files of their own)."""

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state
from network import FORMULA, FULL, NETWORK, assert_close, tensor, weights

from v2r_core.methods.dino import DinoNetwork, clip_each, weight_decay_names
from v2r_core.nn.dino_head import DinoHead
from v2r_core.nn.dino_losses import dino_loss
from v2r_core.nn.schedules import teacher_temperature
from v2r_core.nn.vit import VisionTransformer, ViTConfig, architecture

TINY = ViTConfig(size=32, patch=8, width=32, depth=2, heads=2)


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("dino.npz")


def kit_head(stored, frozen_length=False):
    found = weights(stored, "head/weights/")
    hidden, width = found["mlp.0.weight"].shape
    prototypes, bottleneck = found["last_layer.weight_v"].shape
    head = DinoHead(width, prototypes, hidden, bottleneck, frozen_length)
    head.load_state_dict(found)
    return head


@pytest.fixture(scope="module")
def transformer(stored):
    network = VisionTransformer(TINY).eval()
    network.load_state_dict(weights(stored, "vit/weights/"))
    return network


def temperature(stored, epoch):
    return teacher_temperature(
        epoch,
        float(stored["teacher_temp/arg_warmup_temp"]),
        float(stored["teacher_temp/arg_temp"]),
        int(stored["teacher_temp/arg_warmup_epochs"]),
    )


def test_teacher_temperature(stored):
    found = [temperature(stored, epoch) for epoch in range(int(stored["teacher_temp/arg_epochs"]))]
    np.testing.assert_allclose(found, stored["teacher_temp/expected"], rtol=1e-9, atol=1e-15)


def test_loss_and_center(stored):
    student = tensor(stored, "loss/student").requires_grad_()
    assert len(student) == stored["loss/ncrops"] * stored["loss/batch"]
    center = tensor(stored, "loss/center")
    for call in ("first", "second"):
        student.grad = None
        loss, center = dino_loss(
            student,
            tensor(stored, f"loss/teacher_{call}"),
            center,
            float(stored["loss/student_temp"]),
            float(stored[f"loss/teacher_temp_{call}"]),
            float(stored["loss/center_momentum"]),
        )
        assert_close(loss, stored[f"loss/expected_loss_{call}"], FORMULA)
        assert_close(center, stored[f"loss/expected_center_{call}"], FORMULA)
        if call == "first":
            loss.backward()
            assert_close(student.grad, stored["loss/expected_grad_first"], FORMULA)


def test_head(stored):
    head = kit_head(stored)
    x = tensor(stored, "head/x").requires_grad_()
    out = head(x)
    assert_close(out, stored["head/expected_out"], NETWORK)
    out.square().sum().backward()
    assert_close(x.grad, stored["head/expected_grad_x"], NETWORK)
    assert_close(head.last_layer.weight_v.grad, stored["head/expected_grad_weight_v"], NETWORK)
    assert_close(head.last_layer.weight_g.grad, stored["head/expected_grad_weight_g"], NETWORK)


@pytest.mark.parametrize("size", ["native", "16x24", "48x48"])
def test_transformer(stored, transformer, size):
    images = tensor(stored, f"vit/image_{size}")
    with torch.no_grad():
        assert_close(transformer(images), stored[f"vit/expected_cls_{size}"], NETWORK)
        assert_close(transformer.class_tokens(images), stored[f"vit/expected_cls_{size}"], NETWORK)
        if size != "native":
            rows, columns = (side // TINY.patch for side in images.shape[-2:])
            table = transformer.position_table((1, rows, columns))
            assert_close(table, stored[f"vit/expected_pos_{size}"], NETWORK)


def test_attention_and_last_blocks(stored, transformer):
    images = tensor(stored, "vit/image_native")
    with torch.no_grad():
        assert_close(transformer.last_attention(images), stored["vit/expected_last_attention_native"], NETWORK)
        for number, tokens in enumerate(transformer.last_tokens(images, 2)):
            assert_close(tokens, stored[f"vit/expected_last2_tokens_{number}"], NETWORK)


def test_clipping(stored):
    names = ["a", "b", "c", "d"]
    gradients = [tensor(stored, f"clip/grad_{name}").clone() for name in names]
    norms = clip_each(gradients, float(stored["clip/max_norm"]))
    assert_close(norms, stored["clip/expected_norms_before"], FORMULA)
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(gradient, stored[f"clip/expected_{name}"], FORMULA)


def test_what_is_decayed(stored):
    expected = {key.partition("/")[2]: bool(stored[key]) for key in stored if key.startswith("weight_decay_names/")}
    depth = 1 + max(int(key.split(".")[2]) for key in expected if key.startswith("backbone.blocks."))
    shape = ViTConfig(size=32, patch=8, width=32, depth=depth, heads=2)
    # The trainer leaves out what does not learn; the list has the lengths of prototypes.
    network = DinoNetwork(VisionTransformer(shape), DinoHead(32, 8, 8, 8, frozen_length=False))
    assert weight_decay_names(network) == expected


@pytest.mark.parametrize("size, name", [(224, "input"), (96, "input_small")])
def test_full_size(stored, size, name):
    seed = int(stored["checkpoint_vit_small16/fill_seed"])
    network = VisionTransformer(ViTConfig(size=224, patch=16, **architecture("small"))).eval()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(fill_state(shapes, seed))
    expected = stored["checkpoint_vit_small16/expected_cls" + ("" if size == 224 else f"_{size}")]
    with torch.no_grad():
        assert_close(network(fill_input(seed, (1, 3, size, size), name)), expected, FULL)
