"""Official checkpoint formats: exactly these keys, tensors only, and errors that name what is wrong."""

import hashlib
import os

import pytest
import torch

from v2r_core.encoders import checkpoints
from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.encoders.zoo import create_encoder

PREFIX = "module.convnet."


def official(arch, hidden_dim, seed=0):
    torch.manual_seed(seed)
    network = checkpoints.resnet_backbone(arch, hidden_dim)
    return network, {PREFIX + key: tensor for key, tensor in network.state_dict().items()}


@pytest.fixture
def saved(tmp_path):
    def save(content, name="model.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("hidden_dim, width", [(2, 2), (1024, 1024), (0, 512)])
def test_vip_of_any_width(saved, hidden_dim, width):
    network, state = official("resnet18", hidden_dim)
    loaded = checkpoints.load_vip_backbone(saved({"vip": state, "global_step": 7}), "resnet18")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network.eval()(images))
    assert checkpoints.embedding_dim(loaded) == width
    assert not loaded.training


def test_r3m_drops_its_language_parts(saved):
    network, state = official("resnet18", 0)
    language = {"module.lang_enc.model.x": torch.ones(1), "module.lang_rew.pred.0.weight": torch.ones(2, 2)}
    file = saved({"r3m": {**state, **language}})
    loaded = create_encoder("r3m:resnet18", file)
    assert torch.equal(loaded.backbone.conv1.weight, network.conv1.weight)
    assert loaded.embedding_dim == 512 and loaded.weights.license == "MIT"
    with pytest.raises(CheckpointError, match=r"must start with .*module\.lang_enc\.model\.x"):
        checkpoints.load_vip_backbone(saved({"vip": {**state, **language}}), "resnet18")


def test_r3m_has_no_final_layer(saved):
    _, state = official("resnet18", 8)
    with pytest.raises(CheckpointError, match=r"not expected fc\.weight, fc\.bias \(2 in all\)"):
        checkpoints.load_r3m_backbone(saved({"r3m": state}), "resnet18")


def test_missing_and_extra_keys_are_named_and_counted(saved):
    _, state = official("resnet18", 8)
    del state[PREFIX + "conv1.weight"]
    state[PREFIX + "conv9.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"missing conv1\.weight \(1 in all\); not expected conv9\.weight \(1 "):
        checkpoints.load_vip_backbone(saved({"vip": state}), "resnet18")


def test_the_wrong_architecture_is_named_and_the_list_is_short(saved):
    _, state = official("resnet18", 8)
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_vip_backbone(saved({"vip": state}), "resnet34")
    assert "vip, resnet34" in str(error.value) and "in all)" in str(error.value)
    assert len(str(error.value)) < 600


def test_wrong_shapes_are_named(saved):
    _, state = official("resnet18", 8)
    state[PREFIX + "conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(CheckpointError, match=r"wrong shape conv1\.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\)"):
        checkpoints.load_vip_backbone(saved({"vip": state}), "resnet18")
    state[PREFIX + "conv1.weight"] = "weights"
    with pytest.raises(CheckpointError, match=r"not a tensor conv1\.weight"):
        checkpoints.load_vip_backbone(saved({"vip": state}), "resnet18")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"r3m": {}}, "no entry 'vip' with a state dict, found r3m"),
        ([1, 2], "found list"),
        ({"vip": torch.zeros(1)}, "no entry 'vip' with a state dict"),
        ({"vip": {}, "optimizer": {}}, "not expected beside 'vip': optimizer"),
        ({"vip": {"conv1.weight": torch.zeros(1)}}, r"must start with 'module\.convnet\.'"),
    ],
)
def test_other_files_are_refused(saved, content, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_vip_backbone(saved(content), "resnet18")


class Payload:
    """What an attacker would put into a checkpoint."""

    def __reduce__(self):
        return os.mkdir, ("payload_ran",)


def test_code_in_a_checkpoint_is_refused_and_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, state = official("resnet18", 8)
    with pytest.raises(CheckpointError, match="refused, it holds more than tensors"):
        checkpoints.load_vip_backbone(saved({"vip": state, "global_step": Payload()}), "resnet18")
    assert not (tmp_path / "payload_ran").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoints.read_checkpoint(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such file"):
        checkpoints.read_checkpoint(tmp_path / "nowhere.pt")


def test_the_hash_is_that_of_the_file(saved):
    _, state = official("resnet18", 8)
    file = saved({"vip": state})
    assert create_encoder("vip:resnet18", file).weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_official_range_looks_at_the_whole_batch():
    dark, bright = torch.full((1, 3, 2, 2), 2.0), torch.full((1, 3, 2, 2), 2.5)
    unit = checkpoints.official_unit_range
    assert torch.equal(unit(dark), dark)
    assert torch.equal(unit(torch.cat([dark, bright]))[:1], dark / 255)
    assert torch.equal(unit(dark, compat="paper"), dark / 255)
    assert unit(dark.to(torch.uint8)).dtype == torch.float32


@pytest.mark.parametrize("family", ["vip", "r3m"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_a_checkpoint_tells_what_it_is(saved, family, arch):
    _, state = official(arch, 8 if family == "vip" else 0)
    assert checkpoints.identify_checkpoint(saved({family: state})) == f"{family}:{arch}"


def test_a_checkpoint_of_something_else_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"neither a VIP nor an R3M.*optimizer"):
        checkpoints.identify_checkpoint(saved({"optimizer": {}}))
