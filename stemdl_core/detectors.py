"""How bright columns are on annular detectors, and what may stand on a site of a dichalcogenide.

No image says which detector took it, and no single law fits all of them. At high angles a column's intensity is
the sum over its atoms of about Z^1.6. At low angles the exponent falls to about 1 and the two chalcogens
of a column scatter coherently: the pair is up to 3.5 times as bright as one of them, instead of twice, and the
factor falls where the sheet is tilted. Tungsten diselenide then changes its face: the selenium column becomes
the brighter one. Every detector below is one hypothesis; the image decides.

References
----------
Krivanek et al., Nature 464, 571 (2010): Z^1.64 at medium and high angles. The low-angle brightnesses are
our own wave-optical calculation (Lobato & Van Dyck potentials; thermal displacements of 6-7.5 pm, a source of 35 pm)
of single columns under focused probes of 32 mrad at 60 kV and 27 mrad at 80 kV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from .materials import Material

#: Exponent of the usual detector.
Z_EXPONENT = 1.64
#: Exponents n of Z^n for incoherent detectors and how often they are met.
_EXPONENTS = {0.9: 0.5, 1.05: 0.6, 1.2: 0.8, 1.35: 1.2, 1.5: 2.0, 1.64: 3.0, 1.8: 2.0, 1.95: 0.6}
_ELEMENTS = ("S", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Se", "Nb", "Mo", "Te", "Ta", "W", "Re")
#: One atom's brightness over tungsten's for `_ELEMENTS`; then the brightness of S2, Se2, Te2 over one atom's,
#: upright and tilted. Inner and outer angle [mrad] at 60 kV unless stated.
_LOW_ANGLE = (
    # 35-60
    ((0.182, 0.316, 0.330, 0.335, 0.352, 0.360, 0.366, 0.450, 0.637, 0.660, 0.859, 0.988, 1.0, 1.012),
     (3.69, 3.54, 3.21), (2.54, 2.36, 2.26)),
    # 40-80
    ((0.158, 0.284, 0.302, 0.316, 0.334, 0.347, 0.358, 0.442, 0.600, 0.624, 0.825, 0.990, 1.0, 1.010),
     (3.42, 3.27, 3.03), (2.22, 2.06, 1.99)),
    # 45-150
    ((0.131, 0.237, 0.255, 0.272, 0.289, 0.305, 0.320, 0.416, 0.548, 0.569, 0.762, 0.992, 1.0, 1.009),
     (2.86, 2.73, 2.64), (2.00, 1.90, 1.86)),
    # 40-80 at 80 kV
    ((0.128, 0.237, 0.255, 0.272, 0.288, 0.303, 0.317, 0.402, 0.536, 0.558, 0.759, 0.991, 1.0, 1.010),
     (3.19, 3.09, 2.95), (2.01, 1.91, 1.87)),
    # 60-150
    ((0.115, 0.209, 0.227, 0.245, 0.263, 0.280, 0.297, 0.402, 0.517, 0.536, 0.724, 0.993, 1.0, 1.008),
     (2.37, 2.35, 2.35), (1.82, 1.78, 1.76)),
    # 60-150 at 80 kV
    ((0.095, 0.170, 0.185, 0.201, 0.217, 0.233, 0.249, 0.353, 0.459, 0.475, 0.656, 0.989, 1.0, 1.011),
     (2.21, 2.25, 2.31), (1.78, 1.76, 1.75)),
    # 85-150
    ((0.102, 0.177, 0.193, 0.209, 0.226, 0.243, 0.260, 0.376, 0.483, 0.499, 0.677, 0.991, 1.0, 1.009),
     (1.83, 1.91, 2.02), (1.80, 1.79, 1.78)),
)
#: How often a low-angle detector is met, each, upright or half tilted.
_LOW_ANGLE_PRIOR = 0.5
_CHALCOGENS = ("S", "Se", "Te")

#: What the tails of its neighbours leave on an empty site, over the host column there.
_EMPTY = 0.10
#: Elements met as dopants on metal sites, with how common they are. Vanadium is as common as titanium and as bright;
#: it comes first only where the user names it, since a "V_W" reads as a vacancy to most eyes.
_METALS = {"Mo": 3.0, "W": 3.0, "V": 0.5, "Nb": 2.0, "Re": 1.5, "Ti": 1.0, "Cr": 1.0, "Ta": 1.0, "Fe": 0.7,
           "Mn": 0.7, "Co": 0.7}
#: How much more likely a dopant is that the user names, and that the material's table names.
_NAMED_BY_USER, _NAMED_BY_MATERIAL = 30.0, 4.0


@dataclass(frozen=True)
class Detectors:
    """All detector hypotheses, as parallel rows.

    Parameters
    ----------
    prior : (R,) float64
        How often each is met; the sum is 1.
    coherent : (R,) bool
        Whether the atoms of a column scatter coherently, so that its brightness depends on tilt.
    """

    prior: NDArray[np.float64]
    coherent: NDArray[np.bool_]

    def one(self, symbol: str) -> NDArray[np.float64]:
        """(R,) brightness of one atom, over tungsten's."""
        return _one(symbol)

    def pair(self, symbol: str) -> NDArray[np.float64]:
        """(R,) brightness of a column of two chalcogens, over one tungsten's."""
        return _one(symbol) * _pair_factor(symbol)


