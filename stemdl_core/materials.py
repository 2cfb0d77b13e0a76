"""Materials: lattice, species, and the chemistry that limits bonds. Element data from ASE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from ase.data import atomic_numbers, covalent_radii

from .errors import StemdlError

#: Most bonds an atom of the element makes within a two-dimensional lattice.
_MOST_BONDS = {"H": 1, "B": 3, "C": 3, "N": 3, "O": 2, "Si": 4, "P": 4, "Al": 4, "Ge": 4, "S": 3, "Se": 3, "Te": 3,
               "Mo": 6, "W": 6, "V": 6, "Nb": 6, "Re": 6, "Ti": 6, "Cr": 6, "Ta": 6}
#: A projected bond may be this much longer than the sum of covalent radii (Cordero et al., 2008) before it
#: no longer counts: thermal motion, strained defects and the planar 4-fold dopants are within it.
BOND_TOLERANCE = 1.25


@lru_cache(maxsize=1024)
def bond_length_pm(a: str, b: str) -> float:
    """Sum of the covalent radii of two elements [pm] (Cordero et al., Dalton Trans. 2008, 2832)."""
    return 100.0 * float(covalent_radii[atomic_numbers[a]] + covalent_radii[atomic_numbers[b]])


@dataclass(frozen=True)
class Material:
    """A two-dimensional host crystal.

    Parameters
    ----------
    name : str
        'graphene', 'MoSe2', ...
    kind : {'honeycomb', 'mx2'}
        One atom a site, or a metal sublattice and a sublattice of stacked chalcogen pairs (1H, seen along c).
    lattice_nm : float
        In-plane lattice constant a [nm].
    species : tuple of str
        Host species: ('C',) or (metal, chalcogen).
    dopant : str
        Default element of the class of bright foreign atoms.
    """

    name: str
    kind: str
    lattice_nm: float
    species: tuple[str, ...]
    dopant: str

    @property
    def bond_nm(self) -> float:
        """Distance between neighbouring columns in projection, a / sqrt(3) [nm]."""
        return self.lattice_nm / 3**0.5

    def atomic_number(self, symbol: str) -> int:
        """Atomic number of an element."""
        return element(symbol)

    def longest_bond_pm(self, a: str, b: str) -> float:
        """Longest projected distance at which atoms of species a and b count as bonded [pm]."""
        host = 1e3 * self.bond_nm
        if a in self.species and b in self.species:
            return 1.25 * host
        return BOND_TOLERANCE * bond_length_pm(a, b)

    def most_bonds(self, symbol: str) -> int:
        """Most bonds an atom of the species makes within the sheet."""
        if self.kind == "mx2":
            return 3
        return _MOST_BONDS.get(symbol, 4)


def element(symbol: str) -> int:
    """Atomic number of a chemical symbol.

    Raises
    ------
    StemdlError
        If there is no such element.
    """
    number = atomic_numbers.get(symbol, 0)
    if number == 0:
        raise StemdlError(f"unknown element {symbol!r}: give a chemical symbol such as Si or P")
    return int(number)


#: Lattice constants: graphene 246 pm; MX2 monolayers after Rasmussen & Thygesen, J. Phys. Chem. C 2015, 119, 13169
#: and the experimental bulk values they compare with.
MATERIALS = MappingProxyType({m.name: m for m in (
    Material("graphene", "honeycomb", 0.2460, ("C",), "Si"),
    Material("MoS2", "mx2", 0.3160, ("Mo", "S"), "W"),
    Material("MoSe2", "mx2", 0.3288, ("Mo", "Se"), "W"),
    Material("WS2", "mx2", 0.3153, ("W", "S"), "Mo"),
    Material("WSe2", "mx2", 0.3286, ("W", "Se"), "Mo"),
)})


def get_material(name: str) -> Material:
    """A material by name.

    Raises
    ------
    StemdlError
        If the name is not known; the message lists those that are.
    """
    try:
        return MATERIALS[name]
    except KeyError:
        raise StemdlError(f"unknown material {name!r}: choose one of {', '.join(MATERIALS)}") from None
