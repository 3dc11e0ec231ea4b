"""VIPER's VQ-GAN, transformer and reward against the released code (section 5 of the kit's README)."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from weights import generate_weights

from v2r_core.nn import viper_vqgan
from v2r_core.nn.video_gpt import Likelihood, VideoGPT, VideoGPTConfig
from v2r_core.nn.viper_vqgan import ViperVQGANConfig
from v2r_core.nn.vqgan import perplexity
from v2r_core.rewards.quantization import quantize
from v2r_core.rewards.viper import ViperReward

CASES = {"s4k1": (4, 1, 0), "s4k1_class": (4, 1, 4), "s2k3": (2, 3, 0), "s2k3_class": (2, 3, 4)}
LABEL = 2
HEADS = 3
FLAX_NAMES = {
    viper_vqgan.ResidualBlock: "ResnetBlock",
    viper_vqgan.SpatialAttention: "AttnBlock",
    viper_vqgan.Down: "Downsample",
    viper_vqgan.Up: "Upsample",
    nn.Conv2d: "Conv",
    nn.GroupNorm: "GroupNorm",
}


@pytest.fixture(scope="session")
def stored(parity_file):
    return parity_file("viper.npz")


def flax_children(module):
    """Children as Flax counts them: containers do not count, and neither do modules without parameters."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", each) for inner, each in flax_children(child))
        elif list(child.parameters()):
            yield name, child


def conv_plan(module, ours="", theirs=""):
    """Our name of each tensor to Flax's, with the order of axes that turns the latter into the former."""
    plan, counts = {}, {}
    for name, child in flax_children(module):
        kind = FLAX_NAMES[type(child)]
        number = counts.setdefault(kind, 0)
        counts[kind] += 1
        mine, path = f"{ours}{name}.", f"{theirs}{kind}_{number}/"
        if isinstance(child, nn.Conv2d):
            plan |= {f"{mine}weight": (f"{path}kernel", (3, 2, 0, 1)), f"{mine}bias": (f"{path}bias", (0,))}
        elif isinstance(child, nn.GroupNorm):
            plan |= {f"{mine}weight": (f"{path}scale", (0,)), f"{mine}bias": (f"{path}bias", (0,))}
        else:
            plan |= conv_plan(child, mine, path)
    return plan


def vqgan_plan(network):
    plan = conv_plan(network.encoder, "encoder.", "vqgan/encoder/")
    plan |= conv_plan(network.decoder, "decoder.", "vqgan/decoder/")
    for name in ("quant_conv", "post_quant_conv"):
        plan[f"{name}.weight"] = (f"vqgan/{name}/kernel", (3, 2, 0, 1))
        plan[f"{name}.bias"] = (f"vqgan/{name}/bias", (0,))
    return plan | {"codebook": ("vqgan/quantize/embeddings", (0, 1))}


def vqgan_shapes(network, plan):
    """Flax's shapes of the same tensors."""
    state = network.state_dict()
    shapes = {}
    for ours, (theirs, axes) in plan.items():
        inverse = np.argsort(axes)
        shapes[theirs] = tuple(state[ours].shape[axis] for axis in inverse)
    return shapes


