"""Class maps keep sub-pixel positions, and the Laplacian of Gaussian gets them back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from stemdl_core.peaks import find_peaks, in_mask, masked_area, near_border, scores
from stemdl_core.targets import class_map
from stemdl_core.weights import ModelCard

CARD = ModelCard(name="t", materials=("graphene",), architecture="unet", filters=(4, 8),
                 classes=("background", "lattice", "dopant", "vacancy", "masked"), pixel_size_nm=0.02, radius_nm=0.03,
                 dopant="Si", thresholds={"site": 0.4, "masked": 0.5}, recipe={"vacancy_radius_nm": 0.045},
                 score_knots=((0.2, 0.6, 1.0), (0.1, 0.9, 1.0)))


def one_hot(target: np.ndarray) -> np.ndarray:
    return np.stack([(target == k).astype(np.float32) for k in range(5)])


def test_no_positions_give_background():
    assert not class_map(np.empty((0, 2)), np.empty(0, int), shape=(20, 30), radius_px=1.5).any()


def test_disc_area_and_nearest_label_win():
    positions = np.array([[20.0, 20.0], [20.0, 23.0]])
    target = class_map(positions, np.array([1, 2]), shape=(40, 40), radius_px=2.0)
    assert target[20, 20] == 1
    assert target[20, 23] == 2
    assert target[20, 21] == 1
    assert target[20, 22] == 2
    assert (target > 0).sum() == pytest.approx(2 * np.pi * 4, rel=0.25)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.floats(-2, 2), st.floats(-2, 2), st.booleans()),
                max_size=25, unique_by=lambda t: t[:2]))
@settings(max_examples=40, deadline=None)
def test_positions_and_classes_come_back(cells):
    # One position per 9-pixel cell, jittered: never closer than 5 pixels to each other.
    positions = np.array([[9 * r + 8 + dy, 9 * c + 8 + dx] for r, c, dy, dx, _ in cells], float).reshape(-1, 2)
    labels = np.array([2 if d else 1 for *_, d in cells], int)
    peaks = find_peaks(CARD, one_hot(class_map(positions, labels, shape=(72, 72), radius_px=1.5)))
    assert len(peaks.yx_px) == len(positions)
    if len(positions):
        distance = np.linalg.norm(peaks.yx_px[:, None] - positions[None], axis=2)
        nearest = distance.argmin(axis=0)
        assert len(set(nearest)) == len(positions)
        assert distance.min(axis=0).max() < 0.6
        assert np.array_equal(peaks.dopant[nearest], labels == 2)
        assert peaks.response.min() > 0.6
    assert peaks.vacancies_px.shape == (0, 2)


def test_blobs_that_touch_are_separated():
    # Two discs in contact, 92 pm apart on the card's grid: closer than any bond.
    positions = np.array([[30.0, 30.0], [30.0, 34.6]])
    target = class_map(positions, np.array([1, 1]), shape=(60, 60), radius_px=2.3)
    assert (target[30, 28:37] == 1).all()
    assert len(find_peaks(CARD, one_hot(target)).yx_px) == 2


def test_empty_maps_give_empty_columns():
    maps = np.zeros((5, 40, 40), np.float32)
    maps[0] = 1
    peaks = find_peaks(CARD, maps)
    assert peaks.yx_px.shape == (0, 2)
    assert peaks.yx_px.dtype == np.float64
    assert peaks.dopant.dtype == bool


def test_weak_blobs_are_left_out_and_scores_are_monotonic():
    target = class_map(np.array([[20.0, 20.0], [20.0, 40.0]]), np.array([1, 1]), shape=(40, 60), radius_px=1.5)
    maps = one_hot(target)
    maps[1, :, 30:] *= 0.2
    peaks = find_peaks(CARD, maps)
    assert len(peaks.yx_px) == 1
    assert abs(peaks.yx_px[0, 1] - 20) < 0.5
    values = scores(CARD, np.array([0.0, 0.3, 0.6, 0.8, 1.4]))
    assert np.all(np.diff(values) >= 0)
    assert values[0] == 0.1
    assert values[-1] == 1.0


def test_masked_area_needs_more_than_a_pixel():
    maps = np.zeros((5, 60, 60), np.float32)
    maps[4, 10, 10] = 1.0
    assert not masked_area(CARD, maps).any()
    maps[4, 30:, :] = 1.0
    mask = masked_area(CARD, maps)
    assert mask[45:].all()
    assert not mask[:20].any()
    assert np.array_equal(in_mask(mask, np.array([[5.0, 5.0], [50.0, 3.0]])), [False, True])


def test_border_and_mask_make_edges():
    mask = np.zeros((50, 50), bool)
    mask[:, 30:] = True
    sites = np.array([[50.0, 20.0], [2.0, 20.0], [50.0, 55.0], [50.0, 40.0]])
    near = near_border(sites, (100, 100), 6.0, mask, 0.5)
    assert near.tolist() == [False, True, True, False]


@pytest.mark.parametrize("angle_deg", range(0, 90, 9))
def test_neighbours_along_the_diagonal_are_both_found(angle_deg):
    """Carbon neighbours at 20 pm a pixel, 132 pm apart in a strained or drifting frame, in all directions."""
    card = replace(CARD, radius_nm=0.025, thresholds={"site": 0.125, "masked": 0.5})
    step = 6.6 * np.array([np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))])
    for shift in np.stack(np.meshgrid(*[np.arange(0, 1, 0.2)] * 2), axis=-1).reshape(-1, 2):
        true = 20.0 + shift + np.stack([np.zeros(2), step])
        target = class_map(true, np.array([1, 1]), shape=(48, 48), radius_px=1.25)
        probability = one_hot(target)
        probability[1, :, :] *= np.where(np.indices((48, 48))[1] > 20.0 + shift[1] + 0.5 * step[1], 0.8, 1.0)
        found = find_peaks(card, probability)
        assert len(found.yx_px) == 2
        assert cKDTree(found.yx_px).query(true)[0].max() < 0.7
