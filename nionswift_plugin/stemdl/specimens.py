"""Specimens of the simulated microscope: atoms that drift, and that the beam moves, switches and removes.

Every change happens with a probability that follows the dose on the place where it happens; the truth is
known at any time.
"""

from __future__ import annotations

import threading
import time
import typing

import numpy

if typing.TYPE_CHECKING:
    from collections.abc import Callable

#: Bond length of graphene, and the projected silicon-carbon distance of the 3-fold (buckled) silicon [nm].
_CC_NM, _SIC_NM = 0.142, 0.160
#: A silicon changes places with a neighbour once in this dose on average [electrons/nm^2]; the mechanism
#: and the order of magnitude are those of Susi et al., Phys. Rev. Lett. 113, 115501 (2014).
HOP_DOSE_E_PER_NM2 = 6e8
#: It goes from three to four bonds, and back, once in this dose on average [electrons/nm^2].
SWITCH_DOSE_E_PER_NM2 = 2.5e9
#: A selenium atom of MoSe2 is lost once in this dose on average; a vacancy moves on once in the other.
SELENIUM_DOSE_E_PER_NM2, VACANCY_HOP_DOSE_E_PER_NM2 = 4e10, 2e9
#: Carbon atoms that the beam deposits on dirty places, per electron [1/electron].
_DEPOSIT = 2e-9
_MOST_DIRT = 20000


