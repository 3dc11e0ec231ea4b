"""Encoders of MAE, I-JEPA and V-JEPA become graphs that equal them and that TensorRT can read."""

import dataclasses

import pytest
import torch

from v2r_core.deploy.export import export_encoder
from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon
from v2r_core.nn import vit


@pytest.mark.parametrize(
    ("name", "changes"),
    [("mae", {}), ("mae", {"pool": "cls"}), ("ijepa", {}), ("vjepa", {}), ("vjepa", {"positions": "rotary"})],
)
def test_export(name, changes, tmp_path, monkeypatch):
    monkeypatch.setitem(vit.ARCHITECTURES, "toy", (48, 2, 3))
    method = load_method(name)
    recipe = dataclasses.replace(method.recipe_type.tiny(), architecture="toy", size=32, patch=8, **changes)
    if name == "ijepa":
        recipe = dataclasses.replace(recipe, min_keep=0)
    torch.manual_seed(0)
    made = method(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=1, examples=1))
    exported = export_encoder(made.encoder(), tmp_path)
    assert exported.spec.embedding_dim == 48
    assert exported.spec.parity["fp32_max_rel_error"] < 1e-5
    assert exported.spec.parity["fp16_min_cosine"] > 0.9999
