"""Our schedules against the released ones: all schedule checks of the parity kit."""

import numpy as np
import pytest

from v2r_core.nn import schedules


def assert_schedule(found, expected):
    found = np.asarray(found)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def arguments(stored, check):
    """Everything that a check calls an argument: integers stay integers."""
    prefix = f"{check}/arg_"
    return {key.removeprefix(prefix): stored[key].tolist() for key in stored.files if key.startswith(prefix)}


def test_moco_v2_falls_along_a_cosine(parity_file):
    stored = parity_file("moco.npz")
    given = arguments(stored, "schedule_cosine")
    expected = stored["schedule_cosine/expected_lr"]
    found = [schedules.half_cosine(epoch, given["lr"], given["epochs"]) for epoch in range(len(expected))]
    assert_schedule(found, expected)


def test_moco_v1_falls_in_steps(parity_file):
    stored = parity_file("moco.npz")
    given = arguments(stored, "schedule_step")
    expected = stored["schedule_step/expected_lr"]
    found = [schedules.step_decay(epoch, given["lr"], given["milestones"]) for epoch in range(len(expected))]
    assert_schedule(found, expected)


def test_moco_v3(parity_file):
    stored = parity_file("mocov3.npz")
    given = arguments(stored, "schedule")
    epochs, warmup = given["epochs"], given["warmup_epochs"]
    times = stored["schedule/epoch"].tolist()
    lr = [schedules.warmup_half_cosine(time, given["lr"], 0.0, warmup, epochs) for time in times]
    assert_schedule(lr, stored["schedule/expected_lr"])
    momentum = [schedules.cosine_momentum(time, given["m"], epochs) for time in times]
    assert_schedule(momentum, stored["schedule/expected_m"])


@pytest.mark.parametrize("scaling", ["linear", "sqrt"])
def test_simclr(parity_file, scaling):
    stored = parity_file("simclr.npz")
    check = f"schedule_{scaling}"
    given = arguments(stored, check)
    batch = given["batch_size"]
    total, warmup = schedules.simclr_steps(given["num_examples"], batch, given["epochs"], given["warmup_epochs"])
    assert total == int(stored[f"{check}/expected_total_steps"])
    assert warmup == int(stored[f"{check}/expected_warmup_steps"])
    peak = given["base_lr"] * (batch / 256 if scaling == "linear" else batch**0.5)
    expected = stored[f"{check}/expected_lr"]
    found = [schedules.simclr_lr(step, peak, total, warmup) for step in range(len(expected))]
    # They compute in single precision.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * peak)


@pytest.mark.parametrize("check", ["schedule_lr", "schedule_wd", "schedule_momentum", "schedule_warm_from"])
def test_dino(parity_file, check):
    stored = parity_file("dino.npz")
    given = arguments(stored, check)
    count = given["iters_per_epoch"]
    found = schedules.warmup_cosine_table(
        given["base"],
        given["final"],
        given["epochs"] * count,
        given["warmup_epochs"] * count,
        given["start_warmup"],
    )
    assert_schedule(found, stored[f"{check}/expected"])


def test_teacher_temperature_of_dino(parity_file):
    stored = parity_file("dino.npz")
    given = arguments(stored, "teacher_temp")
    found = [
        schedules.teacher_temperature(epoch, given["warmup_temp"], given["temp"], given["warmup_epochs"])
        for epoch in range(given["epochs"])
    ]
    assert_schedule(found, stored["teacher_temp/expected"])


def dinov2_table(stored, check):
    given = arguments(stored, check)
    table = schedules.warmup_cosine_table(
        given["base_value"],
        given["final_value"],
        given["total_iters"],
        given["warmup_iters"],
        given["start_warmup_value"],
    )
    return table, given["final_value"]


@pytest.mark.parametrize("check", ["schedule_lr", "schedule_wd", "schedule_momentum", "schedule_teacher_temp"])
def test_dinov2(parity_file, check):
    stored = parity_file("dinov2.npz")
    table, final = dinov2_table(stored, check)
    expected = stored[f"{check}/expected"]
    assert len(expected) > len(table)
    assert_schedule([schedules.table_value(table, step, final) for step in range(len(expected))], expected)


def test_last_layer_of_dinov2_is_frozen_at_first(parity_file):
    stored = parity_file("dinov2.npz")
    table, final = dinov2_table(stored, "schedule_lr")
    frozen = arguments(stored, "schedule_last_layer_lr")["freeze_iters"]
    expected = stored["schedule_last_layer_lr/expected"]
    found = [0.0 if step < frozen else schedules.table_value(table, step, final) for step in range(len(expected))]
    assert_schedule(found, expected)


def test_mae(parity_file):
    stored = parity_file("mae.npz")
    given = arguments(stored, "schedule")
    found = [
        schedules.warmup_half_cosine(time, given["lr"], given["min_lr"], given["warmup_epochs"], given["epochs"])
        for time in stored["schedule/epoch"].tolist()
    ]
    assert_schedule(found, stored["schedule/expected_lr"])


@pytest.mark.parametrize("file", ["ijepa.npz", "vjepa.npz"])
def test_jepa(parity_file, file):
    stored = parity_file(file)
    given = arguments(stored, "schedule")
    per_epoch, epochs, scale = given["ipe"], given["num_epochs"], given["ipe_scale"]
    warmup, total = int(given["warmup"] * per_epoch), int(scale * epochs * per_epoch)
    count = len(stored["schedule/expected_lr"])
    lr = [
        schedules.jepa_lr(step, given["start_lr"], given["ref_lr"], given["final_lr"], warmup, total)
        for step in range(1, count + 1)
    ]
    assert_schedule(lr, stored["schedule/expected_lr"])
    decay = [schedules.jepa_weight_decay(step, given["wd"], given["final_wd"], total) for step in range(1, count + 1)]
    assert_schedule(decay, stored["schedule/expected_wd"])
    length = per_epoch * epochs * scale
    momentum = [schedules.linear_momentum(i, given["ema_start"], given["ema_end"], length) for i in range(count)]
    assert_schedule(momentum, stored["schedule/expected_ema"])


def test_vjepa2_warms_up_stays_and_falls(parity_file):
    stored = parity_file("vjepa2.npz")
    check = "schedule_warmup_stable_decay"
    given = arguments(stored, check)
    expected = stored[f"{check}/expected_lr"]
    counts = (given["warmup_steps"], given["anneal_steps"], given["T_max"])
    rates = (given["start_lr"], given["ref_lr"], given["final_lr"])
    found = [schedules.warmup_stable_decay(step, *rates, *counts) for step in range(1, len(expected) + 1)]
    assert_schedule(found, expected)


def test_vjepa2_cools_down_on_a_line(parity_file):
    stored = parity_file("vjepa2.npz")
    given = arguments(stored, "schedule_linear_decay")
    expected = stored["schedule_linear_decay/expected_lr"]
    found = [
        schedules.linear_decay(step, given["ref_lr"], given["final_lr"], given["T_max"])
        for step in range(1, len(expected) + 1)
    ]
    assert_schedule(found, expected)
