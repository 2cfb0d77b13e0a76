"""Atoms, bonds and vacancies as a graph: in memory and as a file."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from specimen_sites import PIXEL_NM, analysis_of

from stemdl_core.analysis import FrameAnalysis
from stemdl_core.simulate.structures import add_defect, graphene, mx2
from stemdl_core.writers import write_graph


def vacancies(network: nx.Graph) -> list[tuple[object, dict]]:
    return [(n, data) for n, data in network.nodes(data=True) if data["role"] == "vacancy"]


def test_dopants_their_neighbours_and_bulk_have_roles(rng):
    analysis = analysis_of(add_defect(graphene(fov_nm=2.5), "Si-C3", (1.2, 1.2), rng=rng), rng)
    network = analysis.to_networkx()
    roles = [data["role"] for _, data in network.nodes(data=True)]
    assert (roles.count("dopant"), roles.count("edge"), roles.count("vacancy")) == (1, 3, 0)
    silicon = next(n for n, data in network.nodes(data=True) if data["species"] == "Si")
    assert sorted(network.nodes[n]["role"] for n in network.neighbors(silicon)) == ["edge"] * 3
    assert network.nodes[silicon]["defect"] == analysis.defects[0].id
    assert network.number_of_edges() == len(analysis.bonds)
    lengths = [network.edges[silicon, n]["length_pm"] for n in network.neighbors(silicon)]
    assert sorted(lengths) == pytest.approx(sorted(b.length_pm for b in analysis.defects[0].bonds))


@pytest.mark.parametrize(("kind", "missing"), [("SV", 1), ("DV(5-8-5)", 2), ("V3", 3), ("V6", 6)])
def test_vacancies_are_nodes_where_atoms_are_missing_and_bonded_to_nothing(kind, missing, rng):
    specimen = add_defect(graphene(fov_nm=3.0, rotation_deg=14.0), kind, (1.5, 1.5), rng=rng)
    network = analysis_of(specimen, rng).to_networkx()
    ((name, data),) = vacancies(network)
    assert data["missing_atoms"] == missing
    assert network.degree[name] == 0
    assert math.dist((data["y_nm"], data["x_nm"]), specimen.vacancies_nm.mean(axis=0)) < 0.06
    assert nx.number_of_nodes(network) == len(analysis_of(specimen, rng).sites) + 1


def test_silicon_beside_a_vacancy_is_two_nodes_and_silicon_in_its_place_is_one(rng):
    specimen = add_defect(graphene(fov_nm=3.0), "Si-C3+V", (1.5, 1.5), rng=rng)
    ((_, hole),) = vacancies(analysis_of(specimen, rng).to_networkx())
    silicon = specimen.yx_nm[specimen.atoms.numbers == 14][0]
    away = math.dist((hole["y_nm"], hole["x_nm"]), silicon)
    there = math.dist((hole["y_nm"], hole["x_nm"]), specimen.vacancies_nm[0])
    assert there < 0.12
    assert there < away
    for kind in ("Si-C4", "Si3C6", "SW(55-77)"):
        specimen = add_defect(graphene(fov_nm=3.0), kind, (1.5, 1.5), rng=rng)
        assert not vacancies(analysis_of(specimen, rng).to_networkx())


@pytest.mark.parametrize(("kind", "missing", "column_stays"), [("V_Se", 1, True), ("V_Se2", 2, False)])
def test_missing_chalcogens_are_nodes(kind, missing, column_stays, rng):
    specimen = add_defect(mx2(material="MoSe2", fov_nm=4.0), kind, (2.0, 2.0), rng=rng)
    network = analysis_of(specimen, rng).to_networkx()
    ((_, data),) = vacancies(network)
    assert data["missing_atoms"] == missing
    at = np.array([(d["y_nm"], d["x_nm"]) for _, d in network.nodes(data=True) if d["role"] != "vacancy"])
    center = specimen.defects[0].center_nm - np.full(2, 0.5 * PIXEL_NM)
    assert math.dist((data["y_nm"], data["x_nm"]), center) < 0.05
    assert (np.hypot(*(at - center).T).min() < 0.05) == column_stays


def test_the_file_says_the_same(rng, tmp_path):
    analysis = analysis_of(add_defect(graphene(fov_nm=2.5), "Si-C3+V", (1.2, 1.2), rng=rng), rng)
    write_graph(tmp_path / "graph.graphml", analysis)
    read, network = nx.read_graphml(tmp_path / "graph.graphml"), analysis.to_networkx()
    assert set(read) == {str(n) for n in network}
    assert {frozenset(e) for e in read.edges} == {frozenset(map(str, e)) for e in network.edges}
    assert all(read.nodes[str(n)] == data for n, data in network.nodes(data=True))


def test_an_empty_frame_is_an_empty_graph(rng):
    nothing = analysis_of(graphene(fov_nm=2.0), rng)
    empty = FrameAnalysis(model="test", material="graphene", shape=(8, 8), pixel_size=nothing.pixel_size,
                          sites=nothing.sites.select(np.zeros(len(nothing.sites), bool)),
                          bonds=type(nothing.bonds).empty(), defects=type(nothing.defects)(), rings={})
    assert empty.to_networkx().number_of_nodes() == 0
