"""The chemical structure as a graph: atoms and vacancies are its nodes, bonds its edges.

References
----------
Ziatdinov et al., ACS Nano 11, 12742 (2017): defects as connected parts of G = (N, E), with lattice atoms bonded to a
dopant told from those of the bulk, and vacancies as nodes of their own that are bonded to nothing.
"""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .analysis import Bonds, Defect, FrameAnalysis
from .planar import Faces, find_faces
from .sites import Sites


def atoms_and_bonds(sites: Sites, bonds: Bonds, *, yx_nm: NDArray[np.float64],
                    foreign: NDArray[np.bool_]) -> nx.Graph:
    """Atoms and bonds as a networkx graph.

    Parameters
    ----------
    sites : Sites
        Their numbers are the nodes.
    bonds : Bonds
    yx_nm : (N, 2) float64
        Positions, distortion corrected [nm].
    foreign : (N,) bool
        Not of a host species.

    Returns
    -------
    networkx.Graph
        Nodes have `species`, `y_nm`, `x_nm`, `role`, `score`, `border` (bonds may be out of view) and, where known,
        `sigma_pm`; the role is 'dopant', 'edge' (a host atom bonded to a dopant) or 'bulk'. Edges have `length_pm`
        and, where known, `sigma_pm`.
    """
    touching = np.zeros(len(sites), dtype=bool)
    odd = foreign[bonds.a] | foreign[bonds.b]
    touching[bonds.a[odd]] = touching[bonds.b[odd]] = True
    graph = nx.Graph()
    for i, (species, (y, x), score, sigma, border) in enumerate(zip(
            sites.species.tolist(), yx_nm.tolist(), sites.score.tolist(), sites.sigma_pm.tolist(),
            sites.edge.tolist())):
        role = "dopant" if foreign[i] else "edge" if touching[i] else "bulk"
        graph.add_node(i, species=species, y_nm=y, x_nm=x, role=role, score=score, border=border, **_known(sigma))
    for a, b, length, sigma in zip(bonds.a.tolist(), bonds.b.tolist(), bonds.length_pm.tolist(),
                                   bonds.sigma_pm.tolist()):
        graph.add_edge(a, b, length_pm=length, **_known(sigma))
    return graph


def bond_network(analysis: FrameAnalysis) -> nx.Graph:
    """Everything found in a frame as a networkx graph, vacancies included.

    Parameters
    ----------
    analysis : FrameAnalysis

    Returns
    -------
    networkx.Graph
        As of `atoms_and_bonds`. Regions of missing atoms are nodes 'V0', 'V1', ... of species and role 'vacancy' with
        the number of `missing_atoms`, without any bond. Every node that belongs to a defect has its number as
        `defect`. The graph itself has `material`, `model`, `frame` and `pixel_size_nm`.
    """
    yx = analysis.pixel_size.to_nm(analysis.sites.yx_px).reshape(-1, 2)
    foreign = ~np.isin(analysis.sites.species, analysis.host_species)
    graph = atoms_and_bonds(analysis.sites, analysis.bonds, yx_nm=yx, foreign=foreign)
    graph.graph.update(material=analysis.material, model=analysis.model, frame=analysis.frame,
                       pixel_size_nm=analysis.pixel_size.nm)
    faces = None
    for defect in analysis.defects:
        for i in defect.site_ids:
            graph.nodes[i]["defect"] = defect.id
        own = [i for i in defect.site_ids if foreign[i]]
        if not _leaves_a_hole(defect, own):
            continue
        if own:
            faces = faces or find_faces(yx, analysis.bonds.a, analysis.bonds.b)
            y, x = _largest_ring(faces, own, yx)
        else:
            y, x = analysis.pixel_size.to_nm(defect.center_px).tolist()
        graph.add_node(f"V{len(graph) - len(analysis.sites)}", species="vacancy", y_nm=y, x_nm=x, role="vacancy",
                       border=False, missing_atoms=defect.missing_atoms, defect=defect.id, score=defect.probability)
    return graph


def _leaves_a_hole(defect: Defect, foreign: list[int]) -> bool:
    """Whether atoms are missing that no foreign atom has replaced."""
    return defect.missing_atoms > 0 and (not foreign or defect.name.endswith("+V"))


def _largest_ring(faces: Faces, atoms: list[int], yx: NDArray[np.float64]) -> tuple[float, float]:
    """Middle of the largest ring that one of some atoms is part of; their own where there is none."""
    around = np.unique(faces.face[np.isin(faces.start, atoms)])
    around = around[faces.area[around] > 0]
    nodes = faces.nodes(int(around[np.argmax(faces.size[around])])) if len(around) else atoms
    y, x = yx[nodes].mean(axis=0).tolist()
    return y, x


def _known(sigma_pm: float) -> dict[str, float]:
    return {"sigma_pm": sigma_pm} if math.isfinite(sigma_pm) else {}
