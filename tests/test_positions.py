"""Taps lie on linspace(-1, 1, k); a crop keeps the taps at which the mask is above its threshold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexseq.positions import kept_taps, tap_positions


@pytest.mark.parametrize("size", [2, 3, 17, 100, 16001])
def test_taps_are_a_linspace(size):
    torch.testing.assert_close(
        tap_positions((size,), dtype=torch.float64)[0], torch.linspace(-1, 1, size, dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_rows_come_first():
    positions = tap_positions((3, 5))
    assert positions.shape == (2, 3, 5)
    assert positions[0, :, 0].tolist() == [-1, 0, 1]
    assert positions[1, 0].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_single_tap_is_the_present_or_the_centre():
    assert tap_positions((1,), causal=True).tolist() == [[1.0]]
    assert tap_positions((1, 1)).tolist() == [[[0.0]], [[0.0]]]


def test_cropped_taps_are_those_of_the_whole():
    whole = tap_positions((33, 20))
    assert torch.equal(tap_positions((33, 20), keep=[(3, 9), (0, 20)]), whole[:, 3:9])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.floats(-1.5, 1.5), st.floats(0.001, 2), st.booleans())
def test_crop_keeps_the_taps_above_the_threshold(size, mean, sigma, causal):
    ((start, stop),) = kept_taps((size,), [mean], [sigma], threshold=0.1, causal=causal)
    positions = tap_positions((size,), causal=causal, dtype=torch.float64)[0]
    mask = torch.exp(-0.5 * ((positions - mean) / sigma) ** 2)
    kept = torch.zeros(size, dtype=torch.bool)
    kept[start:stop] = True
    cut = mean - sigma * math.sqrt(-2 * math.log(0.1))
    assert 0 <= start < stop <= size
    if causal:
        assert stop == size  # up to the present
        if abs(cut) >= 1:
            assert start == 0
        else:
            assert (positions[:start] <= cut + 1e-9).all()
            assert start == size - 1 or (positions[start:] > cut - 1e-9).all()
    else:
        assert start == size - stop  # symmetric about the centre
    if abs(mean) < 0.99 and not causal:
        assert (mask[~kept] <= 0.1 + 1e-6).all()


def test_threshold_of_zero_keeps_everything():
    assert kept_taps((50,), [1.0], [0.01], threshold=0, causal=True) == [(0, 50)]


def test_a_mask_that_shrank_to_nothing_keeps_one_tap():
    assert kept_taps((50,), [1.0], [1e-9], threshold=0.1, causal=True) == [(49, 50)]
    assert kept_taps((51,), [0.0], [1e-9], threshold=0.1, causal=False) == [(25, 26)]


def test_a_mask_of_nan_keeps_everything():
    assert kept_taps((50,), [1.0], [math.nan], threshold=0.1, causal=True) == [(0, 50)]
    assert kept_taps((50,), [math.nan], [0.1], threshold=0.1, causal=False) == [(0, 50)]
