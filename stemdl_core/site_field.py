"""How much every lattice site of a frame looks like a point defect, whether or not the frame alone could tell.

Where counts are few, one frame cannot tell a missing or foreign atom from the faintest or brightest of its hundreds of
atoms. The frames before can: where such a defect is expected, the brightness of a column is evidence for or against
it, and so is that of the columns around.

References
----------
S. J. Davey, M. G. Rutten, B. Cheung, EURASIP J. Adv. Signal Process. 2008, 428036: detection after tracking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import FrameAnalysis
from .detectors import all_detectors
from .hostframe import MOTIF, HostLattice
from .materials import Material, get_material
from .observations import Observation
from .sublattice import RATIO_TOLERANCE

#: Intensity, in host columns, that is found where the network completes the lattice over a vacancy, and the spread of
#: the intensity of whole columns beyond their measured uncertainty.
_EMPTY, _SPREAD = 0.22, 0.13
#: Evidence of a site on which no atom was found; evidence of one site is not trusted beyond the second [nats].
_GAP, _MOST = 5.0, 5.0
#: Least evidence with which a site is offered to the tracks, and from which it begins one of a kind that is known to
#: occur [nats]; most sites offered.
LEAST, BEGINS, _OFFERED = 0.3, 4.0, 24
#: Sites nearer to a foreign atom or a hole than this say nothing [nm]; two positions nearer than this, in bonds, are
#: the same site.
_DISTURBED_NM, _SAME = 0.2, 0.45
#: A kind as bright as its host, within this, is not told from it.
_ALIKE = 0.2
_ON_SITE = re.compile(r"^([A-Z][a-z]?)_([A-Z][a-z]?)$")


def on_one_site(name: str | None, material: Material) -> bool:
    """Whether a defect's name means that one column of the host is missing, or another one stands in its place.

    >>> from stemdl_core.materials import get_material
    >>> on_one_site("V_Se", get_material("MoSe2")), on_one_site("V_Se2", get_material("MoSe2"))
    (True, False)
    """
    if name is None:
        return False
    if material.kind == "honeycomb":
        return name == "SV"
    found = _ON_SITE.match(name)
    return found is not None and found.group(2) in material.species and found.group(1) != "vac"


class Levels:
    """Brightness of the kinds of point defects relative to their hosts, learnt from the defects that are followed."""

    def __init__(self, material: Material) -> None:
        self.material = material
        self._known: dict[str, tuple[float, float]] = {}
        self._hosts: tuple[int, float] = (0, 0.0)

    def hosts(self, ratio: float) -> None:
        """Take into account how bright the first host column is over the second, which tells the detector."""
        if np.isfinite(ratio) and ratio > 0:
            count = min(self._hosts[0] + 1, 60)
            self._hosts = count, self._hosts[1] + (float(np.log(ratio)) - self._hosts[1]) / count

    def of(self, kind: str) -> float:
        """Brightness of a kind over that of its host columns."""
        return self._known[kind][1] if kind in self._known else self._usual(kind)

    def learn(self, kind: str, value: float) -> None:
        """Take one reading into account."""
        if self.material.kind == "honeycomb" or not np.isfinite(value):
            return
        count, mean = self._known.get(kind, (1.5, self._usual(kind)))
        count = min(count + 1.0, 60.0)
        self._known[kind] = count, mean + (value - mean) / count

    def _usual(self, kind: str) -> float:
        if self.material.kind == "honeycomb":
            return _EMPTY
        found = _ON_SITE.match(kind)
        assert found is not None
        foreign, host = found.groups()
        detectors, (metal, chalcogen) = all_detectors(), self.material.species
        weight = detectors.prior.copy()
        if self._hosts[0]:
            expected = np.log(detectors.one(metal) / detectors.pair(chalcogen))
            weight *= np.exp(-0.5 * ((self._hosts[1] - expected) / RATIO_TOLERANCE) ** 2) + 1e-6
        one, pair = detectors.one(host), detectors.pair(host)
        if host == metal:
            ratio = detectors.one(foreign) / one
        elif foreign == "V":
            ratio = one / pair  # one atom of two is left
        else:
            ratio = 0.5 * (1.0 + detectors.one(foreign) / one)
        return float(np.exp(np.average(np.log(ratio), weights=weight)))


@dataclass(frozen=True)
class SiteField:
    """Columns of a frame, and lattice sites without one.

    Parameters
    ----------
    yx_px, yx_nm : (N, 2) float64
        Positions in the image and, once it is known, in the specimen's frame.
    value, sigma : (N,) float64
        Brightness over the typical one of its sublattice and its standard deviation; NaN where it says nothing,
        -inf where no atom was found.
    lattice : (N,) int64
        Sublattice: number of the host species that belongs there.
    border_nm : (N,) float64
        Distance from the border of the image.
    levels : Levels
    """

    yx_px: NDArray[np.float64]
    yx_nm: NDArray[np.float64]
    value: NDArray[np.float64]
    sigma: NDArray[np.float64]
    lattice: NDArray[np.int64]
    border_nm: NDArray[np.float64]
    levels: Levels
    _cache: dict[str, NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)

    def evidence(self, kind: str) -> NDArray[np.float64]:
        """(N,) log-likelihood ratio of the kind to a host column; NaN where nothing can be said."""
        level, width = self.levels.of(kind), self.sigma
        key = f"{kind} {level:.2f}"
        if key not in self._cache:
            value = np.where(np.isneginf(self.value), level, self.value)
            # Beyond what the kind shows is no better than that.
            value = np.maximum(value, level) if level < 1.0 else np.minimum(value, level)
            ratio = ((value - 1.0) ** 2 - (value - level) ** 2) / (2.0 * width**2)
            ratio = np.clip(ratio, -_MOST, _MOST)
            ratio[np.isneginf(self.value)] = _GAP
            ratio[self.lattice != _sublattice(kind, self.levels.material)] = np.nan
            if abs(level - 1.0) < _ALIKE:
                ratio[:] = np.nan
            # Levels are learnt: what an old one said is not asked for again.
            if len(self._cache) > 8:
                self._cache.clear()
            self._cache[key] = ratio
        return self._cache[key]

    def nearest(self, kind: str, yx_nm: NDArray[np.float64]) -> tuple[int, float] | None:
        """The site at a place, and its evidence for the kind; None where there is none or it says nothing."""
        ratio = self.evidence(kind)
        index = np.flatnonzero(np.isfinite(ratio))
        if not len(index):
            return None
        distance = np.linalg.norm(self.yx_nm[index] - yx_nm, axis=1)
        k = int(distance.argmin())
        if distance[k] > _SAME * self.levels.material.bond_nm:
            return None
        return int(index[k]), float(ratio[index[k]])

    def at(self, kind: str, yx_nm: NDArray[np.float64]) -> float:
        """Evidence for the kind at a place; 0 where nothing is known [nats]."""
        found = self.nearest(kind, yx_nm)
        return 0.0 if found is None else found[1]

    def weigh(
        self, kind: str, places_nm: Mapping[int, NDArray[np.float64]], around_nm: NDArray[np.float64], reach_nm: float
    ) -> tuple[dict[int, float], float]:
        """Evidence for the kind at known places, and at any other within reach of a point [nats]."""
        ratio = self.evidence(kind)
        near = np.isfinite(ratio) & (np.linalg.norm(self.yx_nm - around_nm, axis=1) < reach_nm)
        result: dict[int, float] = {}
        for key, place in places_nm.items():
            site = self.nearest(kind, place)
            result[key] = 0.0 if site is None else site[1]
            if site is not None:
                near[site[0]] = False
        return result, float(np.log(np.mean(np.exp(ratio[near])))) if near.any() else 0.0

    def weighed(self, found: Sequence[Observation]) -> list[Observation]:
        """Observations with the brightness of their column and what it says for them."""
        material = self.levels.material
        if material.kind == "honeycomb":
            return list(found)
        result = []
        for seen in found:
            site = self.nearest(seen.name, seen.yx_nm) if on_one_site(seen.name, material) else None
            if site is not None:
                k, ratio = site
                value, sigma = float(self.value[k]), float(self.sigma[k])
                seen = replace(seen, intensity=value, intensity_sigma=sigma, evidence=ratio)
            result.append(seen)
        return result

    def offered(
        self, kinds: Mapping[str, Sequence[NDArray[np.float64]]], found: Sequence[Observation], reach_nm: float
    ) -> list[Observation]:
        """Sites that may be one of the `kinds`, apart from what was `found`.

        Where there are many, those within reach of the places (in the image) where one is expected go first, then
        the likely ones.
        """
        material = self.levels.material
        apart = _DISTURBED_NM if material.kind == "honeycomb" else _SAME * material.bond_nm
        result = []
        for kind in sorted(kinds):
            ratio = self.evidence(kind)
            with np.errstate(invalid="ignore"):
                ids = np.flatnonzero(ratio > LEAST)
            known = np.array([o.yx_nm for o in found if o.name == kind or material.kind == "honeycomb"]).reshape(-1, 2)
            rank, most = -ratio[ids], _OFFERED
            if len(ids) > most and len(kinds[kind]):
                near = cKDTree(np.array(kinds[kind])).query(self.yx_nm[ids])[0] < reach_nm
                rank, most = np.where(near, rank - 2 * _MOST, rank), min(most + int(near.sum()), 5 * _OFFERED)
            for k in ids[np.argsort(rank, kind="stable")][:most]:
                if len(known) and np.linalg.norm(known - self.yx_nm[k], axis=1).min() < apart:
                    continue
                chance = float(1.0 / (1.0 + np.exp(2.0 - ratio[k])))
                value = float(self.value[k]) if np.isfinite(self.value[k]) else float("nan")
                result.append(
                    Observation(
                        self.yx_px[k], self.yx_nm[k], _foreign(kind, material), {kind: chance}, chance, float("nan"), 0,
                        float("nan"), float(self.border_nm[k]), False, value, float(self.sigma[k]), float(ratio[k]),
                        float(ratio[k]),
                    )
                )  # fmt: skip
        return result


def _sublattice(kind: str, material: Material) -> int:
    found = _ON_SITE.match(kind)
    return 0 if found is None else material.species.index(found.group(2))


def _foreign(kind: str, material: Material) -> Mapping[str, int]:
    found = _ON_SITE.match(kind)
    if found is None or kind == f"V_{material.species[-1]}":
        return {}
    return {found.group(1): 1}


def site_field(analysis: FrameAnalysis, lattice: HostLattice | None, levels: Levels) -> SiteField:
    """The columns of a frame with their brightness, ready to be asked for point defects.

    Parameters
    ----------
    analysis : FrameAnalysis
    lattice : HostLattice or None
        Of this frame, in the image; sites of it without an atom are found only where it is known.
    levels : Levels
    """
    material, sites, pixel = get_material(analysis.material), analysis.sites, analysis.pixel_size
    yx_px = sites.yx_px
    yx_nm = pixel.to_nm(yx_px)
    value, sigma = np.array(sites.intensity, dtype=float), np.array(sites.intensity_sigma, dtype=float)
    value = np.where(sites.edge, np.nan, value)
    if material.kind == "honeycomb":
        place = np.zeros(len(sites), dtype=np.int64)
        host = np.isin(sites.species, material.species)
        value = np.where(host & ~_near(yx_nm, yx_nm[~host]), value, np.nan)
        sigma = np.hypot(np.nan_to_num(sigma, nan=np.inf), _SPREAD)
        if lattice is not None:
            gaps = _gaps(analysis, lattice, yx_nm, yx_nm[~host])
            yx_px = np.concatenate([yx_px, pixel.to_px(gaps)])
            yx_nm = np.concatenate([yx_nm, gaps])
            value = np.concatenate([value, np.full(len(gaps), -np.inf)])
            sigma = np.concatenate([sigma, np.full(len(gaps), _SPREAD)])
            place = np.concatenate([place, np.zeros(len(gaps), dtype=np.int64)])
    else:
        place, medians = _sublattices(analysis, material), []
        for number in range(len(material.species)):
            mine = (place == number) & np.isfinite(value)
            if not mine.any():
                continue
            level = float(np.median(value[mine]))
            spread = 1.4826 * float(np.median(np.abs(value[mine] - level)))
            # Scan distortion and residue make equal columns differ by more than counting does.
            sigma[mine] = np.maximum(np.nan_to_num(sigma[mine], nan=0.0), max(spread, 0.05 * level)) / level
            value[mine] /= level
            medians.append(level)
        if len(medians) == len(material.species) == 2 and medians[1] > 0:
            levels.hosts(medians[0] / medians[1])
    size = np.asarray(analysis.shape, dtype=float)
    border = np.minimum(yx_px + 0.5, size - 0.5 - yx_px).min(axis=1) * pixel.nm if len(yx_px) else np.zeros(0)
    return SiteField(yx_px, yx_nm, value, sigma, place, border, levels)


def _sublattices(analysis: FrameAnalysis, material: Material) -> NDArray[np.int64]:
    """(N,) number of the host species that belongs where each column stands, -1 where not known."""
    place = np.full(len(analysis.sites), -1, dtype=np.int64)
    for number, symbol in enumerate(material.species):
        place[analysis.sites.species == symbol] = number
    for defect in analysis.defects:
        found = _ON_SITE.match(defect.name)
        if found is not None and found.group(2) in material.species and len(defect.site_ids):
            place[defect.site_ids[0]] = material.species.index(found.group(2))
    return place


def _near(yx_nm: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether a position is so near to one of the others that it says nothing."""
    if not len(others) or not len(yx_nm):
        return np.zeros(len(yx_nm), dtype=bool)
    return np.asarray(cKDTree(others).query(yx_nm)[0] < _DISTURBED_NM)


