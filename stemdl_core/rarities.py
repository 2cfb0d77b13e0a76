"""Columns too few to show as a level of their own: what is known beforehand decides, one column at a time.

A mixture model finds the levels that many columns share. A single vacancy in a small field is no level, but where one
chalcogen is missing half of the light is missing too, and tungsten among molybdenum has its brightness: on the detector
that the image was taken with, everything that may stand on a site has an expected brightness, and a usual share.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detectors import Reading
from .sublattice import tolerances

#: Part of the host columns whose errors are wider than stated, and by how many times.
_STRAY, _WIDER = 0.02, 2.0
#: Shares are weighed at so many places of their usual distribution, within two of its standard deviations.
_SHARES = np.linspace(-2.0, 2.0, 9)
#: Hypotheses of the detector below this probability are left out.
_LEAST = 0.02
#: Columns closer to the host's level than this, in standard errors, are the host's.
_NEAR = 1.5
#: A column is called foreign above this probability: most sheets have few, and a false one costs more than a missed.
_SURE = 0.65
#: Part of the columns with an atom of dirt on them, and the typical brightness it adds, over a host column's.
_DIRT, _DIRT_LEVEL = 0.004, 0.4


@dataclass(frozen=True)
class Rarities:
    """What single columns are.

    Parameters
    ----------
    index : (K,) int64
        Columns that are foreign more likely than not.
    reading : tuple of Reading
        Most probable reading of each.
    probability : (K,) float64
        Of that reading.
    """

    index: NDArray[np.intp]
    reading: tuple[Reading, ...]
    probability: NDArray[np.float64]


def rarities(value: NDArray[np.float64], sigma: NDArray[np.float64], slope: float, width: float,
             readings: list[Reading], detector: NDArray[np.float64], expected: Container[str | None]) -> Rarities:
    """Columns that are more probably foreign than the host's.

    Parameters
    ----------
    value, sigma : (N,) float64
        Brightness over the host column's, and its standard error.
    slope : float
        By how much the square of the error grows with the brightness: counting noise.
    width : float
        Relative scatter of equal columns beyond their errors.
    readings : list of Reading
        What may stand there, and is no level of its own.
    detector : (R,) float64
        Probability of every detector.
    expected : container of str
        Elements that a single column may be; the others compete.
    """
    none = Rarities(np.zeros(0, dtype=np.intp), (), np.zeros(0))
    # The error of a host column that happens to look bright is that of a host column.
    as_host = np.sqrt(np.maximum(sigma**2 + slope * (1.0 - value), 0.25 * sigma**2) + width**2)
    away = np.flatnonzero(np.isfinite(value) & (np.abs(value - 1.0) > _NEAR * as_host))
    if len(away) == 0 or not readings:
        return none
    v, s, e = value[away], sigma[away], as_host[away]
    host = (1.0 - _STRAY) * _normal(v - 1.0, e) + _STRAY * _normal(v - 1.0, _WIDER * e)
    likely = detector > _LEAST * detector.max()
    trust = detector[likely] / detector[likely].sum()
    ratio = np.array([r.ratio for r in readings])[:, likely]
    scale = ratio * np.hypot(np.minimum(tolerances(ratio), 1.0), width)
    # (K, N) density of each reading, over the host's; that of dirt comes last
    odds = (_normal(v - ratio[:, :, None], np.hypot(s, scale[:, :, None])) * trust[:, None]).sum(axis=1)
    dirt = np.where(v > 1.0, np.exp(-np.maximum(v - 1.0, 0.0) / _DIRT_LEVEL) / _DIRT_LEVEL, 0.0) * np.sqrt(2 * np.pi)
    odds = np.vstack([odds, dirt]) / host
    share = np.array([*(r.prior * r.usual for r in readings), _DIRT])
    order = np.argsort(share[:-1])[::-1]
    for _ in range(2):
        for k in order.tolist():
            others = 1.0 + share @ odds - share[k] * odds[k]
            share[k] = _share(readings[k], odds[k] / others, len(value))
    weighed = share[:, None] * odds
    chance = (weighed / (1.0 + weighed.sum(axis=0)))[:-1]
    best = chance.argmax(axis=0)
    wanted = np.array([r.element in expected for r in readings])
    take = np.flatnonzero((chance.sum(axis=0) > _SURE) & wanted[best])
    return Rarities(away[take], tuple(readings[k] for k in best[take].tolist()), chance[best[take], take])


def _share(reading: Reading, odds: NDArray[np.float64], count: int) -> float:
    """Expected share of a reading, of a specimen that may have none of it: averaged over how common it may be.

    `odds` (N,) is its density over the host's of the columns away from the host's level, of `count` columns.
    """
    shares = np.minimum(reading.usual * np.exp(reading.spread * _SHARES), 0.5)
    # Columns at the host's level count for the host.
    log_p = np.log1p(shares[:, None] * (odds - 1.0)).sum(axis=1) + (count - len(odds)) * np.log1p(-shares)
    log_p += np.log(reading.prior) - 0.5 * _SHARES**2 - np.log(np.exp(-0.5 * _SHARES**2).sum())
    log_p = np.append(log_p, np.log(max(1.0 - reading.prior, 1e-3)))
    p = np.exp(log_p - log_p.max())
    return float((p[:-1] * shares).sum() / p.sum())


def _normal(x: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(-0.5 * (x / width) ** 2) / width)