class Sample:
    """What all specimens share: drift, and dirt that grows under the beam where there is some.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything random.
    size_nm : float
        Side of the square sheet, whose centre is at the origin of the scan's coordinates [nm].
    drift_nm_per_s : (float, float)
        Velocity of the sheet (y, x).
    clock : callable
        Time [s].
    dirt : float
        Part of the sheet that is dirty.
    """

    def __init__(
        self,
        *,
        rng: numpy.random.Generator,
        size_nm: float,
        drift_nm_per_s: tuple[float, float],
        clock: Callable[[], float],
        dirt: float,
    ) -> None:
        self._rng = rng
        self._lock = threading.Lock()
        self.__clock = clock
        self.__start_s = clock()
        self.__drift = numpy.asarray(drift_nm_per_s, dtype=float)
        # Dirt lies in patches a few nm wide; nothing is drawn where there is none, so that a clean sheet
        # takes nothing from the source of randomness.
        self.__patches = numpy.zeros((0, 3))
        if dirt > 0:
            count = max(1, round(dirt * size_nm**2 / 4.0))
            radius = rng.uniform(0.5, 1.6, (count, 1))
            self.__patches = numpy.hstack([rng.uniform(-size_nm / 2, size_nm / 2, (count, 2)), radius])
        self.__dirt = numpy.zeros((0, 2))
        self.__deposit(1e9, lambda yx: numpy.ones(len(yx), dtype=bool))

    @property
    def drift_nm(self) -> numpy.ndarray:
        """(2,) how far the sheet has moved (y, x) [nm]."""
        return self.__drift * (self.__clock() - self.__start_s)

    def dirt(self) -> numpy.ndarray:
        """(N, 2) positions of amorphous carbon (y, x) [nm]."""
        with self._lock:
            return self.__dirt + self.drift_nm

    def expose(self, dose_e_per_nm2: float, inside: Callable[[numpy.ndarray], numpy.ndarray]) -> None:
        """Let the beam act on the scanned area, which `inside` tells positions of."""
        with self._lock:
            self._change(dose_e_per_nm2, inside)
            self.__deposit(dose_e_per_nm2, lambda yx: inside(yx + self.drift_nm))

    def __deposit(self, dose_e_per_nm2: float, inside: Callable[[numpy.ndarray], numpy.ndarray]) -> None:
        if not len(self.__patches) or len(self.__dirt) > _MOST_DIRT:
            return
        radius = self.__patches[:, 2]
        count = self._rng.poisson(_DEPOSIT * dose_e_per_nm2 * numpy.pi * radius**2)
        patch = numpy.repeat(numpy.arange(len(radius)), count)
        yx = self.__patches[patch, :2] + self._rng.normal(0, 0.5, (len(patch), 2)) * radius[patch, None]
        self.__dirt = numpy.concatenate([self.__dirt, yx[inside(yx)]])

    def _change(self, dose_e_per_nm2: float, inside: Callable[[numpy.ndarray], numpy.ndarray]) -> None:
        raise NotImplementedError

    def atoms(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(N, 2) positions (y, x) [nm] where they are now, and (N,) symbols."""
        raise NotImplementedError

    def defects(self) -> list[tuple[str, numpy.ndarray]]:
        """Name and position (y, x) [nm] of every defect, now."""
        raise NotImplementedError

    def _happens(self, dose_e_per_nm2: float, each_e_per_nm2: float, count: int) -> numpy.ndarray:
        """(count,) bool: which of so many things that happen once in a dose happen now."""
        return self._rng.random(count) < 1 - numpy.exp(-dose_e_per_nm2 / each_e_per_nm2)


class Specimen(Sample):
    """A sheet of graphene with silicon on some of its sites.

    Parameters
    ----------
    rng, size_nm, drift_nm_per_s, clock, dirt
        See `Sample`.
    silicon : int
        Number of silicon atoms; the first is near the centre.
    rotation_deg : float
        Rotation of the lattice.
    switching : bool
        Whether silicon goes between three and four bonds.
    """

    def __init__(
        self,
        *,
        rng: numpy.random.Generator,
        size_nm: float = 24.0,
        silicon: int = 40,
        rotation_deg: float = 13.0,
        drift_nm_per_s: tuple[float, float] = (0.004, -0.003),
        clock: Callable[[], float] = time.monotonic,
        switching: bool = True,
        dirt: float = 0.0,
    ) -> None:
        super().__init__(rng=rng, size_nm=size_nm, drift_nm_per_s=drift_nm_per_s, clock=clock, dirt=dirt)
        self.__switching = switching
        self.__sites, self.__neighbours = graphene_sheet(size_nm, rotation_deg)
        inside = numpy.flatnonzero((self.__neighbours >= 0).all(axis=1))
        self.__silicon = self.__place(inside, silicon)
        #: For each silicon, the site it shares when it has four bonds, whose carbon is gone; -1 for three.
        self.__shared = [-1] * len(self.__silicon)

    def __place(self, candidates: numpy.ndarray, count: int) -> list[int]:
        """Sites for silicon, at least 1.2 nm apart."""
        distance = numpy.hypot(*self.__sites[candidates].T)
        chosen = [int(candidates[distance.argmin()])]
        for site in self._rng.permutation(candidates):
            if len(chosen) >= count:
                break
            if numpy.hypot(*(self.__sites[chosen] - self.__sites[site]).T).min() > 1.2:
                chosen.append(int(site))
        return chosen[:count]

    def __where(self) -> numpy.ndarray:
        """(K, 2) silicon, drift left out."""
        yx = self.__sites[self.__silicon]
        shared = numpy.array(self.__shared, dtype=int).reshape(-1)
        return numpy.where((shared >= 0)[:, None], (yx + self.__sites[shared]) / 2, yx)

    def atoms(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(N, 2) positions (y, x) [nm] where they are now, and (N,) symbols."""
        with self._lock:
            silicon, shared, where = list(self.__silicon), list(self.__shared), self.__where()
        yx = self.__sites.copy()
        species = numpy.full(len(yx), "C", dtype="U2")
        species[silicon] = "Si"
        for site, other, place in zip(silicon, shared, where):
            if other >= 0:
                yx[site] = place
            else:
                # The neighbours make room for the larger atom.
                for neighbour in self.__neighbours[site]:
                    yx[neighbour] = place + (yx[neighbour] - place) * (_SIC_NM / _CC_NM)
        keep = numpy.ones(len(yx), dtype=bool)
        keep[[other for other in shared if other >= 0]] = False
        return yx[keep] + self.drift_nm, species[keep]

    def defects(self) -> list[tuple[str, numpy.ndarray]]:
        """Name and position (y, x) [nm] of every defect, now."""
        with self._lock:
            shared, where = list(self.__shared), self.__where() + self.drift_nm
        return [("Si-C4" if other >= 0 else "Si-C3", place) for other, place in zip(shared, where)]

    def _change(self, dose_e_per_nm2: float, inside: Callable[[numpy.ndarray], numpy.ndarray]) -> None:
        seen = inside(self.__where() + self.drift_nm)
        hops = seen & self._happens(dose_e_per_nm2, HOP_DOSE_E_PER_NM2, len(seen))
        for i in numpy.flatnonzero(hops):
            if self.__shared[i] >= 0:
                continue
            target = int(self._rng.choice(self.__neighbours[self.__silicon[i]]))
            if self.__free(i, target):
                self.__silicon[i] = target
        if not self.__switching:
            return
        for i in numpy.flatnonzero(seen & self._happens(dose_e_per_nm2, SWITCH_DOSE_E_PER_NM2, len(seen))):
            if self.__shared[i] >= 0:
                # A carbon atom comes back: silicon has three bonds again, on either of the two sites.
                if self._rng.random() < 0.5:
                    self.__silicon[i] = self.__shared[i]
                self.__shared[i] = -1
            else:
                target = int(self._rng.choice(self.__neighbours[self.__silicon[i]]))
                if self.__free(i, target):
                    self.__shared[i] = target

    def __free(self, i: int, target: int) -> bool:
        """Whether a site has all its neighbours and no other silicon near."""
        others = self.__silicon[:i] + self.__silicon[i + 1 :]
        apart = numpy.hypot(*(self.__sites[others] - self.__sites[target]).T).min(initial=9.9)
        return bool((self.__neighbours[target] >= 0).all() and apart > 0.6)


class Dichalcogenide(Sample):
    """A sheet of MoSe2 with some tungsten, which loses selenium under the beam.

    Parameters
    ----------
    rng, size_nm, drift_nm_per_s, clock, dirt
        See `Sample`.
    tungsten : float
        Part of the metal sites that hold tungsten.
    vacancies : int
        Selenium vacancies at the beginning.
    rotation_deg : float
        Rotation of the lattice.
    """

    def __init__(
        self,
        *,
        rng: numpy.random.Generator,
        size_nm: float = 24.0,
        tungsten: float = 0.08,
        vacancies: int = 30,
        rotation_deg: float = 7.0,
        drift_nm_per_s: tuple[float, float] = (0.004, -0.003),
        clock: Callable[[], float] = time.monotonic,
        dirt: float = 0.0,
    ) -> None:
        from stemdl_core.simulate.structures import mx2

        super().__init__(rng=rng, size_nm=size_nm, drift_nm_per_s=drift_nm_per_s, clock=clock, dirt=dirt)
        sheet = mx2(material="MoSe2", fov_nm=size_nm, rotation_deg=rotation_deg, margin_nm=0.0)
        self.__sites = sheet.yx_nm - size_nm / 2
        self.__species = numpy.array(sheet.atoms.get_chemical_symbols(), dtype="U2")
        metal = numpy.flatnonzero(self.__species == "Mo")
        self.__species[metal[rng.random(len(metal)) < tungsten]] = "W"
        self.__selenium = numpy.flatnonzero(self.__species == "Se")
        self.__there = numpy.ones(len(self.__sites), dtype=bool)
        inner = self.__selenium[(numpy.abs(self.__sites[self.__selenium]) < size_nm / 2 - 0.5).all(axis=1)]
        self.__there[rng.choice(inner, min(vacancies, len(inner)), replace=False)] = False

    def atoms(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(N, 2) positions (y, x) [nm] where they are now, and (N,) symbols; two selenium atoms a column."""
        with self._lock:
            there = self.__there.copy()
        return self.__sites[there] + self.drift_nm, self.__species[there]

    def defects(self) -> list[tuple[str, numpy.ndarray]]:
        """Name and position (y, x) [nm] of every defect, now."""
        with self._lock:
            there = self.__there.copy()
        drift = self.drift_nm
        found = [("W_Mo", self.__sites[i] + drift) for i in numpy.flatnonzero(self.__species == "W")]
        lost = [i for i in self.__selenium if not there[i]]
        columns: dict[tuple[float, float], int] = {}
        for i in lost:
            place = tuple(numpy.round(self.__sites[i], 4).tolist())
            columns[place] = columns.get(place, 0) + 1
        found += [("V_Se" if n == 1 else "V_Se2", numpy.array(place) + drift) for place, n in columns.items()]
        return found

    def _change(self, dose_e_per_nm2: float, inside: Callable[[numpy.ndarray], numpy.ndarray]) -> None:
        selenium = self.__selenium
        seen = inside(self.__sites[selenium] + self.drift_nm)
        there = self.__there[selenium]
        lost = seen & there & self._happens(dose_e_per_nm2, SELENIUM_DOSE_E_PER_NM2, len(selenium))
        moved = seen & ~there & self._happens(dose_e_per_nm2, VACANCY_HOP_DOSE_E_PER_NM2, len(selenium))
        self.__there[selenium[lost]] = False
        for i in selenium[moved]:
            distance = numpy.hypot(*(self.__sites[selenium] - self.__sites[i]).T)
            near = selenium[(distance < 0.4) & (distance > 0.1) & self.__there[selenium]]
            if len(near):
                self.__there[i], self.__there[self._rng.choice(near)] = True, False


def graphene_sheet(size_nm: float, rotation_deg: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Sites (N, 2) of a graphene sheet [nm], and (N, 3) their neighbours (-1 beyond the rim)."""
    a = 3**0.5 * _CC_NM
    count = int(size_nm / a * 1.6) + 2
    i, j = (g.ravel() for g in numpy.meshgrid(*[numpy.arange(-count, count + 1)] * 2))
    first, second = numpy.array([0.0, a]), numpy.array([a * 3**0.5 / 2, a / 2])
    cell = i[:, None] * first + j[:, None] * second
    basis = (first + second) / 3
    yx = numpy.concatenate([cell, cell + basis])
    number = numpy.full((2, 2 * count + 1, 2 * count + 1), -1)
    turn = numpy.deg2rad(rotation_deg)
    rotated = yx @ numpy.array([[numpy.cos(turn), numpy.sin(turn)], [-numpy.sin(turn), numpy.cos(turn)]])
    keep = (numpy.abs(rotated) < size_nm / 2).all(axis=1)
    lattice = numpy.repeat([0, 1], len(cell))
    row, column = numpy.tile(i, 2) + count, numpy.tile(j, 2) + count
    number[lattice[keep], row[keep], column[keep]] = numpy.arange(keep.sum())
    # A site of lattice 0 at cell (i, j) is bonded to those of lattice 1 at (i, j), (i-1, j) and (i, j-1),
    # and vice versa.
    sign = numpy.where(lattice == 0, -1, 1)
    neighbours = []
    for di, dj in ((0, 0), (1, 0), (0, 1)):
        r = numpy.clip(row + sign * di, 0, 2 * count)
        c = numpy.clip(column + sign * dj, 0, 2 * count)
        neighbours.append(number[1 - lattice, r, c])
    return rotated[keep], numpy.stack(neighbours, axis=1)[keep]