def gpt_plan(config):
    """Flax's name to shape, and for each of our names where it is from."""
    width, classes = config.width, config.classes
    shapes, origin = {}, {}

    def put(ours, theirs, shape, kernel=False):
        shapes[f"gpt/model/{theirs}"] = shape
        origin[ours] = (f"gpt/model/{theirs}", kernel)

    def dense(ours, theirs, inputs, outputs, bias=None):
        put(f"{ours}.weight", f"{theirs}/kernel", (*inputs, *outputs), kernel=math.prod(inputs))
        put(f"{ours}.bias", f"{theirs}/bias", outputs)

    def norm(ours, theirs):
        if classes:
            put(f"{ours}.class_scale", f"{theirs}/Dense_0/kernel", (classes, width))
            put(f"{ours}.class_bias", f"{theirs}/Dense_1/kernel", (classes, width))
        else:
            put(f"{ours}.weight", f"{theirs}/scale", (width,))
            put(f"{ours}.bias", f"{theirs}/bias", (width,))

    part = width // 3
    for axis, size in enumerate((config.frames, config.grid, config.grid)):
        put(f"positions.{axis}", f"BroadcastPositionBiases_0/d_{axis}", (size, part))
    dense("embed", "Dense_0", (config.code_dim,), (width,))
    dense("head", "Dense_1", (width,), (config.codes,))
    norm("norm", "LayerNorm_0")
    put("start", "RightShift_0/sos", (width,))
    head = width // config.heads
    for number in range(config.layers):
        ours, theirs = f"blocks.{number}", f"TransformerLayer_{number}"
        dense(f"{ours}.fc1", f"{theirs}/Dense_0", (width,), (config.mlp,))
        dense(f"{ours}.fc2", f"{theirs}/Dense_1", (config.mlp,), (width,))
        norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0")
        norm(f"{ours}.norm2", f"{theirs}/LayerNorm_1")
        attention = f"{theirs}/MultiHeadAttention_0"
        dense(f"{ours}.qkv", f"{attention}/DenseGeneral_0", (width,), (config.heads, 3 * head))
        dense(f"{ours}.out", f"{attention}/DenseGeneral_1", (config.heads, head), (width,))
    return shapes, origin


def from_flax(value, rows):
    """A Dense kernel, inputs first, as a Linear's weight; other arrays flattened to what we have."""
    return torch.from_numpy(value.reshape(rows, -1).T.copy() if rows else value)


@pytest.fixture(scope="session")
def vqgan(stored):
    dim = stored["vq/expected_prequant_first4"].shape[-1]
    # Of the released shapes only the table's has two axes, and the second is that of the latents.
    shapes = stored["keys/vqgan/shape"]
    (codes,) = {int(shape[0]) for shape in shapes if shape[1] == dim and shape[2] == -1}
    config = ViperVQGANConfig(size=64, channels=(32, 64, 64, 64), dim=dim, codes=codes)
    network = viper_vqgan.viper_vqgan(config).eval()
    plan = vqgan_plan(network)
    drawn = generate_weights(vqgan_shapes(network, plan), stored["salt"], "flax")
    state = {ours: torch.from_numpy(drawn[theirs].transpose(axes).copy()) for ours, (theirs, axes) in plan.items()}
    network.load_state_dict(state, strict=True)
    return network


@pytest.fixture(scope="session")
def models(stored, vqgan):
    built = {}
    for case, (frames, _, classes) in CASES.items():
        codes, dim = vqgan.codebook.shape
        config = VideoGPTConfig(
            frames=frames,
            grid=8,
            codes=codes,
            code_dim=dim,
            classes=classes,
            width=33,
            heads=HEADS,
            layers=2,
            mlp=64,
        )
        network = VideoGPT(config).eval()
        shapes, origin = gpt_plan(config)
        drawn = generate_weights(shapes, stored["salt"], "flax")
        own = network.state_dict()
        state = {}
        for ours, (theirs, rows) in origin.items():
            state[ours] = from_flax(drawn[theirs], rows).reshape(own[ours].shape)
        network.load_state_dict(state, strict=True)
        built[case] = Likelihood(network, vqgan.codebook.detach()).eval()
    return built


def images(video, mask=None):
    pixels = video if mask is None else video * mask
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="session")
def latents(stored, vqgan):
    """(frames, L * z), as the exported encoder gives them."""

    @torch.inference_mode()
    def encode(mask=None):
        found = vqgan.encode(images(stored["vq/video"], mask))
        return found.permute(0, 2, 3, 1).flatten(1).numpy()

    return encode


def labels_of(case, count, label=LABEL):
    return torch.full((count,), label) if CASES[case][2] else None


def windows(codes, case):
    """All windows, (windows, frames, L); the last frame of each is included."""
    frames, skip, _ = CASES[case]
    length = frames * skip
    starts = range(len(codes) - length + 1)
    return torch.stack([codes[start + skip - 1 : start + length : skip] for start in starts])


@pytest.fixture(scope="session")
def codes(stored):
    return torch.from_numpy(stored["vq/expected_codes"]).flatten(1)


def close(found, expected, absolute=0.0, relative=0.0):
    np.testing.assert_array_less(np.abs(found - expected), absolute + relative * np.maximum(1, np.abs(expected)))


