import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from v2r_core.nn.batch_norm import GlobalBatchNorm, SplitBatchNorm
from v2r_core.nn.resnet import (
    AveragePoolSame,
    ResNet,
    SelectiveKernel,
    SimCLRResNet,
    max_pool_same,
    simclr_from_tensorflow,
    zero_last_scales,
)


@pytest.mark.parametrize("depth", [18, 50])
def test_is_torchvisions(depth):
    reference = getattr(torchvision.models, f"resnet{depth}")()
    reference.fc = nn.Identity()
    network = ResNet(depth)
    network.load_state_dict(reference.state_dict())
    # In double precision: batch norms of two images blow rounding errors up.
    images = torch.rand(2, 3, 33, 40, dtype=torch.float64)
    network, reference = network.double(), reference.double()
    torch.testing.assert_close(network(images), reference(images))
    assert network(images).shape == (2, network.embedding_dim)


def test_width_scales_all_channels():
    network = SimCLRResNet(18, width=0.5)
    assert network.conv1.weight.shape[0] == 32
    assert network.embedding_dim == 256
    assert SimCLRResNet(50, width=0.25).embedding_dim == 512


def test_blocks_begin_as_the_identity():
    network = SimCLRResNet(50, width=0.25)
    assert not network.layer1[0].bn3.weight.any()
    assert network.layer1[0].bn1.weight.all()
    plain = ResNet(18, width=0.25)
    assert plain.layer1[0].bn2.weight.all()
    zero_last_scales(plain)
    assert not plain.layer1[0].bn2.weight.any()


def test_weights_have_the_variance_of_their_fan_in():
    weight = SimCLRResNet(18).layer4[1].conv2.weight
    assert math.isclose(weight.std().item(), weight[0].numel() ** -0.5, rel_tol=0.01)
    assert weight.abs().max().item() <= 2 * weight[0].numel() ** -0.5 / 0.879


def test_small_images_keep_their_size_until_the_second_stage():
    network = SimCLRResNet(18, width=0.25, small=True)
    sizes = []
    network.layer1.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    network(torch.rand(2, 3, 32, 32))
    assert sizes == [32]


def test_selective_kernels():
    network = SimCLRResNet(50, width=0.25, selective=True)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 512)
    assert isinstance(network.layer1[0].conv2, SelectiveKernel)
    # ResNet-D: three 3x3 convolutions, and an average in front of a projection at stride 1.
    assert [module.kernel_size for module in network.conv1 if isinstance(module, nn.Conv2d)] == [(3, 3)] * 3
    assert network.layer2[0].downsample[1].stride == (1, 1)


def test_selective_kernel_mixes_with_a_softmax():
    torch.manual_seed(0)
    kernel = SelectiveKernel(4, 6, 1, nn.BatchNorm2d).eval()
    values = torch.randn(2, 4, 5, 5)
    branches = torch.stack(functional.relu(kernel.norm(kernel.branches(values))).chunk(2, dim=1))
    pooled = branches.sum(dim=0).mean(dim=(2, 3), keepdim=True)
    mixed = kernel.mix(functional.relu(kernel.squeeze_norm(kernel.squeeze(pooled))))
    weights = torch.stack(mixed.chunk(2, dim=1)).softmax(dim=0)
    torch.testing.assert_close(kernel(values), (weights * branches).sum(dim=0))
    assert kernel.squeeze.weight.shape[0] == 32


def test_average_pool_at_stride_one_counts_what_is_there():
    values = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = AveragePoolSame(1)(values)[0, 0]
    assert found.shape == (3, 3)
    assert found[0, 0] == (0 + 1 + 3 + 4) / 4
    assert found[0, 2] == (2 + 5) / 2
    assert found[2, 2] == 8
    assert AveragePoolSame(2)(values)[0, 0].tolist() == [[2.0, 7 / 4], [13 / 4, 2.0]]