def _gaps(analysis: FrameAnalysis, lattice: HostLattice, yx_nm: NDArray[np.float64],
          foreign: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, 2) lattice sites inside the image on which no atom was found [nm]."""
    if not len(yx_nm):
        return np.zeros((0, 2))
    bond, pixel = get_material(analysis.material).bond_nm, analysis.pixel_size
    size = pixel.to_nm(np.asarray(analysis.shape, dtype=float) - 1.0)
    corners = lattice.fractional(np.array([[0, 0], [0, size[1]], [size[0], 0], size]))
    low, high = np.floor(corners.min(axis=0)) - 1, np.ceil(corners.max(axis=0)) + 1
    spans = [np.arange(a, b + 1) for a, b in zip(low, high)]
    cells = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    every = lattice.cartesian((cells + MOTIF).reshape(-1, 2))
    every = every[(every > bond).all(axis=1) & (every < size - bond).all(axis=1)]
    if not len(every):
        return every
    gaps = every[cKDTree(yx_nm).query(every)[0] > 0.55 * bond]
    gaps = gaps[~_near(gaps, foreign)]
    # Where many are missing side by side it is the specimen, or its picture, that ends.
    if len(gaps) > 1:
        crowd = np.array([len(n) for n in cKDTree(gaps).query_ball_point(gaps, 3.5 * bond)])
        gaps = gaps[crowd <= 3]
    return gaps


def moved_since(
    name: str,
    start_nm: NDArray[np.float64],
    end_nm: NDArray[np.float64],
    past: Sequence[tuple[Any, SiteField]],
    *,
    after: int,
    before: int,
) -> Any:
    """The frame from which on the sites show a point defect at its new place, though it was read there later.

    Parameters
    ----------
    name : str
    start_nm, end_nm : (2,) float64
        Its places [nm].
    past : sequence of (moment, SiteField)
        Good frames and what their sites say, in order.
    after, before : int
        Frames between which to look, both excluded.

    Returns
    -------
    moment or None
    """
    total, best, first = 0.0, 0.0, None
    for moment, sites in reversed(past):
        if after < moment.frame < before:
            total += sites.at(name, end_nm) - sites.at(name, start_nm)
            if total > best:
                best, first = total, moment
    return first
