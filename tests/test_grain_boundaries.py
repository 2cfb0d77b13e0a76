"""Grain boundaries: one defect each, whatever noise, holes and dirt have made of their rings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from specimen_sites import PIXEL_NM, graph_of, names_of, observed

from stemdl_core.analysis import Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.defects import find_defects
from stemdl_core.graph import build_graph
from stemdl_core.journal import analysis_from_dict
from stemdl_core.materials import get_material
from stemdl_core.ring_defects import OTHER_GRAIN, SAME_GRAIN_DEG, _joined
from stemdl_core.rings import Cluster, least_share, misorientation_deg, orientations_deg, turned_deg
from stemdl_core.simulate.grain_boundary import boundary_sheet
from stemdl_core.simulate.structures import _specimen


def test_grain_boundary_is_one_defect_with_its_misorientation():
    rng = np.random.default_rng(2)
    for variant in (0, 3):
        specimen = _specimen(boundary_sheet((5.0, 5.0), 0.5, rng, variant=variant), 5.0)
        sites, shape = observed(specimen, rng, noise_pm=6.0)
        graph = graph_of(sites, shape)
        (found,) = find_defects(graph)
        assert found.name == "GB(5-7)"
        assert found.misorientation_deg == misorientation_deg(graph, found.site_ids)
        assert found.to_dict()["misorientation_deg"] == found.misorientation_deg
        assert Defects((found,)).to_dataframe()["misorientation_deg"].tolist() == [found.misorientation_deg]
        truth = specimen.defects[0]
        overlap = len(set(found.site_ids)) / len(truth.site_ids)
        assert 0.85 < overlap < 1.2
        assert misorientation_deg(graph, found.site_ids) == pytest.approx(
            min(truth.angle_deg, 60 - truth.angle_deg), abs=2.0
        )


def test_the_misorientation_survives_the_journal():
    sites, shape = boundary(4.0, 0)
    graph = graph_of(sites, shape)
    found = find_defects(graph)
    analysis = FrameAnalysis("test", "graphene", shape, PixelSize(PIXEL_NM), sites, graph.bonds, found, graph.rings)
    read = analysis_from_dict(json.loads(json.dumps(analysis.to_dict())))
    assert [d.misorientation_deg for d in read.defects] == [d.misorientation_deg for d in found]
    assert np.isfinite(found.items[0].misorientation_deg)


def test_a_boundary_with_an_overlooked_atom_is_one_boundary():
    rng = np.random.default_rng(2)
    specimen = _specimen(boundary_sheet((5.0, 5.0), 0.5, rng, variant=0), 5.0)
    sites, shape = observed(specimen, rng, noise_pm=6.0)
    (whole,) = find_defects(graph_of(sites, shape))
    split = 0
    inner = np.hypot(*(sites.yx_px[list(whole.site_ids)] - np.array(whole.center_px)).T) * PIXEL_NM < 0.6
    for lost in np.array(whole.site_ids)[inner]:
        names = names_of(sites.select(np.arange(len(sites)) != lost), shape)
        assert "GB(5-7)" in names
        split += names != ["GB(5-7)"]
    assert split <= 0.15 * inner.sum()


def test_a_turned_bond_at_the_border_does_not_hide_a_boundary():
    rng = np.random.default_rng(2)
    specimen = _specimen(boundary_sheet((2.6, 2.6), 0.5, rng, variant=7), 2.6)
    sites, shape = observed(specimen, rng, noise_pm=6.0)
    graph = graph_of(sites, shape)
    assert names_of(sites, shape) == ["GB(5-7)"]
    at_border = graph.sites.edge[graph.bonds.a] | graph.sites.edge[graph.bonds.b]
    for a, b in zip(graph.bonds.a[at_border], graph.bonds.b[at_border]):
        yx = sites.yx_px.copy()
        middle, half = 0.5 * (yx[a] + yx[b]), 0.5 * (yx[a] - yx[b])
        yx[a], yx[b] = middle + half[::-1] * (1, -1), middle - half[::-1] * (1, -1)
        assert "GB(5-7)" in names_of(sites.replace(y_px=yx[:, 0], x_px=yx[:, 1]), shape)


def boundary(fov_nm, variant, seed=2):
    """Sites and shape of a field with a boundary in its middle."""
    rng = np.random.default_rng(seed)
    specimen = _specimen(boundary_sheet((fov_nm, fov_nm), 0.5, rng, variant=variant), fov_nm)
    return observed(specimen, rng, noise_pm=6.0)


@pytest.mark.parametrize("variant", [0, 3])
def test_a_boundary_under_a_patch_of_dirt_is_one_boundary(variant):
    """Its two ends have the same grains on their sides."""
    sites, shape = boundary(6.0, variant)
    (whole,) = find_defects(graph_of(sites, shape))
    middle = np.array(whole.center_px)
    dirt = np.hypot(*(np.indices(shape) - middle[:, None, None])) * PIXEL_NM < 1.0
    seen = sites.select(~dirt[tuple(np.clip(np.rint(sites.yx_px).astype(int), 0, np.array(shape) - 1).T)])
    graph = build_graph(seen, material=get_material("graphene"), pixel_size=PixelSize(PIXEL_NM), shape=shape, mask=dirt)
    (found,) = find_defects(graph)
    assert found.name == "GB(5-7)"
    assert np.hypot(*(np.array(found.center_px) - middle)) * PIXEL_NM < 0.1


def test_boundaries_between_other_grains_are_not_joined():
    """Two ends of one are; a line of atoms inside one of the grains is no part of it."""
    sites, shape = boundary(5.0, 0)
    (found,) = find_defects(graph_of(sites, shape))
    line = sites.yx_px[list(found.site_ids)]
    middle = line.mean(axis=0)
    _, _, axes = np.linalg.svd(line - middle, full_matrices=False)
    graph = graph_of(sites, shape)
    one, other = orientations_deg(graph, found.site_ids)
    assert abs(turned_deg(one, other)) > 2.0 * SAME_GRAIN_DEG

    def piece(atoms):
        return Cluster((), (5, 7), tuple(int(a) for a in atoms), None, False, False, (0.0, 0.0))

    along = (line - middle) @ axes[0]
    ends = [[piece(np.array(found.site_ids)[side])] for side in (along < 0, along > 0)]
    assert len(_joined(graph, ends)) == 1
    # The second one somewhere else, in one of the two grains: nothing is turned there.
    across = (sites.yx_px - middle) @ axes[1] * PIXEL_NM
    inside = np.flatnonzero((np.abs(across - 1.4) < 0.2) & (np.abs((sites.yx_px - middle) @ axes[0]) * PIXEL_NM < 1.5))
    assert len(inside) > 10
    assert len(_joined(graph, [ends[0], [piece(inside)]])) == 2


def test_many_odd_rings_between_turned_lattices_are_a_boundary():
    """Where noise has taken atoms all along the line, no 5-7 pair is left to say so."""
    sites, shape = boundary(4.0, 0)
    (whole,) = find_defects(graph_of(sites, shape))
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10):
        lost = rng.choice(np.array(whole.site_ids), 3, replace=False)
        found.append(names_of(sites.select(~np.isin(np.arange(len(sites)), lost)), shape))
    assert np.mean(["GB(5-7)" in names for names in found]) >= 0.9
    assert np.mean([names == ["GB(5-7)"] for names in found]) >= 0.6


def test_a_defect_beside_a_boundary_is_no_part_of_it():
    """Odd rings inside one of the grains have only that one around them, however near the boundary is."""
    sites, shape = boundary(6.0, 0)
    graph = graph_of(sites, shape)
    (alone,) = find_defects(graph)
    grains = orientations_deg(graph, alone.site_ids)
    line = sites.yx_px[list(alone.site_ids)]
    away_nm = np.hypot(*(sites.yx_px[:, None] - line[None]).transpose(2, 0, 1)).min(axis=1) * PIXEL_NM
    inner = np.hypot(*(sites.yx_px - np.array(alone.center_px)).T) * PIXEL_NM < 1.8
    beside = np.flatnonzero((away_nm > 0.9) & (away_nm < 1.1) & inner)
    assert len(beside) > 5
    assert all(least_share(graph, [atom], grains) < 0.5 * OTHER_GRAIN for atom in beside)
    on_line = [a for a in alone.site_ids if inner[a]]
    assert all(least_share(graph, [atom], grains) > OTHER_GRAIN for atom in on_line)
    assert np.isnan(least_share(graph, on_line, (np.nan, np.nan)))
    for atom in beside[::7]:
        # Two neighbouring atoms lost there: a divacancy, less than the reach of a boundary's pieces away.
        lost = [atom, graph.neighbours[atom][0]]
        names = names_of(sites.select(~np.isin(np.arange(len(sites)), lost)), shape)
        assert names == ["DV(5-8-5)", "GB(5-7)"]
