"""Single columns that are no level of their own."""

import numpy as np
import pytest

from stemdl_core.detectors import all_detectors, chalcogen_readings, metal_readings
from stemdl_core.materials import get_material
from stemdl_core.rarities import rarities
from stemdl_core.sublattice import overstated

MATERIAL = get_material("MoSe2")
COLUMNS = 60


def of_chalcogens(value, sigma, expected=("Mo", "Se", "W")):
    readings = chalcogen_readings(MATERIAL)
    return rarities(value, np.full(len(value), sigma), 0.0, 0.02, readings, all_detectors().prior, expected)


def host(sigma, seed=0):
    return 1.0 + sigma * np.random.default_rng(seed).standard_normal(COLUMNS).clip(-2.0, 2.0)


def test_one_missing_chalcogen_in_a_small_field():
    value = host(0.12)
    value[7] = 0.5
    found = of_chalcogens(value, 0.12)
    assert found.index.tolist() == [7]
    assert found.reading[0].name == "V_Se"
    assert found.probability[0] > 0.8


def test_an_empty_site_is_told_from_one_missing_chalcogen():
    value = host(0.07)
    value[3] = 0.08
    found = of_chalcogens(value, 0.07)
    assert [r.name for r in found.reading] == ["V_Se2"]


@pytest.mark.parametrize(("sigma", "most"), [(0.06, 0), (0.12, 1), (0.2, 8), (0.3, 2)])
def test_noise_is_rarely_a_vacancy(sigma, most):
    false = sum(len(of_chalcogens(1.0 + sigma * np.random.default_rng(k).standard_normal(COLUMNS), sigma).index)
                for k in range(200))
    assert false <= most


@pytest.mark.parametrize(("sigma", "least"), [(0.1, 0.8), (0.15, 0.4)])
def test_vacancies_above_the_noise_are_found(sigma, least):
    found = 0
    for k in range(100):
        value = 1.0 + sigma * np.random.default_rng(k).standard_normal(COLUMNS)
        value[5] -= 0.5
        found += 5 in of_chalcogens(value, sigma).index
    assert found / 100 >= least


def test_no_more_is_claimed_than_is_right():
    rng = np.random.default_rng(2)
    stated, right = [], []
    for _ in range(1500):
        value, empty = 1.0 + 0.14 * rng.standard_normal(COLUMNS), rng.random(COLUMNS) < 0.02
        value[empty] -= 0.5
        found = of_chalcogens(value, 0.14)
        stated += found.probability.tolist()
        right += empty[found.index].tolist()
    assert len(stated) > 300
    assert np.mean(stated) - 0.02 < np.mean(right) < np.mean(stated) + 0.12


def test_elements_that_nobody_expects_are_not_named_after_one_column():
    value = host(0.06)
    value[4] = 1.3
    assert len(of_chalcogens(value, 0.06).index) == 0


def test_the_usual_dopant_comes_before_its_neighbours_in_the_periodic_table():
    value = host(0.1)
    value[9] = 2.0
    found = rarities(value, np.full(COLUMNS, 0.1), 0.0, 0.02, metal_readings(MATERIAL, None), all_detectors().prior,
                     ("Mo", "Se", "W"))
    assert [r.name for r in found.reading] == ["W_Mo"]


def test_errors_of_bright_columns_are_those_of_counts():
    # A host column that happens to be bright has the error of a host column, not that of its counts.
    value, sigma = host(0.1), np.full(COLUMNS, 0.1)
    value[9], sigma[9] = 1.9, 0.3
    readings = metal_readings(MATERIAL, None)
    found = [len(rarities(value, sigma, slope, 0.02, readings, all_detectors().prior, ("Mo", "Se", "W")).index)
             for slope in (0.0, (0.3**2 - 0.15**2) / 0.9)]
    assert found == [0, 1]


def test_nothing_is_something_where_nothing_is_measured():
    value = host(0.1)
    value[:5] = np.nan
    assert len(of_chalcogens(value, 0.1).index) == 0
    assert len(of_chalcogens(np.zeros(0), 0.1).index) == 0


def test_errors_wider_than_the_scatter_are_narrowed():
    rng = np.random.default_rng(1)
    value = 1.0 + 0.1 * rng.standard_normal(200)
    sides = [np.arange(100), np.arange(100, 200)]
    assert overstated(value, np.full(200, 0.2), sides) == pytest.approx(0.575, abs=0.08)
    assert overstated(value, np.full(200, 0.08), sides) == 1.0
    # One sublattice with levels of its own does not hide that errors are right.
    value[:50] += 1.0
    assert overstated(value, np.full(200, 0.2), sides) == 1.0
    assert overstated(value[:20], np.full(20, 0.2), [np.arange(10), np.arange(10, 20)]) == 1.0
