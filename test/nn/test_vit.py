import dataclasses

import pytest
import torch

from v2r_core.nn.vit import (
    ARCHITECTURES,
    VisionTransformer,
    ViTConfig,
    architecture,
    with_table_for,
)

SMALL = ViTConfig(size=32, patch=8, width=24, depth=3, heads=2)


def build(**changes):
    torch.manual_seed(0)
    return VisionTransformer(dataclasses.replace(SMALL, **changes)).eval()


def images(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changes, names",
    [
        ({}, {"cls_token", "pos_embed"}),
        ({"class_token": False, "pool": "mean"}, {"pos_embed"}),
        ({"registers": 2}, {"cls_token", "pos_embed", "register_tokens"}),
        ({"mask_token": True}, {"cls_token", "pos_embed", "mask_token"}),
        ({"positions": "rotary", "class_token": False, "pool": "mean", "heads": 1}, set()),
    ],
)
def test_tokens_of_its_own(changes, names):
    network = build(**changes)
    assert {name for name, _ in network.named_parameters() if "." not in name} == names


def test_names_of_the_released_checkpoints():
    keys = set(build(layer_scale=1.0, swiglu=True).state_dict())
    block = {key.removeprefix("blocks.2.") for key in keys if key.startswith("blocks.2.")}
    linear = {f"{name}.{end}" for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3") for end in ("weight", "bias")}
    norms = {f"norm{number}.{end}" for number in (1, 2) for end in ("weight", "bias")}
    assert block == linear | norms | {"ls1.gamma", "ls2.gamma"}
    assert {"patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"} <= keys


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("class_token", [True, False])
def test_order_and_number_of_tokens(registers, class_token):
    network = build(registers=registers, class_token=class_token, pool="mean")
    prefix = registers + class_token
    assert network.config.prefix == prefix
    tokens = network.tokens(images())
    assert tokens.shape == (2, prefix + 16, 24)
    torch.testing.assert_close(network(images()), tokens[:, prefix:].mean(dim=1))


def test_class_token_is_pooled():
    network = build(registers=1)
    torch.testing.assert_close(network(images()), network.tokens(images())[:, 0])


@pytest.mark.parametrize("changes", [{}, {"layer_scale": 0.5, "swiglu": True, "registers": 2}])
def test_class_tokens_alone(changes):
    network = build(**changes)
    found, expected = network.class_tokens(images()), network.tokens(images())[:, 0]
    torch.testing.assert_close(found, expected)
    weight = network.blocks[0].attn.qkv.weight
    for_found = torch.autograd.grad(found.square().sum(), weight)[0]
    for_expected = torch.autograd.grad(expected.square().sum(), weight)[0]
    torch.testing.assert_close(for_found, for_expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("uniform", [False, True])
def test_class_tokens_alone_with_stochastic_depth(uniform):
    network = build(drop_path=0.5, drop_path_uniform=uniform).train()
    torch.manual_seed(5)
    found = network.class_tokens(images(8))
    torch.manual_seed(5)
    torch.testing.assert_close(found, network.tokens(images(8))[:, 0])


def test_kept_patches_are_encoded_alone():
    network = build()
    keep = torch.tensor([[3, 0, 7], [15, 2, 1]])
    some = network.tokens(images(), keep=keep)
    assert some.shape == (2, 4, 24)
    # What is not kept has no influence.
    changed = images()
    changed[0, :, 24:, 24:] += 1
    changed[1, :, 24:, :8] += 1
    torch.testing.assert_close(network.tokens(changed, keep=keep), some)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(network.tokens(images(), keep=everything), network.tokens(images()))


def test_masked_patches_are_not_seen():
    network = build(mask_token=True)
    torch.nn.init.normal_(network.mask_token)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = True
    masked = network.tokens(images(), mask=mask)
    changed = images()
    changed[0, :, 8:16, 8:16] += 1
    torch.testing.assert_close(network.tokens(changed, mask=mask), masked)
    torch.testing.assert_close(masked[1], network.tokens(images())[1])
    assert not torch.allclose(masked[0], network.tokens(images())[0])
    # Where a mask token is, it is told by its position.
    network.mask_token.grad = None
    masked.square().sum().backward()
    assert network.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("uniform", [False, True])
def test_stochastic_depth_keeps_the_expectation(uniform):
    network = build(depth=1, drop_path=0.4, drop_path_uniform=True) if uniform else None
    if network is None:
        network = build(depth=2, drop_path=0.4)
        assert [block.rate for block in network.blocks] == pytest.approx([0.0, 0.4])
    block = network.blocks[-1]
    tokens = torch.randn(10, 5, 24)
    expected = tokens + block._branch(tokens, None, attention=True)
    block.train()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([block._residual(tokens, None, attention=True) for _ in range(3000)])
    torch.testing.assert_close(drawn.mean(dim=0), expected, rtol=0, atol=0.05 * float(expected.detach().std()))
    untouched = (drawn == tokens).all(dim=-1).all(dim=-1).float()
    if uniform:
        # A subset of fixed size is computed.
        assert (untouched.sum(dim=1) == 4).all()
    else:
        assert untouched.mean() == pytest.approx(0.4, abs=0.02)


def test_uniform_rates():
    network = build(drop_path=0.3, drop_path_uniform=True)
    assert [block.rate for block in network.blocks] == [0.3] * 3
    linear = build(drop_path=0.3)
    assert [block.rate for block in linear.blocks] == pytest.approx([0.0, 0.15, 0.3])


def test_no_stochastic_depth_in_evaluation():
    network = build(drop_path=0.9, drop_path_uniform=True)
    torch.testing.assert_close(network(images()), network(images()))


def test_layer_scale_and_initial_weights():
    network = build(layer_scale=1e-5, registers=1)
    assert all(float(block.ls1.gamma.detach()[0]) == pytest.approx(1e-5) for block in network.blocks)
    assert network.register_tokens.abs().max() < 1e-4
    assert float(network.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(network.blocks[0].attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not network.blocks[0].attn.qkv.bias.any()


@pytest.mark.parametrize("resampling", ["offset", "antialias"])
def test_other_sizes(resampling):
    network = build(resampling=resampling)
    assert network.tokens(images(size=48)).shape == (2, 37, 24)
    wide = torch.randn(1, 3, 16, 40)
    assert network.tokens(wide).shape == (1, 11, 24)
    larger = network.resized(48)
    assert larger.pos_embed.shape == (1, 37, 24)
    torch.testing.assert_close(larger(images(size=48)), network(images(size=48)))


def test_table_of_another_size_in_a_state():
    small, large = build(), build(size=48)
    state = with_table_for(large, small.state_dict(), "pos_embed")
    large.load_state_dict(state)
    torch.testing.assert_close(large.pos_embed, small.position_table((1, 6, 6)))
    assert small.state_dict()["pos_embed"].shape == (1, 17, 24)


def test_strange_tables_are_left_alone():
    state = {"pos_embed": torch.zeros(1, 12, 24)}
    assert with_table_for(build(), state, "pos_embed")["pos_embed"] is state["pos_embed"]
    assert with_table_for(build(), {}, "pos_embed") == {}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_named_sizes(name):
    shape = architecture(name)
    assert shape["width"] % shape["heads"] == 0


def test_unknown_name():
    with pytest.raises(ValueError, match=r"no vision transformer 'tall'; there are mini"):
        architecture("tall")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"size": 30}, "30 is no multiple of the patch side 8"),
        ({"heads": 5}, "width 24 is no multiple of the 5 heads"),
        ({"class_token": False}, "there is no class token"),
        ({"frames": 3, "tubelet": 2}, "3 frames are no multiple of the 2"),
    ],
)
def test_settings_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)