def test_keys_and_shapes_are_the_released_ones(stored, vqgan, models):
    def check(shapes, keys):
        names = sorted(shapes)
        assert [zlib.crc32(name.encode()) for name in names] == stored[f"keys/{keys}/crc32"].tolist()
        padded = [[*shapes[name], *[-1] * (4 - len(shapes[name]))] for name in names]
        assert padded == stored[f"keys/{keys}/shape"].tolist()

    check(vqgan_shapes(vqgan, vqgan_plan(vqgan)), "vqgan")
    for case, model in models.items():
        check(gpt_plan(model.network.config)[0], f"gpt_{case}")


def test_generated_weights(stored, vqgan):
    checks = [key for key in stored if key.startswith("weights_check/")]
    assert checks
    drawn = generate_weights(vqgan_shapes(vqgan, vqgan_plan(vqgan)), stored["salt"], "flax")
    for key in checks:
        np.testing.assert_array_equal(drawn[key.removeprefix("weights_check/")].ravel()[:6], stored[key])


def test_vqgan(stored, vqgan):
    with torch.inference_mode():
        found = vqgan.encode(images(stored["vq/video"]))
        codes, quantized, loss = vqgan.quantize(found)
        reconstructed = vqgan.decode(quantized).permute(0, 2, 3, 1).numpy()
        decoded = vqgan.decode_codes(codes).permute(0, 2, 3, 1).numpy()
    close(found[:4].permute(0, 2, 3, 1).numpy(), stored["vq/expected_prequant_first4"], relative=1e-4)
    np.testing.assert_array_equal(codes.numpy(), stored["vq/expected_codes"].reshape(len(codes), -1))
    close(float(loss), stored["vq/expected_vq_loss"], relative=1e-4)
    close(float(perplexity(codes, len(vqgan.codebook))), stored["vq/expected_perplexity"], relative=1e-4)
    close(reconstructed[:, ::4, ::4], stored["vq/expected_recon_slice"], relative=1e-4)
    flat = reconstructed.reshape(len(reconstructed), -1).astype(np.float64)
    sums = np.stack([flat.sum(axis=1), np.sqrt(np.square(flat).sum(axis=1))], axis=1)
    # A sum over 12288 values of either sign: its rounding follows their size, not its own.
    close(sums[:, 1], stored["vq/expected_recon_sum_l2"][:, 1], relative=1e-4)
    close(sums[:, 0], stored["vq/expected_recon_sum_l2"][:, 0], absolute=1e-4 * np.abs(flat).sum(axis=1).max())
    np.testing.assert_allclose(decoded, reconstructed, atol=1e-4)


def test_codes_on_the_host(stored, vqgan, latents):
    codes, _ = quantize(latents(), vqgan.codebook.detach().numpy())
    np.testing.assert_array_equal(codes, stored["vq/expected_codes"].reshape(len(codes), -1))


@pytest.mark.parametrize("case", CASES)
def test_logits(stored, models, codes, case):
    model, first = models[case], windows(codes, case)[:1]
    with torch.inference_mode():
        found = model.network(nn.functional.embedding(first, model.codebook), labels_of(case, 1))
    expected = stored[f"logits/{case}/expected_first_window"]
    close(found[0].reshape(expected.shape).numpy(), expected, absolute=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities(stored, models, codes, case):
    model, all_windows = models[case], windows(codes, case)
    with torch.inference_mode():
        found = model(all_windows, labels_of(case, len(all_windows)))
    close(found.numpy(), stored[f"logprob/{case}/expected_frame_logprob"], absolute=2e-3)
    nll = -float(found[0].mean()) / codes.shape[1]
    close(nll, stored[f"logprob/{case}/expected_mean_token_nll_first_window"], absolute=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2]])
def test_log_probabilities_of_all_classes(stored, models, codes, case):
    first = windows(codes, case)[:1].expand(CASES[case][2], -1, -1)
    with torch.inference_mode():
        found = models[case](first, torch.arange(len(first)))
    close(found.numpy(), stored[f"logprob/{case}/expected_all_labels_first_window"], absolute=2e-3)


