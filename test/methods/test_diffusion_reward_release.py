"""The released files of Diffusion Reward, with random weights under the released keys."""

import pytest
import torch
from torch import nn

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.methods.diffusion_reward import from_released
from v2r_core.methods.diffusion_reward_recipe import DiffusionRewardRecipe
from v2r_core.methods.diffusion_reward_release import load_released
from v2r_core.nn.denoiser import DenoiserConfig, DiffusionModel
from v2r_core.nn.taming_vqgan import TamingConfig, TamingVQGAN


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    made = TamingVQGAN(TamingConfig(channels=(32, 32, 64, 64), latent=4, codes=6))
    nn.init.normal_(made.codebook, std=0.3)
    return made


@pytest.fixture
def file(tokenizer, tmp_path):
    path = tmp_path / "vqgan.pt"
    torch.save(tokenizer.state_dict(), path)
    return path


def test_a_released_tokenizer_is_loaded_strictly(tokenizer, file):
    released = load_released(file)
    assert released.model is None
    assert released.tokenizer.config == tokenizer.config
    for key, value in released.tokenizer.state_dict().items():
        assert torch.equal(value, tokenizer.state_dict()[key]), key


@pytest.fixture
def whole(tokenizer):
    torch.manual_seed(2)
    config = DenoiserConfig(codes=6, width=16, depth=3, heads=16, condition_width=12, steps=10)
    parts = {"content_codec.model.": tokenizer, "transformer.": DiffusionModel(config)}
    state = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    average = DiffusionModel(config).state_dict()
    return {"model": state, "ema": average, "last_epoch": 99}


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_released_model_is_loaded_strictly(whole, tmp_path, prefix):
    path = tmp_path / "best.pth"
    whole["ema"] = {prefix + key: value for key, value in whole["ema"].items()}
    torch.save(whole, path)
    released = load_released(path)
    assert torch.equal(released.tokenizer.codebook, whole["model"]["content_codec.model.codebook.embedding.weight"])
    for key, value in released.model.state_dict().items():
        assert torch.equal(value, whole["model"][f"transformer.{key}"]), key
    for key, value in released.average.state_dict().items():
        assert torch.equal(value, whole["ema"][prefix + key]), key
    method = from_released(path)
    method.distances.add(torch.tensor([0.1, 0.2]))
    exported = method.reward_export().networks["denoiser"].module
    tokens, t, condition = torch.zeros(1, 64).long(), torch.tensor([3]), torch.ones(1, 128).long()
    expected = released.average(tokens, t, condition)
    torch.testing.assert_close(exported(tokens, t, condition), expected, rtol=0, atol=1e-4)


def test_what_does_not_fit_is_named(whole, tmp_path, file, tokenizer):
    path = tmp_path / "broken.pth"

    def refused(content, message):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_released(path)

    state = tokenizer.state_dict()
    refused({key: value for key, value in state.items() if key != "quant_conv.bias"}, r"missing quant_conv\.bias")
    refused({**state, "discriminator.weight": torch.zeros(1)}, r"not expected discriminator\.weight")
    refused({**state, "quant_conv.bias": torch.zeros(9)}, r"wrong shape quant_conv\.bias")
    refused({key: value for key, value in state.items() if "codebook" not in key}, "missing codebook")
    refused({"state": {}}, "neither a VQ-GAN")
    refused({"model": {**whole["model"], "other.weight": torch.zeros(1)}}, r"other\.weight")
    lacking = {key: value for key, value in whole["model"].items() if key != "transformer.log_bt"}
    refused({"model": lacking}, r"entry 'model': missing log_bt")
    refused({"model": whole["model"], "ema": {"wrong": torch.zeros(1)}}, "entry 'ema'")
    refused([1, 2], "holds a list")
    with pytest.raises(CheckpointError, match="a tokenizer alone"):
        from_released(file)
    torch.save({**whole, "optimizer": DiffusionRewardRecipe.tiny()}, path)
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_released(path)
