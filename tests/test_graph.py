"""Bond graph: chemistry's limits, faces, edges, and what does not change it."""

from __future__ import annotations

import numpy as np
import pytest
from specimen_sites import graph_of, observed

from stemdl_core.planar import find_faces
from stemdl_core.rings import describe, dopant_faces, group_faces
from stemdl_core.simulate.structures import add_defect, graphene, mx2
from stemdl_core.sites import Sites


def test_faces_of_two_squares():
    yx = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]], float)
    faces = find_faces(yx, [0, 1, 3, 4, 0, 1, 2], [1, 2, 4, 5, 3, 4, 5])
    assert sorted(faces.size[faces.area > 0].tolist()) == [4, 4]
    assert faces.area.sum() == pytest.approx(0.0)
    assert faces.size.sum() == 14


def test_no_sites_give_an_empty_graph():
    graph = graph_of(Sites.empty(), (64, 64))
    assert len(graph.bonds) == 0
    assert dict(graph.rings) == {}
    assert graph.network.number_of_nodes() == 0


def test_every_carbon_inside_has_three_bonds_and_only_hexagons(rng):
    sites, shape = observed(graphene(fov_nm=3.0, rotation_deg=12.0), rng, noise_pm=8.0)
    graph = graph_of(sites, shape)
    assert set(graph.degree[~graph.sites.edge].tolist()) == {3}
    assert set(graph.rings) == {6}
    assert graph.bonds.length_pm.mean() == pytest.approx(142.0, abs=1.5)
    np.testing.assert_allclose(graph.bonds.sigma_pm, 8.0 * np.sqrt(2))
    assert np.all(graph.bonds.a < graph.bonds.b)


@pytest.mark.parametrize("scale", [0.93, 1.0, 1.07])
def test_limits_follow_the_lattice_of_the_image(scale, rng):
    sites, shape = observed(add_defect(graphene(fov_nm=3.0), "Si-C4", (1.5, 1.5), rng=rng), rng, scale=scale)
    graph = graph_of(sites, shape)
    assert graph.scale == pytest.approx(scale, rel=0.01)
    assert set(graph.degree[graph.foreign].tolist()) == {4}


def test_an_atom_put_into_a_ring_gets_no_bond(rng):
    sites, shape = observed(graphene(fov_nm=2.5), rng, noise_pm=3.0)
    graph = graph_of(sites, shape)
    ring = graph.faces.nodes(int(np.flatnonzero(graph.inside)[20]))
    y, x = sites.yx_px[ring].mean(axis=0)
    more = Sites.from_columns(y_px=np.append(sites.y_px, y), x_px=np.append(sites.x_px, x),
                              species=np.append(sites.species, "C"))
    crowded = graph_of(more, shape)
    assert crowded.degree[-1] == 0
    assert dict(crowded.rings) == dict(graph.rings)


def test_no_carbon_exceeds_its_valence_in_any_noise(rng):
    specimen = add_defect(graphene(fov_nm=3.0), "Si3C6", (1.5, 1.5), rng=rng)
    for noise in (5.0, 15.0, 30.0):
        sites, shape = observed(specimen, rng, noise_pm=noise)
        graph = graph_of(sites, shape)
        assert graph.degree[~graph.foreign].max() <= 3
        assert graph.degree[graph.foreign].max() <= 4


def test_roles_in_the_networkx_graph(rng):
    sites, shape = observed(add_defect(graphene(fov_nm=2.5), "Si-C3", (1.2, 1.2), rng=rng), rng)
    network = graph_of(sites, shape).network
    roles = [data["role"] for _, data in network.nodes(data=True)]
    assert roles.count("dopant") == 1
    assert roles.count("edge") == 3
    silicon = next(n for n, data in network.nodes(data=True) if data["species"] == "Si")
    assert sorted(network.nodes[n]["role"] for n in network.neighbors(silicon)) == ["edge"] * 3


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("SV", 1), ("DV(5-8-5)", 2), ("DV(555-777)", 2), ("SW(55-77)", 0), ("V3", 3), ("V4", 4), ("V6", 6)],
)
def test_rim_counts_the_missing_atoms(kind, missing, rng):
    sites, shape = observed(add_defect(graphene(fov_nm=3.0), kind, (1.5, 1.5), rng=rng), rng, noise_pm=6.0)
    graph = graph_of(sites, shape)
    odd = np.flatnonzero(graph.inside & (graph.faces.size != 6)).tolist()
    clusters = [describe(graph, group) for group in group_faces(graph, odd)]
    assert [c.missing for c in clusters] == [missing]
    assert clusters[0].closed


def test_rim_around_silicon_counts_the_sites_it_replaces(rng):
    for kind, missing in (("Si-C3", 0), ("Si-C4", 1), ("Si-C3+V", 1), ("Si3C6", 3), ("Si4C6", 2)):
        sites, shape = observed(add_defect(graphene(fov_nm=3.0), kind, (1.5, 1.5), rng=rng), rng)
        graph = graph_of(sites, shape)
        around = dopant_faces(graph, np.flatnonzero(graph.foreign).tolist())
        assert describe(graph, around).missing == missing


def test_masked_faces_are_no_rings_and_their_atoms_are_edges(rng):
    sites, shape = observed(graphene(fov_nm=3.0), rng)
    plain = graph_of(sites, shape)
    mask = np.zeros((30, 30), dtype=bool)
    mask[12:18, 12:18] = True
    from stemdl_core.calibration import PixelSize
    from stemdl_core.graph import build_graph
    from stemdl_core.materials import get_material

    masked = build_graph(
        sites, material=get_material("graphene"), pixel_size=PixelSize(0.01), shape=shape, mask=mask
    )
    assert masked.rings[6] < plain.rings[6] - 4
    assert masked.sites.edge.sum() > plain.sites.edge.sum() + 10


def test_mx2_sublattices_alternate(rng):
    sites, shape = observed(mx2(material="MoSe2", fov_nm=4.0, rotation_deg=7.0), rng, noise_pm=8.0)
    graph = graph_of(sites, shape, "MoSe2")
    assert graph.columns is not None
    metal = graph.columns.metal
    assert np.all(metal[graph.bonds.a] != metal[graph.bonds.b])
    assert set(graph.sites.species.tolist()) == {"Mo", "Se"}
    # Two selenium atoms outshine one molybdenum atom.
    assert sites.intensity[~metal].mean() > sites.intensity[metal].mean()
