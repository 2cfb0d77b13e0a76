"""Whether what was found can be the material it was taken for.

A network answers to any image. Three questions that it was not asked keep it honest: is a lattice visible at all, do
the sites bond as the host's atoms do, and are the atoms of a one-element host equally bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .colouring import two_colour
from .graph import AtomGraph

#: Part of the host sites away from borders that have all their bonds. A sheet full of defects keeps 0.7; what a
#: network sees in noise has less than 0.2.
LEAST_BONDED = 0.35
#: The same, and the least mean score, where the spectrum of the image shows no lattice: then only a clear picture of
#: an island or a small field can be believed.
LEAST_BONDED_UNSEEN, LEAST_SCORE_UNSEEN = 0.75, 0.9
#: Fewest inner sites on which the part of bonded ones says anything.
FEWEST_SITES = 8
#: Brightness of one sublattice over the other from which a one-element host is not credible: 1.0 for graphene,
#: 1.4 for MoSe2, 2.6 for MoS2.
SUBLATTICE_RATIO = 1.25


@dataclass(frozen=True)
class Verdict:
    """Outcome of the checks.

    Attributes
    ----------
    believable : bool
        False where the sites must not be reported at all.
    warnings : tuple of str
        One line each.
    """

    believable: bool
    warnings: tuple[str, ...] = ()


def judge(graph: AtomGraph, *, lattice_visible: bool) -> Verdict:
    """Judge the sites and bonds of one frame.

    Parameters
    ----------
    graph : AtomGraph
        Sites and bonds.
    lattice_visible : bool
        Whether the image's spectrum shows the host lattice.
    """
    name = graph.material.name
    inner = ~graph.sites.edge & ~graph.foreign
    if inner.sum() < FEWEST_SITES:
        return Verdict(True)
    bonded = float((graph.degree[inner] >= 3).mean())
    score = float(graph.sites.score[inner].mean())
    if not lattice_visible and (bonded < LEAST_BONDED_UNSEEN or score < LEAST_SCORE_UNSEEN):
        return Verdict(False, (f"no {name} lattice is visible and what looks like atoms does not bond like one: "
                               "nothing is reported",))
    warnings = []
    if bonded < LEAST_BONDED:
        warnings.append(f"only {100 * bonded:.0f} % of the atoms away from the border have all their bonds: dose too "
                        f"low, or not {name}")
    ratio = sublattice_ratio(graph)
    if graph.material.kind == "honeycomb" and ratio > SUBLATTICE_RATIO:
        warnings.append(f"one sublattice is {ratio:.2f} times as bright as the other: this may not be {name}")
    if graph.columns is not None:
        warnings += graph.columns.warnings
    return Verdict(True, tuple(warnings))


def sublattice_ratio(graph: AtomGraph) -> float:
    """Median brightness of the brighter over the weaker sublattice; 1 where there are too few atoms to tell.

    Sublattices are the two colours of the bond graph, followed from atom to atom through the largest connected part.
    """
    usable = ~graph.foreign & np.isfinite(graph.sites.intensity)
    a, b = graph.bonds.a, graph.bonds.b
    keep = usable[a] & usable[b]
    n = len(graph.sites)
    if keep.sum() < 30:
        return 1.0
    colour, part = two_colour(n, np.stack([a[keep], b[keep]], axis=1))
    order = np.flatnonzero(part == np.bincount(part).argmax())
    intensity, colours = graph.sites.intensity[order], colour[order]
    one, other = (float(np.median(intensity[colours == c])) for c in (0, 1))
    if min(one, other) <= 0:
        return 1.0
    # The medians differ by chance too: only a difference beyond three standard errors counts.
    error = 1.2533 * float(np.std(intensity)) * np.sqrt(4 / len(order))
    return max(one, other) / min(one, other) if abs(one - other) > 3 * error else 1.0
