"""Which sublattice of a dichalcogenide is the metal's.

Neighbours alternate along the bonds of the graph; which of the two colours is the metal is decided for the image
as a whole, by the likelihood of everything that is seen under both assignments and every detector: the ratio of
the two host levels, the levels and shares of the other components (half a column is a chalcogen vacancy), and
how smoothly the brightness of each sublattice varies over the image, since only a column of two atoms feels the
local tilt of the sheet. No threshold, and an honest probability at the end.

Where two grains meet, rings of five and seven make the colours contradict each other. There the bonds of such
rings and those across which the lattice turns are cut, and every connected part is assigned by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .colouring import coloured_parts
from .detectors import Reading, all_detectors, chalcogen_readings, metal_readings
from .materials import Material
from .mixture import Mixture, fit_mixture
from .scatter import scatter_around, sloping_gain
from .sites import Sites
from .slow_variation import loneliness, slow_gain, smoothness

#: Uncertainty of the logarithm of a brightness ratio that a detector predicts: tilt, thermal motion, defocus.
RATIO_TOLERANCE = 0.14
#: Below this part of a host column nothing stands on the site; zero and less are noise.
DIMMEST = 0.05
#: How much the tails of neighbours add to or take from a site, as part of a host column.
_FLOOR = 0.05
#: Density of a component that nothing explains, per unit of the logarithm of its brightness and share.
_UNEXPLAINED = math.log(2e-4)
#: Density of a smooth variation that neither tilt nor a common gain explains.
_ODD_VARIATION = 0.03
#: Columns of a sublattice that show how much columns scatter around a place, and by how many times the usual scatter
#: chance alone makes them.
CROWD, CHANCE = 20, 1.3
#: Dirt that adds less than this part of the error of the fit is none; the levels of a sublattice are those of its clean
#: columns where these are at least this part of it.
CLEAN, LEAST_CLEAN = 0.5, 0.25
#: The scatter of few columns is uncertain by this factor; errors are not narrowed below this part.
UNSURE, NARROWEST = 1.15, 0.4
#: Standard deviations that nine in ten of normal numbers span.
NINETY = 3.29
#: The calmest part of an image, and by how much its scatter is below the typical one where all is alike.
CALMEST = 0.2, 1.15
#: Fewer columns than this on a sublattice tell nothing.
FEWEST = 8


@dataclass(frozen=True)
class Sublattices:
    """Assignment of the sublattices.

    Parameters
    ----------
    metal : (N,) bool
        On the metal sublattice.
    log_odds : float
        Logarithm of the odds that this is right rather than the reverse; negative for the reverse.
    detector : (R,) float64
        Probability of every detector.
    value, sigma : (N,) float64
        Brightness after slow variations over the image were divided out, and its uncertainty.
    mixtures : mapping of bool to Mixture
        Of the metal (True) and chalcogen (False) sublattice, in units of `unit`.
    unit : mapping of bool to float
        Typical brightness of the sublattice.
    host : mapping of bool to int
        Component that is the host.
    """

    metal: NDArray[np.bool_]
    log_odds: float
    detector: NDArray[np.float64]
    value: NDArray[np.float64]
    sigma: NDArray[np.float64]
    mixtures: dict[bool, Mixture]
    unit: dict[bool, float]
    host: dict[bool, int]

    @property
    def level(self) -> NDArray[np.float64]:
        """(N,) brightness of a host column on the sublattice of each."""
        of = {m: self.unit[m] * float(self.mixtures[m].mean[self.host[m]]) for m in (True, False)}
        return np.where(self.metal, of[True], of[False])


def assign_sublattices(yx_nm: NDArray[np.float64], sites: Sites, pairs: NDArray[np.int64], material: Material,
                       dopant: str | None) -> tuple[Sublattices, Sublattices] | None:
    """Decide which columns are metal; None where there are too few columns to tell anything.

    The more probable assignment comes first, the one with metal and chalcogen interchanged second.

    Parameters
    ----------
    yx_nm : (N, 2) float64
        Positions [nm].
    sites : Sites
        With `intensity`, in any common unit.
    pairs : (B, 2) int64
        Bonds between neighbouring columns.
    material : Material
    dopant : str, optional
        The element expected on metal sites; the material's by default.
    """
    colour, part = coloured_parts(yx_nm, pairs)
    value, sigma = sites.intensity.copy(), sites.intensity_sigma.copy()
    usable = np.isfinite(value)
    sizes = np.bincount(part) if len(part) else np.zeros(0, dtype=np.int64)
    if len(sizes) == 0 or usable.sum() < 2 * FEWEST:
        return None
    sigma = np.where(np.isfinite(sigma), sigma, 0.1 * float(np.median(value[usable])))
    slope = sloping_gain(yx_nm, value, 2 * part + colour)
    value, sigma = value / slope, sigma / slope
    main = part == int(sizes.argmax())
    sides = [np.flatnonzero(main & (colour == c) & usable) for c in (0, 1)]
    if min(len(s) for s in sides) < FEWEST or min(float(np.median(value[s])) for s in sides) <= 0:
        return None
    smooth = smoothness(yx_nm, value, sides)
    flat, flat_sigma = value.copy(), sigma.copy()
    for own, other in (sides, sides[::-1]):
        gain = slow_gain(yx_nm, value, own, other)
        flat[own], flat_sigma[own] = value[own] / gain, sigma[own] / gain
    flat_sigma *= overstated(flat, flat_sigma, sides)
    dirt = dirt_around(yx_nm, flat, flat_sigma, sides)
    clean = dirt < CLEAN * flat_sigma
    flat_sigma = np.hypot(flat_sigma, dirt)
    units = [float(np.median(flat[s])) for s in sides]
    # Columns at the border lack the neighbours whose tails the fit knows how to take away.
    inner = [s[~sites.edge[s]] if np.sum(~sites.edge[s]) > 5 * FEWEST else s for s in sides]
    # Dirt makes levels of its own, at which nothing is to be found.
    inner = [s[clean[s]] if np.sum(clean[s]) > max(5 * FEWEST, LEAST_CLEAN * len(s)) else s for s in inner]
    mixtures = [fit_mixture(flat[s] / u, flat_sigma[s] / u) for s, u in zip(inner, units)]
    on_metal, on_chalcogen = metal_readings(material, dopant), chalcogen_readings(material)
    verdicts = [_read(mixtures[m], mixtures[1 - m], units[m] / units[1 - m], (len(sides[m]), len(sides[1 - m])),
                      material, on_metal, on_chalcogen, _tilt_density(smooth[1 - m] - smooth[m])) for m in (0, 1)]
    single = [loneliness(yx_nm, value, own, other, own[(flat[own] < 0.75 * u) & (flat[own] > 0.15 * u)])
              for own, other, u in zip(sides, sides[::-1], units)]
    odds = verdicts[0].log_likelihood - verdicts[1].log_likelihood + single[1] - single[0]
    if np.isin(material.species, sites.species).all():
        # Somebody has told them apart already; how sure one can be is still what the image says.
        told = sum(np.mean(sites.species[s] == material.species[0]) * k for s, k in zip(sides, (1.0, -1.0)))
        odds = max(odds, 0.0) if told >= 0 else min(odds, -1e-9)

    def assigned(m: int) -> Sublattices:
        metal = np.zeros(len(colour), dtype=bool)
        metal[main & (colour == m)] = True
        if not main.all():
            densities = [mixtures[c].log_density(flat / units[c], flat_sigma / units[c]) - math.log(units[c])
                         for c in (m, 1 - m)]
            excess = np.where(usable, np.clip(densities[0] - densities[1], -4.0, 4.0), 0.0)
            metal |= _other_parts(yx_nm, colour, part, main, metal, excess)
        verdict = verdicts[m]
        return Sublattices(metal, float(odds if m == 0 else -odds), verdict.detector, flat, flat_sigma,
                           {True: mixtures[m], False: mixtures[1 - m]}, {True: units[m], False: units[1 - m]},
                           {True: verdict.metal_host, False: verdict.chalcogen_host})

    m = 0 if odds >= 0 else 1
    return assigned(m), assigned(1 - m)


def overstated(value: NDArray[np.float64], sigma: NDArray[np.float64], sides: list[NDArray[np.int64]]) -> float:
    """Factor for errors that are wider than how much the columns scatter, 1 where they are not.

    The noise of filtered images is known to a factor of two only; equal columns show their errors.
    """
    if min(len(s) for s in sides) < CROWD or min(float(np.median(sigma[s])) for s in sides) <= 0:
        return 1.0
    # Of the tails, not of the core: some columns may be tied to the typical height.
    scatter = [float(np.ptp(np.quantile(value[s], (0.05, 0.95)))) / NINETY / float(np.median(sigma[s])) for s in sides]
    return float(np.clip(UNSURE * max(scatter), NARROWEST, 1.0))


def dirt_around(yx_nm: NDArray[np.float64], value: NDArray[np.float64], sigma: NDArray[np.float64],
                sides: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(N,) standard deviation that dirt adds to the brightness of columns: patches where both sublattices scatter more.

    Dopants and vacancies make one of them scatter.
    """
    excess = np.full((2, len(value)), np.inf)
    for k, side in enumerate(sides):
        if len(side) < 4 * CROWD:
            return np.zeros(len(value))
        apart = np.abs(value[side] - np.median(value[side]))
        scatter = scatter_around(yx_nm, yx_nm[side], apart, crowd=CROWD)
        # Where dirt covers most of the image the clean rest, and the errors of the fit, say what is usual.
        calm = max(CALMEST[1] * float(np.quantile(scatter, CALMEST[0])), float(np.median(sigma[side])))
        usual = min(float(np.median(scatter)), calm)
        excess[k] = np.sqrt(np.maximum(scatter**2 - (CHANCE * usual) ** 2, 0.0))
    return np.asarray(excess.min(axis=0))


