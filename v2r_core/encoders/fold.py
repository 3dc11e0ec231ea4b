"""Getting a trained network ready for export: batch norm folded away, pooling made plain, weights rounded.

Done on the torch side, so that the network that is exported can still be run and compared in torch.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FLOAT16_MAX = 65504.0
_FOLD_TOLERANCE = 1e-9


class FoldError(ValueError):
    """A network cannot be prepared for export; the message says what happened and what to do."""


class MeanPool(nn.Module):
    """Mean over both image axes, which stay with length 1: (N, C, H, W) to (N, C, 1, 1).

    The same as `nn.AdaptiveAvgPool2d(1)`, whose export leaves index arithmetic that depends on the batch size.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3), keepdim=True)


def fold_batch_norm(network: nn.Module, example: Tensor) -> nn.Module:
    """Folds each batch norm that directly follows a convolution into that convolution.

    Which pairs there are is observed during one forward pass, not guessed from names, so any architecture will do.
    The arithmetic is float64, and the result is compared with the original in float64 on the example.

    Args:
        network: module from images to embeddings; it is not changed.
        example: float input for that one pass, (N, 3, S, S); something that excites the network, not zeros.

    Returns:
        A copy in evaluation mode, float32, without the folded layers. Batch norms of other kinds (after a linear
        layer, before a convolution) stay as they are.

    Raises:
        FoldError: the folded network answers differently: the output of a convolution has a second reader.
    """
    reference = copy.deepcopy(network).double().eval()
    folded = copy.deepcopy(reference)
    with torch.inference_mode():
        expected = reference(example.double())
    for conv, (name, norm) in _pairs(folded, example.double()):
        _fold_pair(conv, norm)
        # timm's batch norms carry the activation that follows them.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        folded.set_submodule(name, nn.Sequential(*rest) if rest else nn.Identity())
    with torch.inference_mode():
        error = float((folded(example.double()) - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= _FOLD_TOLERANCE:
        raise FoldError(f"folding batch norm changed the answer by {error:.1e} of its maximum; export with fold=False")
    return folded.float()


def plain_pooling(network: nn.Module) -> None:
    """Replaces, in place, every adaptive average pool to one pixel by `MeanPool`."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1), [1, 1]):
            network.set_submodule(name, MeanPool())


def round_weights(network: nn.Module) -> None:
    """Rounds, in place, every floating point parameter and buffer to the nearest float16 value; dtypes stay.

    Raises:
        FoldError: a value is beyond float16's range.
    """
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if (largest := float(tensor.detach().abs().max())) > FLOAT16_MAX:
            raise FoldError(f"{name} has a value of {largest:.3g}, beyond float16 (65504); export without half weights")
        with torch.no_grad():
            tensor.copy_(tensor.half())


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, tuple[str, _BatchNorm]]]:
    """Convolutions whose output object is what a batch norm then receives; each used once in the pass."""
    producer: dict[int, nn.Conv2d] = {}
    alive: list[Tensor] = []  # keeps the outputs, so that no id is given out twice
    uses: dict[nn.Module, int] = {}
    found: list[tuple[nn.Conv2d, tuple[str, _BatchNorm]]] = []
    names = {module: name for name, module in network.named_modules()}

    def after_conv(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        uses[module] = uses.get(module, 0) + 1
        producer[id(output)] = module
        alive.append(output)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        uses[module] = uses.get(module, 0) + 1
        conv = producer.get(id(inputs[0]))
        if conv is not None and module.running_var is not None:
            found.append((conv, (names[module], module)))

    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in found if uses[conv] == 1 and uses[norm[1]] == 1]


def _fold_pair(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    """conv'(x) = (conv(x) - mean) * scale + shift, with scale = weight / sqrt(var + eps)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_mean)
    conv.weight = nn.Parameter(conv.weight.detach() * scale.detach().reshape(-1, 1, 1, 1))
    conv.bias = nn.Parameter((bias * scale + shift).detach())
