"""Matching and counting: the ruler itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemdl_core.bench import expected_calibration_error, to_markdown
from stemdl_core.evaluate import SiteCounts, compare_sites, match
from stemdl_core.tuning import _knots


def test_matches_are_one_to_one_and_nearest_in_total():
    true = np.array([[0.0, 0.0], [0.0, 3.0]])
    found = np.array([[0.0, 2.0], [0.0, 4.9]])
    # The nearest true position of both is (0, 3); together they match best the other way round.
    assert match(found, true, within_px=2.5).tolist() == [[0, 0], [1, 1]]
    assert match(found, true, within_px=1.5).tolist() == [[0, 1]]
    assert match(found[:0], true, within_px=2.0).shape == (0, 2)


@given(st.integers(0, 40), st.integers(0, 10), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_counts_add_up(n, extra, seed):
    rng = np.random.default_rng(seed)
    true = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)[:n] * 10.0 + 12
    found = np.concatenate([true + rng.normal(0, 0.3, true.shape), rng.uniform(100, 140, (extra, 2))])
    result = compare_sites(found, true, counted=np.ones(n, bool), undefined=np.zeros((160, 160), bool),
                           within_px=3.0, border_px=5.0)
    assert result.counts == SiteCounts(n, extra, 0)
    assert result.counts.recall == 1.0


def test_border_hidden_and_undefined_do_not_count():
    undefined = np.zeros((100, 100), bool)
    undefined[40:60] = True
    true = np.array([[20.0, 20.0], [2.0, 50.0], [50.0, 50.0], [80.0, 80.0]])
    found = np.array([[20.0, 20.0], [1.0, 30.0], [55.0, 20.0], [70.0, 30.0]])
    counted = np.array([True, True, False, True])
    result = compare_sites(found, true, counted=counted, undefined=undefined, within_px=2.0, border_px=5.0)
    assert result.counts == SiteCounts(1, 1, 1)
    assert result.false.tolist() == [3]
    assert result.missed.tolist() == [3]


def test_empty_scores_are_defined():
    assert SiteCounts().f1 == SiteCounts().precision == SiteCounts().recall == 1.0
    assert SiteCounts(8, 2, 2).f1 == pytest.approx(0.8)


def test_calibration_error_of_known_cases():
    honest = np.array([[0.75, 1.0]] * 3 + [[0.75, 0.0]])
    assert expected_calibration_error(honest) == pytest.approx(0.0)
    boastful = np.array([[0.95, 0.0]] * 10)
    assert expected_calibration_error(boastful) == pytest.approx(0.95)


def test_score_curve_is_monotonic_and_honest(rng):
    response = rng.uniform(0, 1, 20000)
    truth = (rng.random(20000) < response**0.5).astype(float)
    x, y = _knots(response, truth)
    assert np.all(np.diff(x) > 0)
    assert np.all(np.diff(y) >= 0)
    assert np.abs(np.interp([0.1, 0.5, 0.9], x, y) - np.sqrt([0.1, 0.5, 0.9])).max() < 0.06


def test_tables_print_as_markdown():
    import pandas as pd

    text = to_markdown(pd.DataFrame({"a": [1], "b": [0.123456]}))
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 0.1235 |"]