@pytest.mark.parametrize(("height", "width", "kernel", "stride"), [(8, 9, 3, 2), (7, 10, 2, 2), (9, 11, 5, 3)])
def test_max_pool_pads_the_smaller_half_first(height, width, kernel, stride):
    values = -torch.rand(1, 2, height, width)
    padding = []
    for side in (width, height):
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        padding += [total // 2, total - total // 2]
    expected = functional.max_pool2d(functional.pad(values, padding, value=-math.inf), kernel, stride)
    assert torch.equal(max_pool_same(values, kernel, stride), expected)


def test_refuses_unknown_networks():
    with pytest.raises(ValueError, match="depth 20; there are 18, 34"):
        ResNet(20)
    with pytest.raises(ValueError, match="depth 50, 101 or 152"):
        SimCLRResNet(18, selective=True)
    with pytest.raises(ValueError, match="width is 0"):
        ResNet(18, width=0)


def tensorflow_variables(network):
    """A network's state as TensorFlow would name it."""
    variables, counts = {}, {"conv2d": 0, "batch_normalization": 0}
    for module in network.modules():
        kind = {nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_normalization"}.get(type(module))
        if kind is None:
            continue
        number, counts[kind] = counts[kind], counts[kind] + 1
        name = f"base_model/{kind}{f'_{number}' if number else ''}"
        if kind == "conv2d":
            variables[f"{name}/kernel"] = module.weight.detach().permute(2, 3, 1, 0)
            variables[f"{name}/kernel/Momentum"] = torch.zeros(1)
        else:
            theirs = zip(("gamma", "beta", "moving_mean", "moving_variance"), range(4), strict=True)
            values = (module.weight.detach(), module.bias.detach(), module.running_mean, module.running_var)
            variables |= {f"{name}/{key}": values[i] for key, i in theirs}
    return variables


@pytest.mark.parametrize(("depth", "selective"), [(18, False), (50, True)])
def test_tensorflow_names_there_and_back(depth, selective):
    network = SimCLRResNet(depth, width=0.25, selective=selective)
    state = simclr_from_tensorflow(tensorflow_variables(network), "file")
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_tensorflow_variables_that_do_not_fit_are_named():
    variables = tensorflow_variables(SimCLRResNet(18, width=0.25))
    with pytest.raises(ValueError, match="file: variable base_model/batch_normalization_3/beta is missing"):
        kept = {key: value for key, value in variables.items() if key != "base_model/batch_normalization_3/beta"}
        simclr_from_tensorflow(kept, "file")
    with pytest.raises(ValueError, match="file: variables that no ResNet of SimCLR has: base_model/dense/bias"):
        simclr_from_tensorflow(variables | {"base_model/dense/bias": torch.zeros(1)}, "file")
    with pytest.raises(ValueError, match="file: 20 convolutions"):
        kept = {key: value for key, value in variables.items() if not key.startswith("base_model/conv2d_20/")}
        simclr_from_tensorflow(kept, "file")


def test_split_batch_norm_is_one_of_each_part():
    torch.manual_seed(0)
    values = torch.randn(6, 4, 3, 3, requires_grad=True)
    split, whole = SplitBatchNorm(4, 2), nn.BatchNorm2d(4)
    expected = torch.cat([whole(part) for part in values.chunk(2)])
    torch.testing.assert_close(split(values), expected)
    means = torch.stack([part.mean(dim=(0, 2, 3)) for part in values.chunk(2)])
    torch.testing.assert_close(split.running_mean, 0.1 * means.mean(dim=0))
    torch.testing.assert_close(
        torch.autograd.grad(split(values).square()[:, 0].sum(), values)[0],
        torch.autograd.grad(torch.cat([whole(part) for part in values.chunk(2)]).square()[:, 0].sum(), values)[0],
    )


def test_split_batch_norm_in_evaluation_is_an_ordinary_one():
    split, whole = SplitBatchNorm(4, 2).eval(), nn.BatchNorm2d(4).eval()
    values = torch.randn(5, 4, 3, 3)
    assert torch.equal(split(values), whole(values))
    with pytest.raises(ValueError, match="5 images cannot be split into 2"):
        split.train()(values)


def test_global_batch_norm_on_one_process_is_torchs():
    torch.manual_seed(0)
    values = torch.randn(6, 4, 3, 3)
    ours, torchs = GlobalBatchNorm(4), nn.BatchNorm2d(4)
    for _ in range(2):
        assert torch.equal(ours(values), torchs(values))
    assert all(torch.equal(value, torchs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_global_batch_norm_can_keep_the_variance_of_the_batch():
    values = torch.tensor([[1.0], [5.0]])
    norm = GlobalBatchNorm(1, population=True, offset=False)
    assert norm.bias is None
    norm(values)
    np.testing.assert_allclose(norm.running_var, [0.9 + 0.1 * 4.0])
    norm(values)
    np.testing.assert_allclose(norm.running_var, [0.9 * 1.3 + 0.1 * 4.0])


def test_two_passes_before_the_gradient():
    for population in (False, True):
        norm = GlobalBatchNorm(3, population=population)
        (norm(torch.randn(4, 3)).sum() + norm(torch.randn(4, 3)).sum()).backward()
        assert norm.weight.grad is not None
