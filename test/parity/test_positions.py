"""Our position tables against the released ones (sin-cos checks of sections 2, 6, 7 and 8 of the parity kit)."""

import numpy as np
import pytest

from v2r_core.nn.positions import sincos_2d, sincos_3d

ROW_FIRST, COLUMN_FIRST = "row", "column"


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize(
    ("file", "check", "order", "prefix"),
    [
        ("mocov3.npz", "sincos", ROW_FIRST, 1),
        ("mae.npz", "sincos", COLUMN_FIRST, 1),
        ("ijepa.npz", "sincos", COLUMN_FIRST, 0),
        ("vjepa.npz", "sincos2d", ROW_FIRST, 0),
    ],
)
def test_tables_of_images(parity_file, file, check, order, prefix):
    stored = parity_file(file)
    grid = int(stored[f"{check}/grid"])
    expected = stored[f"{check}/expected_table"]
    found = sincos_2d(int(stored[f"{check}/embed_dim"]), (grid, grid), order, prefix)
    assert_close(found, expected.reshape(found.shape))


@pytest.mark.parametrize(
    ("file", "check", "order", "prefix"),
    [
        ("mocov3.npz", "sincos_vit_small", ROW_FIRST, 1),
        ("mae.npz", "sincos_vit_base", COLUMN_FIRST, 1),
        ("ijepa.npz", "sincos_vit_huge", COLUMN_FIRST, 0),
    ],
)
def test_rows_of_large_tables_of_images(parity_file, file, check, order, prefix):
    stored = parity_file(file)
    grid = int(stored[f"{check}/grid"])
    table = sincos_2d(int(stored[f"{check}/embed_dim"]), (grid, grid), order, prefix)
    rows = table[:: int(stored[f"{check}/row_stride"])]
    assert_close(rows, stored[f"{check}/expected_rows"].reshape(rows.shape))


@pytest.mark.parametrize("uniform", [True, False])
def test_table_of_clips(parity_file, uniform):
    stored = parity_file("vjepa.npz")
    grid, depth = int(stored["sincos3d/grid"]), int(stored["sincos3d/depth"])
    found = sincos_3d(int(stored["sincos3d/embed_dim"]), (depth, grid, grid), uniform)
    assert_close(found, stored["sincos3d/expected_uniform" if uniform else "sincos3d/expected_non_uniform"])


def test_rows_of_the_large_table_of_clips(parity_file):
    stored = parity_file("vjepa.npz")
    check = "sincos3d_vit_large"
    grid, depth = int(stored[f"{check}/grid"]), int(stored[f"{check}/depth"])
    table = sincos_3d(int(stored[f"{check}/embed_dim"]), (depth, grid, grid))
    assert_close(table[:: int(stored[f"{check}/row_stride"])], stored[f"{check}/expected_uniform_rows"])