def _other_parts(yx_nm: NDArray[np.float64], colour: NDArray[np.int64], part: NDArray[np.int64],
                 main: NDArray[np.bool_], metal: NDArray[np.bool_],
                 excess: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Metal sites of the parts that hang on the main one by no unbroken chain of alternating bonds.

    `excess` is the logarithm of how much better a column's brightness suits the metal. Small pieces also listen
    to where the main part's lattice, two neighbours away, has its metal.
    """
    result = np.zeros(len(colour), dtype=bool)
    others = np.unique(part[~main])
    sums = np.bincount(part, weights=excess * (1 - 2 * colour), minlength=int(part.max()) + 1)
    near, index = cKDTree(yx_nm[main]).query(yx_nm, k=3, distance_upper_bound=0.45)
    inside = np.flatnonzero(main)
    first = np.median(near[main][:, 1]) if main.sum() > 3 else 0.19
    for k in others.tolist():
        here = np.flatnonzero(part == k)
        score = float(sums[k])
        if len(here) <= 12:
            # Nearest neighbours in the main part are of the other kind.
            touch = near[here] < 1.3 * first
            kinds = metal[inside[np.minimum(index[here], len(inside) - 1)]]
            votes = np.where(touch, np.where(kinds, -1.0, 1.0), 0.0).sum(axis=1)
            score += float(np.sum(2.0 * votes * (1 - 2 * colour[here])))
        result[here] = colour[here] == (0 if score >= 0 else 1)
    return result


def _tilt_density(difference: float) -> NDArray[np.float64]:
    """(R,) log-density, on every detector, of how much more smoothly the chalcogen's brightness varies."""

    def normal(x: float, width: float) -> float:
        return math.exp(-0.5 * (x / width) ** 2) / width

    d = all_detectors()
    same, tilted = normal(difference, 0.15), normal(difference - 0.6, 0.4)
    return np.asarray(np.log(np.where(d.coherent, 0.4 * same + 0.6 * tilted, same) + _ODD_VARIATION))


@dataclass(frozen=True)
class _Verdict:
    log_likelihood: float
    detector: NDArray[np.float64]
    metal_host: int
    chalcogen_host: int


def _read(metal: Mixture, chalcogen: Mixture, ratio: float, counts: tuple[int, int], material: Material,
          on_metal: list[Reading], on_chalcogen: list[Reading], tilt: NDArray[np.float64]) -> _Verdict:
    """Likelihood of two mixtures as metal and chalcogen sublattice.

    `ratio` is that of their units, `tilt` (R,) what the smooth variation says on every detector.
    """
    d = all_detectors()
    expected = np.log(d.one(material.species[0]) / d.pair(material.species[1]))
    rows, hosts = [], []
    for h in np.flatnonzero(metal.weight > 0.25).tolist():
        beside = _explain(metal, h, counts[0], on_metal)
        for g in np.flatnonzero(chalcogen.weight > 0.35).tolist():
            seen = math.log(max(ratio * metal.mean[h] / max(chalcogen.mean[g], 1e-3), 1e-3))
            here = np.log(d.prior) + tilt - 0.5 * ((seen - expected) / RATIO_TOLERANCE) ** 2
            rows.append(np.maximum(here, -40.0) + beside + _explain(chalcogen, g, counts[1], on_chalcogen))
            hosts.append((h, g))
    if not rows:
        return _Verdict(-1e3, d.prior, int(metal.weight.argmax()), int(chalcogen.weight.argmax()))
    totals = [float(_log_sum(r)) for r in rows]
    best = int(np.argmax(totals))
    together = float(_log_sum(np.array(totals)))
    return _Verdict(together, np.exp(rows[best] - totals[best]), *hosts[best])


def _explain(mixture: Mixture, host: int, count: int, readings: list[Reading]) -> NDArray[np.float64]:
    """(R,) log-likelihood, on every detector, of the components beside the host."""
    total = np.full(len(all_detectors().prior), math.log(max(mixture.weight[host], 1e-6)))
    if len(mixture.mean) == 1:
        # A sublattice with nothing odd on it: most likely where little is expected.
        return total + math.log(max(1.0 - max(r.prior for r in readings), 0.2))
    for k in range(len(mixture.mean)):
        if k == host:
            continue
        ratio, share = float(mixture.mean[k] / mixture.mean[host]), float(mixture.weight[k])
        best = component_odds(ratio, share, count, mixture.width, readings)
        total = total + np.logaddexp(_log_sum(best, axis=0), _UNEXPLAINED)
    return total


def component_odds(ratio: float, share: float, count: int, width: float,
                   readings: list[Reading]) -> NDArray[np.float64]:
    """(K, R) log-density of a component `ratio` as bright as the host, for every reading and detector.

    Parameters
    ----------
    ratio, share : float
        Brightness over the host's, and part of the columns.
    count : int
        Number of columns of the sublattice.
    width : float
        Relative width of the components.
    readings : list of Reading
    """
    expected = np.array([r.ratio for r in readings])
    tolerance = tolerances(expected, width / max(share * count, 1.0) ** 0.5)
    fit = -0.5 * ((math.log(max(ratio, DIMMEST)) - np.log(expected)) / tolerance) ** 2 - np.log(tolerance)
    frequent = [math.log(r.prior / r.spread) - 0.5 * ((math.log(share) - math.log(r.usual)) / r.spread) ** 2
                for r in readings]
    return np.asarray(fit + np.array(frequent)[:, None])


def tolerances(expected: NDArray[np.float64], error: float = 0.0) -> NDArray[np.float64]:
    """Uncertainty of the logarithm of expected ratios: detector, measurement and, on dim sites, tails."""
    return np.asarray(np.sqrt(RATIO_TOLERANCE**2 + error**2 + (_FLOOR / np.maximum(expected, DIMMEST)) ** 2))


def _log_sum(log_p: NDArray[np.float64], axis: int | None = None) -> NDArray[np.float64] | float:
    top = log_p.max(axis=axis, keepdims=True)
    return (np.log(np.exp(log_p - top).sum(axis=axis, keepdims=True)) + top).squeeze(axis=axis)[()]
