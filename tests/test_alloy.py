"""Local composition of alloys: where a foreign metal is, how much of it, and how certain that is."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from specimen_sites import PIXEL_NM, analysis_of

from stemdl_core.alloy import local_composition
from stemdl_core.analysis import FrameAnalysis
from stemdl_core.figures import composition_map, save_figure
from stemdl_core.frames import Frame
from stemdl_core.simulate.structures import graphene, mx2
from stemdl_core.writers import write_tables


def alloy(rng, *, fraction=0.0, cluster_nm=0.0, fov_nm=6.0) -> FrameAnalysis:
    """MoSe2 of which a part of the molybdenum is tungsten: at random places, or all within a circle in the middle."""
    specimen = mx2(material="MoSe2", fov_nm=fov_nm)
    numbers = specimen.atoms.numbers
    near = np.hypot(*(specimen.yx_nm - 0.5 * fov_nm).T) < cluster_nm
    numbers[(near | (rng.random(len(numbers)) < fraction)) & (numbers == 42)] = 74
    specimen.atoms.numbers = numbers
    return analysis_of(specimen, rng, intensity_noise=0.05)


def test_a_cluster_is_seen_where_it_is(rng):
    analysis = alloy(rng, cluster_nm=0.8)
    local = local_composition(analysis, "W", radius_nm=0.6)
    middle = np.hypot(*((analysis.sites.yx_px + 0.5) * PIXEL_NM - 3.0).T)
    assert local.fraction[middle < 0.2].min() == 1.0
    assert local.fraction[middle > 1.6].max() == 0.0
    # All of ten sites being tungsten does not make the composition exact.
    assert (local.sigma > 0.02).all()


def test_the_error_bar_is_that_of_counting():
    """Random alloys of x = 0.18: means agree, and local values scatter as their error bars say."""
    off = []
    for seed in range(4):
        analysis = alloy(np.random.default_rng(seed), fraction=0.18, fov_nm=8.0)
        x, sigma = analysis.alloy["W"]
        assert abs(x - 0.18) < 3.5 * sigma
        local = local_composition(analysis, "W")
        middle = ((analysis.sites.yx_px > 110) & (analysis.sites.yx_px < analysis.shape[0] - 110)).all(axis=1)
        assert local.count[middle].min() > 25
        off += ((local.fraction - 0.18) / local.sigma)[middle].tolist()
    assert np.std(off) == pytest.approx(1.0, abs=0.25)


def test_it_stands_in_the_table_and_as_a_map(rng, tmp_path):
    analysis = alloy(rng, cluster_nm=0.8)
    write_tables(tmp_path, analysis)
    with (tmp_path / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    local = local_composition(analysis, "W")
    assert [float(r["local_W"]) for r in rows] == pytest.approx(local.fraction.tolist())
    assert [float(r["local_W_sigma"]) for r in rows] == pytest.approx(local.sigma.tolist())
    frame = Frame(rng.normal(size=analysis.shape).astype(np.float32), analysis.pixel_size)
    figure = composition_map(frame, analysis, "W")
    save_figure(figure, tmp_path / "composition-W.png")
    (tint,) = [i for i in figure.axes[0].images + figure.axes[1].images if i.get_array().ndim == 2
               and i.get_cmap().name == "viridis"]
    values = np.ma.filled(tint.get_array(), np.nan)
    assert np.nanmax(values[100:120, 100:120]) == pytest.approx(local.fraction.max())
    assert np.nanmax(values[:30]) == 0.0


def test_without_an_alloy_nothing_is_added(rng, tmp_path):
    analysis = analysis_of(graphene(fov_nm=2.0), rng)
    write_tables(tmp_path, analysis)
    assert "local" not in (tmp_path / "sites.csv").read_text()