@lru_cache(maxsize=128)
def _one(symbol: str) -> NDArray[np.float64]:
    z, tungsten = atomic_numbers[symbol], atomic_numbers["W"]
    rows = [(z / tungsten) ** n for n in _EXPONENTS]
    known = np.log([atomic_numbers[s] for s in _ELEMENTS])
    for brightness, _, _ in _LOW_ANGLE:
        value = (brightness[_ELEMENTS.index(symbol)] if symbol in _ELEMENTS
                 else math.exp(float(np.interp(math.log(z), known, np.log(brightness)))))
        rows += [value, value]
    return np.array(rows)


@lru_cache(maxsize=8)
def _pair_factor(symbol: str) -> NDArray[np.float64]:
    k = _CHALCOGENS.index(symbol) if symbol in _CHALCOGENS else 1
    rows = [2.0] * len(_EXPONENTS)
    for _, upright, tilted in _LOW_ANGLE:
        rows += [upright[k], math.sqrt(upright[k] * tilted[k])]
    return np.array(rows)


@lru_cache(maxsize=1)
def all_detectors() -> Detectors:
    """The detectors that an image is read with."""
    prior = np.array([*_EXPONENTS.values(), *[_LOW_ANGLE_PRIOR] * (2 * len(_LOW_ANGLE))])
    coherent = np.array([False] * len(_EXPONENTS) + [row[1][1] > 2.1 for row in _LOW_ANGLE for _ in (0, 1)])
    return Detectors(prior / prior.sum(), coherent)


def intensity_of(symbol: str) -> float:
    """Relative intensity of one atom on the usual detector."""
    return float(atomic_numbers[symbol]) ** Z_EXPONENT


@dataclass(frozen=True)
class Reading:
    """One thing that may stand on a site.

    Parameters
    ----------
    name, element : str
        Of the defect, and of the column.
    ratio : (R,) float64
        Brightness over the host column's, on every detector.
    prior : float
        Probability that a specimen has any of it.
    usual, spread : float
        Usual share of the sites, and the standard deviation of its logarithm.
    """

    name: str
    element: str
    ratio: NDArray[np.float64]
    prior: float
    usual: float
    spread: float


def metal_readings(material: Material, dopant: str | None) -> list[Reading]:
    """Everything but the host that may stand on a metal site.

    Parameters
    ----------
    material : Material
    dopant : str, optional
        Element that the user expects; the material's own by default, '' for none in particular.
    """
    metal, chalcogen = material.species
    d = all_detectors()
    base = d.one(metal)
    named = material.dopant if dopant is None else dopant
    weight = {s: c for s, c in _METALS.items() if s != metal}
    if named and named != metal and named in atomic_numbers:
        weight[named] = weight.get(named, 1.0) * (_NAMED_BY_MATERIAL if dopant is None else _NAMED_BY_USER)
    total = sum(weight.values())
    readings = [Reading(f"{s}_{metal}", s, d.one(s) / base, 0.6 * w / total, 0.03, 1.8)
                for s, w in weight.items()]
    readings.append(Reading(f"{chalcogen}2_{metal}", chalcogen, d.pair(chalcogen) / base, 0.02, 0.004, 1.0))
    readings.append(Reading(f"{chalcogen}_{metal}", chalcogen, d.one(chalcogen) / base, 0.02, 0.004, 1.0))
    readings.append(Reading(f"vac_{metal}", metal, np.full(len(base), _EMPTY), 0.02, 0.003, 1.0))
    return readings


def chalcogen_readings(material: Material) -> list[Reading]:
    """Everything but the host that may stand on a chalcogen site."""
    metal, chalcogen = material.species
    d = all_detectors()
    one, two, heavy = d.one(chalcogen), d.pair(chalcogen), d.one(metal)
    readings = [
        Reading(f"V_{chalcogen}", chalcogen, one / two, 0.7, 0.02, 1.3),
        Reading(f"V_{chalcogen}2", chalcogen, np.full(len(one), _EMPTY), 0.15, 0.004, 1.2),
        Reading(f"{metal}_{chalcogen}2", metal, heavy / two, 0.02, 0.004, 1.0),
        Reading(f"{metal}_{chalcogen}", metal, (heavy + one) / two, 0.02, 0.004, 1.0),
    ]
    for other in _CHALCOGENS:
        if other != chalcogen:
            readings.append(Reading(f"{other}_{chalcogen}", other, (one + d.one(other)) / two, 0.02, 0.05, 1.5))
    return readings
