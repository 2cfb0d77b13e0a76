"""What tracking needs to know of one defect in one frame: position, foreign atoms, orientation, possible names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .analysis import Defect, FrameAnalysis
from .materials import get_material
from .sites import Sites

_CLUSTER = re.compile(r"^([A-Z][a-z]?)(\d*)(?:-?[A-Z]|_|$)")


@dataclass(frozen=True)
class Observation:
    """A defect as one frame shows it.

    Parameters
    ----------
    yx_px, yx_nm : (2,) float64
        Position in the image: mean of the foreign atoms, or the centre of a defect without any.
    foreign : mapping of str to int
        Foreign atoms by element.
    names : mapping of str to float
        Possible names and their probabilities.
    score : float
        Probability that the defect is there at all.
    angle_deg, fold, deviation_deg : float, int, float
        Orientation modulo 360/fold, the fold (0: no orientation), and the largest deviation of the
        triangle of foreign atoms from 60 degrees (NaN where there is no triangle).
    border_nm : float
        Distance from the nearest border of the image [nm].
    edge : bool
        One of its foreign atoms is too near the border to have all its bonds in view.
    intensity, intensity_sigma : float
        Mean intensity of its foreign atoms relative to the host, and its standard deviation; NaN where not known.
    faint : float
        0 for defects that the frame shows by itself. Otherwise a site that may be one, though the frame alone cannot
        tell: the log-likelihood ratio of the defect to a host atom, which counts only where such a defect is expected.
    evidence : float
        The same ratio for whatever stands on one site; NaN where not known [nats].
    """

    yx_px: NDArray[np.float64]
    yx_nm: NDArray[np.float64]
    foreign: Mapping[str, int]
    names: Mapping[str, float]
    score: float
    angle_deg: float
    fold: int
    deviation_deg: float
    border_nm: float
    edge: bool = False
    intensity: float = float("nan")
    intensity_sigma: float = float("nan")
    faint: float = 0.0
    evidence: float = float("nan")

    @property
    def name(self) -> str:
        """The most probable name."""
        return max(self.names, key=self.names.__getitem__)

    @property
    def atoms(self) -> int:
        """Number of foreign atoms."""
        return sum(self.foreign.values())


def foreign_atoms(name: str, host: tuple[str, ...]) -> int | None:
    """Number of foreign atoms that a defect name states; None where it states none ('unknown').

    >>> foreign_atoms("Si2C5", ("C",)), foreign_atoms("DV(5-8-5)", ("C",)), foreign_atoms("W_Mo", ("Mo", "Se"))
    (2, 0, 1)
    """
    if name == "unknown":
        return None
    if re.match(r"^(SV|DV|SW|GB|V)(\W|\d|_|$)", name):
        return 0
    found = _CLUSTER.match(name)
    if found is None or found.group(1) in host:
        return None if found is None else 0
    return int(found.group(2) or 1)


def orientation(points_nm: ArrayLike, fold: int) -> float:
    """Orientation of points about their centre [deg].

    Parameters
    ----------
    points_nm : (N, 2) array_like
        Positions (y, x).
    fold : int
        Symmetry; the angle is known modulo 360/fold.

    Returns
    -------
    float
        Direction from +x towards +y (downwards in the image), within [0, 360/fold) [deg].
    """
    points = np.asarray(points_nm, dtype=np.float64)
    y, x = (points - points.mean(axis=0)).T
    # Weighting with the radius squared for a pair, evenly for polygons, keeps a near centre from counting.
    angle = np.arctan2(y, x)
    phase = np.angle(np.sum(np.hypot(y, x) * np.exp(1j * fold * angle)))
    return float(np.degrees(phase) / fold % (360.0 / fold))


def triangle_deviation(points_nm: ArrayLike) -> float:
    """Largest deviation of the three angles of a triangle (3, 2) from 60 degrees [deg]."""
    p = np.asarray(points_nm, dtype=np.float64)
    worst = 0.0
    for k in range(3):
        u, v = p[(k + 1) % 3] - p[k], p[(k + 2) % 3] - p[k]
        cosine = (u @ v) / max(np.linalg.norm(u) * np.linalg.norm(v), 1e-12)
        worst = max(worst, abs(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) - 60.0))
    return worst


def _geometry(
    foreign: NDArray[np.float64], hosts: NDArray[np.float64], center: NDArray[np.float64], name: str
) -> tuple[float, int, float]:
    nan = float("nan")
    if len(foreign) in (3, 4):
        # Of four atoms (the filled rotor, or one seen twice) the most even triangle tells the orientation.
        corners = min((foreign[list(c)] for c in combinations(range(len(foreign)), 3)), key=triangle_deviation)
        return orientation(corners, 3), 3, triangle_deviation(corners)
    if len(foreign) == 2:
        return orientation(foreign, 2), 2, nan
    around = hosts - (foreign[0] if len(foreign) == 1 else center)
    if len(foreign) == 1 and len(hosts) in (3, 4):
        fold = len(hosts)
        phase = np.angle(np.sum(np.exp(1j * fold * np.arctan2(around[:, 0], around[:, 1]))))
        return float(np.degrees(phase) / fold % (360.0 / fold)), fold, nan
    if not len(foreign) and len(hosts) >= 4 and name.startswith(("DV", "SW")):
        moments = around.T @ around
        values, vectors = np.linalg.eigh(moments)
        if values[1] > 1.15 * values[0]:  # a round hole has no axis
            return float(np.degrees(np.arctan2(vectors[0, 1], vectors[1, 1])) % 180.0), 2, nan
    if not len(foreign) and len(hosts) == 3:
        phase = np.angle(np.sum(np.exp(3j * np.arctan2(around[:, 0], around[:, 1]))))
        return float(np.degrees(phase) / 3 % 120.0), 3, nan
    return nan, 0, nan


def _names(defect: Defect) -> dict[str, float]:
    names = {defect.name: float(np.clip(defect.probability, 0.0, 1.0))}
    for name, probability in defect.alternatives:
        names.setdefault(name, float(np.clip(probability, 0.0, 1.0)))
    if defect.coordination and len(defect.coordination) == 1 and len(names) == 1:
        # A single foreign atom: the probabilities of its numbers of bonds are those of its names.
        stem, _, host = defect.name.partition("-")
        symbol = re.match(r"[A-Z][a-z]?", host)
        bonds = "" if symbol is None else host[symbol.end() :]
        if symbol is not None and bonds.isdigit():
            counts = next(iter(defect.coordination.values()))
            for number, probability in counts.items():
                if probability > 1e-4:
                    # Where four host atoms are around it, one that is left alone leaves the vacancy complex.
                    left = "+V" if number == 3 and bonds == "4" else ""
                    names.setdefault(f"{stem}-{symbol.group()}{number}{left}", float(probability))
    total = sum(names.values())
    return {k: v / total for k, v in names.items()} if total > 1.0 else names


def observe(analysis: FrameAnalysis) -> list[Observation]:
    """The defects of an analysed frame as `Observation`."""
    material = get_material(analysis.material)
    sites, pixel = analysis.sites, analysis.pixel_size
    height, width = analysis.shape
    found = []
    for defect in analysis.defects:
        ids = np.asarray(defect.site_ids, dtype=np.int64)
        ids = ids[(ids >= 0) & (ids < len(sites))]
        species = sites.species[ids]
        foreign = ids[[_is_foreign(defect, s, material.species) for s in species]] if len(ids) else ids
        hosts = np.setdiff1d(ids, foreign)
        yx_px = sites.yx_px[foreign].mean(axis=0) if len(foreign) else np.asarray(defect.center_px, dtype=float)
        angle, fold, deviation = _geometry(
            pixel.to_nm(sites.yx_px[foreign]),
            pixel.to_nm(sites.yx_px[hosts]),
            pixel.to_nm(defect.center_px),
            defect.name,
        )
        border = min(yx_px[0] + 0.5, height - 0.5 - yx_px[0], yx_px[1] + 0.5, width - 0.5 - yx_px[1]) * pixel.nm
        score = float(sites.score[foreign].mean()) if len(foreign) else float(defect.probability)
        found.append(
            Observation(
                np.asarray(yx_px, dtype=float),
                pixel.to_nm(yx_px),
                dict(Counter(map(str, sites.species[foreign]))),
                _names(defect),
                float(np.clip(score, 0.0, 1.0)),
                angle,
                fold,
                deviation,
                float(border),
                bool(sites.edge[foreign].any()) if len(foreign) else False,
                *_brightness(sites, foreign),
            )
        )
    return found


def _brightness(sites: Sites, foreign: NDArray[np.int64]) -> tuple[float, float]:
    if not len(foreign):
        return float("nan"), float("nan")
    sigma = np.nan_to_num(sites.intensity_sigma[foreign], nan=0.0)
    return float(sites.intensity[foreign].mean()), float(np.sqrt((sigma**2).sum()) / len(foreign))


def _is_foreign(defect: Defect, species: str, host: tuple[str, ...]) -> bool:
    if species not in host:
        return True
    # In an alloy the foreign metal on a sublattice is named, e.g. W_Mo; host metals never are.
    return defect.name.startswith(f"{species}_") and not defect.name.startswith("V_")
