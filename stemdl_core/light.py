"""Light substitutional atoms in graphene, told from carbon by intensity."""

from __future__ import annotations

import numpy as np

from .graph import AtomGraph
from .scatter import scatter_around

#: Annular dark-field intensity goes as the atomic number to about this power (Krivanek et al., Nature 464,
#: 571 (2010): 1.64 for their detector; 1.5-1.7 in general).
Z_EXPONENT = 1.64
#: Standard deviations by which a column has to depart from its neighbours: with a thousand columns a frame,
#: one false call in a hundred frames needs 4.5 for a Gaussian; measured tails are heavier.
STRICT_Z = 5.0
#: And by which the element itself would have to: what stands out by five of them although nitrogen would by only two is
#: more likely dirt.
LEAST_CONTRAST_Z = 3.5
#: Neighbours whose scatter says how far columns depart here.
CROWD = 60


def light_substitutions(graph: AtomGraph) -> list[tuple[int, str, float]]:
    """(site, element, probability) of host columns whose intensity is that of nitrogen or boron.

    A column is compared with its neighbourhood (0.45 nm), so that thickness and contamination gradients
    cancel, and only columns with three bonds inside three hexagons count: beside holes and heavy atoms the
    probe's tails shift intensities.
    """
    intensity, sigma = graph.sites.intensity, graph.sites.intensity_sigma
    usable = np.isfinite(intensity) & np.isfinite(sigma) & ~graph.foreign
    if np.sum(usable) < 40:
        return []
    calm = usable & (graph.degree == 3) & ~graph.sites.edge
    hexagon = (
        np.bincount(
            graph.faces.start,
            weights=(graph.inside & (graph.faces.size == 6))[graph.faces.face],
            minlength=len(usable),
        )
        if len(graph.faces)
        else np.zeros(len(usable))
    )
    calm &= hexagon == 3
    near_dopant = np.zeros(len(usable), dtype=bool)
    a, b = graph.bonds.a, graph.bonds.b
    for _ in range(3):
        spread = near_dopant | graph.foreign
        near_dopant[a[spread[b]]] = True
        near_dopant[b[spread[a]]] = True
    calm &= ~near_dopant
    index = np.flatnonzero(calm)
    if len(index) < 20:
        return []
    # Mean over first and second neighbours, twice through the bond list.
    weight = usable.astype(float)
    value = np.where(usable, intensity, 0.0)
    first = np.bincount(a, weights=value[b], minlength=len(usable)) + np.bincount(b, value[a], len(usable))
    first_n = np.bincount(a, weights=weight[b], minlength=len(usable)) + np.bincount(
        b, weight[a], len(usable)
    )
    total = np.bincount(a, first[b], len(usable)) + np.bincount(b, first[a], len(usable))
    count = np.bincount(a, first_n[b], len(usable)) + np.bincount(b, first_n[a], len(usable))
    # Every atom is its own second neighbour three times over.
    total, count = total - graph.degree * value + first, count - graph.degree * weight + first_n
    local = total / np.maximum(count, 1.0)
    ratio = intensity[index] / np.maximum(local[index], 1e-3)
    deviation = ratio - np.median(ratio)
    size, yx_nm = np.abs(deviation), graph.yx_nm[index]
    width = np.maximum(np.hypot(sigma[index], 0.03), 1.4826 * np.median(size))
    standing_out = np.flatnonzero(size > STRICT_Z * width)
    width[standing_out] = np.maximum(width[standing_out], scatter_around(yx_nm[standing_out], yx_nm, size, crowd=CROWD))
    found = []
    for k in standing_out[size[standing_out] > STRICT_Z * width[standing_out]].tolist():
        expected = {s: (z / 6.0) ** Z_EXPONENT - 1.0 for s, z in (("B", 5), ("N", 7), ("O", 8))}
        fit = {s: float(np.exp(-0.5 * ((deviation[k] - e) / np.hypot(width[k], 0.06)) ** 2))
               for s, e in expected.items()}
        symbol = max(fit, key=lambda s: fit[s])
        if abs(expected[symbol]) < LEAST_CONTRAST_Z * width[k]:
            continue
        neighbours = graph.neighbours[int(index[k])]
        crowd = np.abs(intensity[neighbours] / max(local[index[k]], 1e-3) - 1.0) > 4.0 * width[k]
        if symbol in ("N", "B") and fit[symbol] > 0.01 and not np.any(crowd):
            pure = float(np.exp(-0.5 * (deviation[k] / width[k]) ** 2)) * len(index)
            found.append((int(index[k]), symbol, float(fit[symbol] / (fit[symbol] + pure + 0.02))))
    return found
