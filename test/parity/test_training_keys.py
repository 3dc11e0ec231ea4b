"""Decoder and predictors have the keys and shapes of the released training checkpoints (section 10 of the kit)."""

import torch

from v2r_core.methods.ijepa import IJepa, IJepaRecipe
from v2r_core.methods.mae import MAE, MAERecipe, to_official
from v2r_core.methods.method import Horizon
from v2r_core.methods.vjepa import VJepa, VJepaRecipe
from v2r_core.nn.predictor import Predictor

HORIZON = Horizon(steps_per_epoch=1, epochs=1, batch_size=1, examples=1)


def shapes(state, prefix=""):
    return {f"{prefix}{name}": list(value.shape) for name, value in state.items()}


def test_mae(checkpoint_keys):
    with torch.device("meta"):
        method = MAE(MAERecipe(architecture="base"), HORIZON)
    assert shapes(to_official(method)) == checkpoint_keys["mae_vit_base16_full"]["keys"]


def test_ijepa(checkpoint_keys):
    with torch.device("meta"):
        method = IJepa(IJepaRecipe.paper(), HORIZON)
    assert shapes(method.target.state_dict(), "module.") == checkpoint_keys["ijepa_vit_huge14_encoder"]["keys"]
    assert shapes(method.predictor.state_dict(), "module.") == checkpoint_keys["ijepa_vit_huge14_predictor"]["keys"]


def test_vjepa(checkpoint_keys):
    with torch.device("meta"):
        method = VJepa(VJepaRecipe.paper(), HORIZON)
    prefix = "module.backbone."
    assert shapes(method.target.state_dict(), prefix) == checkpoint_keys["vjepa_vit_large16_encoder"]["keys"]
    assert shapes(method.predictor.state_dict(), prefix) == checkpoint_keys["vjepa_vit_large16_predictor"]["keys"]


def test_vjepa2(checkpoint_keys):
    recipe, prefix = VJepaRecipe.paper("2"), "module.backbone."
    with torch.device("meta"):
        method = VJepa(recipe, HORIZON)
        # The released files have a mask token for every kind of mask that was ever tried; training makes one per kind.
        predictor = Predictor(
            method.online.embedding_dim,
            recipe.predictor_width,
            recipe.predictor_depth,
            recipe.predictor_heads,
            method.online.config.grid,
            positions="rotary",
            mask_tokens=10,
        )
    assert shapes(method.target.state_dict(), prefix) == checkpoint_keys["vjepa2_vit_large_encoder"]["keys"]
    assert shapes(predictor.state_dict(), prefix) == checkpoint_keys["vjepa2_vit_large_predictor"]["keys"]