def test_log_probabilities_of_tokens(stored, models, codes):
    expected = stored["reward/s4k1_class/conditional/expected_per_token_last_step"]
    last = windows(codes, "s4k1_class")[-1:]
    with torch.inference_mode():
        found = models["s4k1_class"].tokens(last, labels_of("s4k1_class", 1))
    close(found[0, -1].reshape(expected.shape).numpy(), expected, absolute=1e-3)


def make_reward(models, case, mode, incomplete="official", **options):
    model = models[case]
    frames, stride, classes = CASES[case]

    def likelihood(codes, label=None):
        with torch.inference_mode():
            chosen = None if label is None else torch.from_numpy(label)
            return model(torch.from_numpy(codes), chosen).numpy()

    tensors = {"codebook": model.codebook.numpy(), "quantization_threshold": np.float32(1e6)}
    return ViperReward(
        lambda frames: pytest.fail("embed is not called"),
        {"likelihood": likelihood},
        tensors,
        frames=frames,
        stride=stride,
        mode=mode,
        incomplete=incomplete,
        classes=classes,
        label=LABEL if classes else 0,
        **options,
    )


def rewards(reward, embeddings):
    return np.array([sample.reward for sample in reward.observe_many(embeddings[:, None])])


TOLERANCE = {"conditional": 2e-3, "joint": 5e-3}


@pytest.mark.parametrize("mode", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_rewards(stored, models, latents, case, mode):
    frames, skip, _ = CASES[case]
    found = rewards(make_reward(models, case, mode), latents())
    close(found, stored[f"reward/{case}/{mode}/expected_per_step"], absolute=TOLERANCE[mode])
    whole = frames * skip - 1
    close(found[whole:], stored[f"reward/{case}/{mode}/expected_returned_density"], absolute=TOLERANCE[mode])


@pytest.mark.parametrize("mode", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_rewards_of_a_sequence_that_starts_within_an_episode(stored, models, latents, case, mode):
    frames, skip, _ = CASES[case]
    found = rewards(make_reward(models, case, mode, "nan"), latents())
    expected = stored[f"reward/{case}/{mode}/expected_per_step_not_first"]
    whole = frames * skip - 1
    assert np.isnan(expected[:whole]).all()
    close(found[whole:], expected[whole:], absolute=TOLERANCE[mode])
    # The release waits for frames * skip steps, although a window reaches over skip - 1 less.
    span = (frames - 1) * skip
    assert np.isnan(found[:span]).all()
    assert np.isfinite(found[span:]).all()


def test_a_sequence_of_one_window(stored, models, latents):
    found = rewards(make_reward(models, "s4k1_class", "conditional"), latents()[:4])
    close(found, stored["reward/s4k1_class/conditional/expected_four_frame_sequence"], absolute=2e-3)


def test_a_sequence_that_is_too_short_is_an_error(stored, models, latents, vqgan):
    assert stored["reward/short_sequence_is_an_error"] == 1
    reward = make_reward(models, "s4k1_class", "conditional")
    found = latents()
    reward.embed = lambda frames: found[: len(frames)]
    frames = stored["vq/video"]
    with pytest.raises(ValueError, match="3 frames given, a window takes 4"):
        reward.score(frames[:3])
    assert len(reward.score(frames[:4])) == 4


def test_a_sequence_that_is_extended(stored, models, latents):
    reward, found = make_reward(models, "s4k1_class", "conditional", "nan"), latents()
    values = np.concatenate([rewards(reward, found[:9]), rewards(reward, found[9:])])
    expected = stored["reward/s4k1_class/conditional/expected_after_extension"]
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    known = ~np.isnan(expected)
    close(values[known], expected[known], absolute=2e-3)


def test_masked_frames(stored, models, latents):
    found = rewards(make_reward(models, "s4k1_class", "conditional"), latents(stored["reward/mask"]))
    close(found, stored["reward/s4k1_class/conditional/expected_masked"], absolute=2e-3)


def test_scaled_rewards(stored, models, latents):
    low, high = stored["reward/scale_lo_hi"].tolist()
    found = rewards(make_reward(models, "s4k1_class", "joint", low=low, high=high), latents())
    close(found, stored["reward/s4k1_class/joint/expected_scaled"], absolute=1e-3)
