"""VIP training against the released trainer: sampler, loss, gradient, one step; losses of R3M and LIV beside it."""

import numpy as np
import pytest
import torch
from weights import generate_weights

from v2r_core.methods.method import Horizon
from v2r_core.methods.vip import Vip, VipRecipe, sample_transition, tcn_loss, vip_loss

CASES = ("n0", "n3", "n3_b32", "n1_g90", "n2_pen")


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("vip.npz")


def close(found, expected, tolerance):
    """The kit's "rel": |a - b| <= tol * max(1, |b|)."""
    expected = float(expected)
    assert abs(float(found) - expected) <= tolerance * max(1.0, abs(expected))


def permutations(array):
    return torch.from_numpy(array) if len(array) else None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_loss_and_gradient(stored, case, precision):
    entry = {key.rpartition("/")[2]: stored[key] for key in stored.files if key.startswith(f"loss/{case}/")}
    suffix, scalar, gradient = ("", 2e-6, 2e-6) if precision == "float32" else ("_f64", 1e-10, 1e-10)
    phi = torch.from_numpy(entry["phi"]).to(getattr(torch, precision)).requires_grad_()
    torch.manual_seed(int(entry["seed"]))
    drawn = [torch.randperm(len(phi)).tolist() for _ in range(int(entry["num_negatives"]))]
    assert drawn == entry["perms"].tolist()
    vip = vip_loss(phi, permutations(entry["perms"]), float(entry["gamma"]))["loss"]
    l1, l2 = phi.abs().sum(-1).mean(), phi.norm(dim=-1).mean()
    full = vip + float(entry["l2_weight"]) * l2 + float(entry["l1_weight"]) * l1
    full.backward()
    for name, value in (("vip", vip), ("l1", l1), ("l2", l2), ("full", full)):
        close(value.detach(), entry[f"expected_{name}{suffix}"], scalar)
    assert np.abs(phi.grad.numpy() - entry[f"expected_grad{suffix}"]).max() <= gradient


@pytest.mark.parametrize("case", ["len50", "len12", "len3"])
def test_sampler(stored, case):
    rng = np.random.RandomState(int(stored[f"sampler/{case}/seed"]))
    frames = int(stored[f"sampler/{case}/video_length"])
    expected = stored[f"sampler/{case}/expected_start_end_k_k1"]
    found = []
    for _ in expected:
        assert rng.randint(0, 1) == 0  # the choice of the video
        found.append(sample_transition(frames, rng.randint))
    assert np.array_equal(found, expected)


def test_sampler_has_the_distribution_of_the_release():
    frames, draws = 6, 20_000
    rng = np.random.default_rng(5)
    counts = np.zeros((frames,) * 3)
    for _ in range(draws):
        start, end, k, after = sample_transition(frames, rng.integers)
        assert after == min(k + 1, end)
        counts[start, end, k] += 1
    chi2, cells = 0.0, 0
    for start in range(frames - 2):
        for end in range(start + 1, frames):
            for k in range(start, end):
                expected = draws / (frames - 2) / (frames - 1 - start) / (end - start)
                chi2 += (counts[start, end, k] - expected) ** 2 / expected
                cells += 1
    assert counts.sum() == draws
    assert chi2 < cells + 4 * np.sqrt(2 * cells)


def test_training_step(stored):
    outputs = next(
        int(shape[0]) for shape in stored["keys/resnet18_8/shape"] if shape[1] == 512 and (shape[2:] == -1).all()
    )
    recipe = VipRecipe(encoder="resnet18", freeze=False, size=224, dim=outputs)
    method = Vip(recipe, Horizon(steps_per_epoch=1, epochs=1, batch_size=4, examples=4))
    network = method.base.backbone
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    network.load_state_dict(
        {key: torch.from_numpy(value) for key, value in generate_weights(shapes, int(stored["salt"])).items()}
    )
    index = np.arange(224) * 32 // 224
    frames = torch.from_numpy(stored["step/frames_32"][..., index, :][..., index]).float() / 255
    method.train()
    torch.manual_seed(int(stored["step/seed"]))
    optimizer = method.optimizer()
    outcome = method({"views": [frames.transpose(1, 2)], "names": []}, 0)
    outcome.loss.backward()
    found = [outcome.metrics["l2"], outcome.metrics["l1"], outcome.metrics["vip"], outcome.loss.detach()]
    for value, expected in zip(found, stored["step/expected_l2_l1_vip_full"], strict=True):
        close(value, expected, 2e-5)
    named = dict(sorted(network.named_parameters()))
    for parameter, (_, norm) in zip(named.values(), stored["step/expected_grad_sum_l2"], strict=True):
        assert abs(float(parameter.grad.double().norm()) - norm) <= 5e-3 * abs(norm) + 1e-6
    optimizer.step()
    for parameter, (total, norm) in zip(named.values(), stored["step/expected_param_sum_l2"], strict=True):
        close(parameter.detach().double().norm(), norm, 1e-4)
        assert abs(float(parameter.detach().double().sum()) - total) <= 0.05
    for name in ("running_mean", "running_var"):
        expected = stored[f"step/expected_bn1_{name}"]
        error = np.abs(getattr(network.bn1, name).numpy() - expected) / np.maximum(1, np.abs(expected))
        assert error.max() <= 1e-5


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_r3m_time_contrastive_loss(parity_file, precision):
    file = parity_file("r3m.npz")
    suffix, tolerance = ("", 2e-6) if precision == "float32" else ("_f64", 1e-10)
    phi = torch.from_numpy(file["loss/tcn/phi"]).to(getattr(torch, precision)).requires_grad_()
    parts = tcn_loss(phi, torch.from_numpy(file["loss/tcn/perms"]))
    close(parts["loss"].detach(), file[f"loss/tcn/expected_tcnloss{suffix}"], tolerance)
    close(parts["aligned"], file[f"loss/tcn/expected_aligned{suffix}"], tolerance)
    norms = phi.norm(dim=-1).mean(), phi.abs().sum(-1).mean()
    (parts["loss"] + 1e-5 * norms[0] + 1e-5 * norms[1]).backward()
    assert np.abs(phi.grad.numpy() - file[f"loss/tcn/expected_grad{suffix}"]).max() <= tolerance


@pytest.mark.parametrize("case", ["n0", "n2"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_liv_value_loss(parity_file, case, precision):
    file = parity_file("liv.npz")
    suffix, tolerance = ("", 1e-5) if precision == "float32" else ("_f64", 1e-9)
    dtype = getattr(torch, precision)
    phi = torch.from_numpy(file[f"loss/{case}/phi"]).to(dtype)
    text = torch.from_numpy(file[f"loss/{case}/text"]).to(dtype)
    perms, gamma = file[f"loss/{case}/perms"], float(file[f"loss/{case}/gamma"])
    half = len(perms) // 2
    visual = vip_loss(phi, permutations(perms[:half]), gamma, "cosine")["loss"]
    language = vip_loss(phi, permutations(perms[half:]), gamma, "cosine", goals=text)["loss"]
    close(visual, file[f"loss/{case}/expected_vip_visual{suffix}"], tolerance)
    close(language, file[f"loss/{case}/expected_vip_language{suffix}"], tolerance)
