"""Our MAE against the released code (section 6 of the parity kit)."""

import numpy as np
import pytest
import torch
from fill import fill_input, fill_state
from network import FORMULA, FULL, NETWORK, assert_close, tensor, weights
from torch import nn

from v2r_core.methods import mae
from v2r_core.methods.mae import MAE, MAERecipe
from v2r_core.methods.method import Horizon
from v2r_core.nn import vit
from v2r_core.nn.masking import kept, shuffle
from v2r_core.nn.patches import patchify, unpatchify
from v2r_core.nn.vit import VisionTransformer, ViTConfig, take

FIXED = {"pos_embed", "decoder_pos_embed"}


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("mae.npz")


@pytest.fixture
def method(stored, monkeypatch):
    """The tiny network of the kit."""
    monkeypatch.setitem(vit.ARCHITECTURES, "kit", (32, 2, 4))
    recipe = MAERecipe(
        architecture="kit",
        size=32,
        patch=8,
        mask_ratio=float(stored["model/mask_ratio"]),
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=4,
    )
    made = MAE(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=2, examples=2))
    mae.load_official(made, weights(stored, "model/weights/"))
    return made


@pytest.mark.parametrize("check", ["masking", "masking_fractional"])
def test_masking(stored, check):
    x, noise = tensor(stored, f"{check}/x"), tensor(stored, f"{check}/noise")
    order, count = shuffle(noise, float(stored[f"{check}/mask_ratio"]))
    restore = order.argsort(dim=1)
    found = take(x, order[:, :count]).numpy()
    if check == "masking_fractional":
        assert count == stored[f"{check}/expected_len_keep"]
        padded = np.full_like(stored[f"{check}/expected_kept_padded"], -1)
        padded[:, :count] = found
        np.testing.assert_array_equal(padded, stored[f"{check}/expected_kept_padded"])
    else:
        np.testing.assert_array_equal(found, stored[f"{check}/expected_kept"])
    np.testing.assert_array_equal(restore.numpy(), stored[f"{check}/expected_ids_restore"])
    np.testing.assert_array_equal((restore >= count).numpy(), stored[f"{check}/expected_mask"].astype(bool))


def test_number_of_kept_patches(stored):
    found = [
        [kept(int(length), float(ratio)) for ratio in stored["len_keep/mask_ratio"]]
        for length in stored["len_keep/length"]
    ]
    np.testing.assert_array_equal(found, stored["len_keep/expected"])


def test_patches(stored):
    patch, image = int(stored["patchify/patch_size"]), tensor(stored, "patchify/image")
    found = patchify(image, patch)
    np.testing.assert_array_equal(found.numpy(), stored["patchify/expected_patches"])
    np.testing.assert_array_equal(unpatchify(found, patch).numpy(), stored["patchify/expected_roundtrip"])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss(stored, norm_pix):
    patches = patchify(tensor(stored, "loss/image"), int(stored["loss/patch_size"]))
    prediction, mask = tensor(stored, "loss/prediction").requires_grad_(), tensor(stored, "loss/mask")
    loss = mae.mae_loss(prediction, patches, mask, norm_pix)
    loss.backward()
    assert_close(loss, stored["loss/expected_loss_normalised" if norm_pix else "loss/expected_loss_plain"], FORMULA)
    if norm_pix:
        assert_close(prediction.grad, stored["loss/expected_grad_prediction_normalised"], FORMULA)


def test_network(stored, method):
    image, noise = tensor(stored, "model/image"), tensor(stored, "model/noise")
    order, count = shuffle(noise, method.recipe.mask_ratio)
    restore = order.argsort(dim=1)
    np.testing.assert_array_equal(restore.numpy(), stored["model/expected_ids_restore"])
    assert_close(method.backbone.tokens(image, keep=order[:, :count]), stored["model/expected_latent"], NETWORK)
    prediction, mask = method.reconstruct(image, noise)
    np.testing.assert_array_equal(mask.numpy(), stored["model/expected_mask"].astype(bool))
    assert_close(prediction, stored["model/expected_prediction"], NETWORK)
    patches = patchify(image, method.recipe.patch)
    plain = mae.mae_loss(prediction, patches, mask, norm_pix=False)
    assert_close(plain, stored["model/expected_loss_plain"], NETWORK)


