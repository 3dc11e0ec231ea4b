"""Our UVD against the released code: decomposition, smoothing and subgoal switching (section 2 of the parity kit)."""

import numpy as np
import pytest

from v2r_core.rewards.uvd import SubgoalSwitch, decompose, smooth_curve

TRAJECTORIES = [f"t{number:02}" for number in range(1, 13)]
GAMMAS = ["0.005", "0.02", "0.08", "0.5"]
INTERVALS = ["5", "15", "18", "30", "50"]
CURVE_TOLERANCE = 1e-5
KERNEL_TOLERANCE = 1e-9
TRACE_TOLERANCE = 1e-5


def unpad(indices):
    return indices[indices >= 0]


@pytest.fixture(scope="module")
def stored(parity_file):
    return parity_file("uvd.npz")


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_indices_levels_curves_and_targets(stored, name):
    found = decompose(stored[f"traj/{name}/emb"], keep_curves=True)
    np.testing.assert_array_equal(found.indices, unpad(stored[f"traj/{name}/expected_indices"]))
    np.testing.assert_array_equal(found.target_index, stored[f"traj/{name}/expected_target_index"])
    assert len(found.curves) == stored[f"traj/{name}/expected_num_levels"]
    expected = stored[f"traj/{name}/expected_curves"]
    assert np.isnan(expected[len(found.curves) :]).all()
    for curve, row in zip(found.curves, expected, strict=False):
        np.testing.assert_allclose(curve, row[: len(curve)], rtol=0, atol=CURVE_TOLERANCE)
        assert np.isnan(row[len(curve) :]).all()


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_looking_back_only_as_far_as_needed_changes_nothing(stored, name, monkeypatch):
    monkeypatch.setattr("v2r_core.rewards.uvd.LOOKBACK", 24)
    found = decompose(stored[f"traj/{name}/emb"])
    np.testing.assert_array_equal(found.indices, unpad(stored[f"traj/{name}/expected_indices"]))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_normalised_curves(stored, name):
    found = decompose(stored[f"traj/{name}/emb"], normalize=True, keep_curves=True)
    np.testing.assert_array_equal(found.indices, unpad(stored[f"traj/{name}/expected_indices_normalized"]))
    if found.curves:
        expected = stored[f"traj/{name}/expected_first_curve_normalized"]
        np.testing.assert_allclose(found.curves[0], expected, rtol=0, atol=CURVE_TOLERANCE)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_kernel_widths(stored, name, gamma):
    found = decompose(stored[f"traj/{name}/emb"], gamma=float(gamma)).indices
    np.testing.assert_array_equal(found, unpad(stored[f"traj/{name}/expected_indices_gamma{gamma}"]))


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_intervals(stored, name, interval):
    found = decompose(stored[f"traj/{name}/emb"], min_interval=int(interval)).indices
    np.testing.assert_array_equal(found, unpad(stored[f"traj/{name}/expected_indices_minint{interval}"]))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_without_smoothing(stored, name):
    found = decompose(stored[f"traj/{name}/emb"], smooth=False).indices
    np.testing.assert_array_equal(found, unpad(stored[f"traj/{name}/expected_indices_nosmooth"]))


def test_maxima_are_not_minima(stored):
    wrong = [unpad(stored[f"traj/{name}/expected_indices_minima"]).tolist() for name in TRAJECTORIES]
    ours = [decompose(stored[f"traj/{name}/emb"]).indices.tolist() for name in TRAJECTORIES]
    assert wrong != ours


@pytest.mark.parametrize("gamma", ["0.08", "0.5"])
def test_kernel_regression(stored, gamma):
    found = smooth_curve(stored["kernel/y"], float(gamma))
    np.testing.assert_allclose(found, stored[f"kernel/expected_gamma{gamma}"], rtol=0, atol=KERNEL_TOLERANCE)


def test_the_scale_of_an_encoder_does_not_matter(stored):
    for name in TRAJECTORIES[:4]:
        embeddings = stored[f"traj/{name}/emb"]
        np.testing.assert_array_equal(decompose(4 * embeddings).indices, decompose(embeddings).indices)


CASES = {
    "default": {},
    "thresh0.4": {"threshold": 0.4},
    "delay3": {"delay": 3},
    "budget": {"demo_indices": True},
}


@pytest.mark.parametrize("case", CASES)
def test_subgoal_switching(stored, case):
    milestones = stored["switch/milestones"]
    options = dict(CASES[case])
    if options.pop("demo_indices", False):
        options["demo_indices"] = stored["switch/demo_indices"]
    switch = SubgoalSwitch(len(milestones), **options)
    steps = [switch.observe(np.linalg.norm(milestones - seen, axis=1)) for seen in stored["switch/rollout"]]
    columns = {
        "target_before": [step.target for step in steps],
        "achieved_after": [step.achieved for step in steps],
        "raw_distance": [step.raw_distance for step in steps],
        "normalized_distance": [step.normalized_distance for step in steps],
        "reference_distance_after": [step.reference for step in steps],
    }
    for name, column in columns.items():
        expected = stored[f"switch/{case}/expected_{name}"]
        if expected.dtype.kind == "i":
            np.testing.assert_array_equal(column, expected, err_msg=name)
        else:
            np.testing.assert_allclose(column, expected, rtol=0, atol=TRACE_TOLERANCE, err_msg=name)