def test_step_of_the_method(stored, method):
    batch = {"views": [tensor(stored, "model/image")], "noise": tensor(stored, "model/noise")}
    loss = method(batch, 0).loss
    loss.backward()
    assert_close(loss, stored["model/expected_loss_normalised"], NETWORK)
    parameters = {**dict(method.backbone.named_parameters()), **dict(method.decoder.named_parameters())}
    names = [key.removeprefix("model/expected_grad/") for key in stored if key.startswith("model/expected_grad/")]
    assert names
    for name in names:
        assert_close(parameters[name].grad, stored[f"model/expected_grad/{name}"], NETWORK)


def test_fixed_tables_are_the_released_ones(stored, method):
    fresh = MAE(method.recipe, method.horizon)
    assert_close(fresh.backbone.pos_embed, stored["model/weights/pos_embed"], FORMULA)
    assert_close(fresh.decoder.decoder_pos_embed, stored["model/weights/decoder_pos_embed"], FORMULA)


def test_which_parameters_are_decayed(stored, method):
    expected = {name: bool(flag) for name, flag in weights(stored, "weight_decay_names/").items()}
    found = {**mae.weight_decay_names(method.backbone), **mae.weight_decay_names(method.decoder)}
    assert found == expected
    groups = method.optimizer().param_groups
    parameters = {**dict(method.backbone.named_parameters()), **dict(method.decoder.named_parameters())}
    in_group = {id(p): bool(group["wd_scale"]) for group in groups for p in group["params"]}
    assert {name: in_group[id(parameters[name])] for name in expected} == expected


def test_layer_decay(stored):
    network = VisionTransformer(ViTConfig(size=16, patch=8, width=16, depth=3, heads=2, class_token=True))
    network.head = nn.Linear(16, 5)
    scales = mae.layer_decay(
        network.named_parameters(),
        float(stored["layer_decay/arg_layer_decay"]),
        float(stored["layer_decay/arg_weight_decay"]),
    )
    for number, what in enumerate(["expected_lr_scale", "expected_weight_decay"]):
        expected = weights(stored, f"layer_decay/{what}/")
        assert set(scales) == set(expected)
        for name, pair in scales.items():
            np.testing.assert_allclose(pair[number], expected[name], rtol=1e-9, atol=1e-15)


@pytest.mark.slow
def test_full_size_checkpoint(stored):
    seed = int(stored["checkpoint_vit_base16/fill_seed"])
    recipe = MAERecipe(architecture="base")
    method = MAE(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=1, examples=1))
    state = mae.to_official(method)
    shapes = {name: tuple(value.shape) for name, value in state.items() if name not in FIXED}
    mae.load_official(method, {**state, **fill_state(shapes, seed)})
    image = fill_input(seed, (1, 3, 224, 224))
    patches = method.backbone.config.grid[1] * method.backbone.config.grid[2]
    with torch.no_grad():
        tokens = method.backbone.tokens(image)
        assert_close(tokens[:, 0], stored["checkpoint_vit_base16/expected_cls"], FULL)
        assert_close(tokens[:, 1:].mean(dim=1), stored["checkpoint_vit_base16/expected_mean_patch"], FULL)
        noise = torch.arange(patches)[None] / patches
        order, count = shuffle(noise, 0.75)
        masked = method.backbone.tokens(image, keep=order[:, :count])
        assert_close(masked[:, 0], stored["checkpoint_vit_base16/expected_masked_cls"], FULL)
        prediction, _ = method.reconstruct(image, noise)
        assert_close(prediction[:, :4], stored["checkpoint_vit_base16/expected_prediction_first4"], FULL)
