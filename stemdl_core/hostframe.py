"""The host lattice through located sites, and the specimen's frame that it defines through a movie.

The phase of the lattice is known to a few picometres from dozens of host atoms, but only modulo a lattice
vector. Which branch is meant is decided where the defects are linked (`linking`), since they break the
translation symmetry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from .analysis import FrameAnalysis
from .materials import Material, get_material

#: Sublattices A and B of the honeycomb, in lattice vectors 60 degrees apart, from the centre of a hexagon.
MOTIF = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]])
#: With fewer host atoms the shape of the cell is taken from the frames before.
_ENOUGH_FOR_SHAPE = 24
_ENOUGH_FOR_PHASE = 6
#: The most that a drift known from elsewhere can say against a branch [nats].
_MOST_AGAINST = 3.0
#: Cost of a jump of the view, or of the specimen, by any distance, and for every nm of it [nats].
_JUMP, _JUMP_PER_NM = 7.0, 2.0
#: Steps that missed the prediction by more standard deviations are jumps: the next step is not like them.
_OUTLYING = 3.0


@dataclass(frozen=True)
class HostLattice:
    """Honeycomb lattice of one frame.

    Parameters
    ----------
    origin_nm : (2,) float64
        Centre of a hexagon (y, x) [nm].
    basis_nm : (2, 2) float64
        Lattice vectors as rows (y, x), 60 degrees apart [nm].
    sites : int
        Number of host atoms it was fitted to.
    rms_nm : float
        Root mean square distance of these atoms from the lattice, per axis [nm].
    """

    origin_nm: NDArray[np.float64]
    basis_nm: NDArray[np.float64]
    sites: int = 0
    rms_nm: float = 0.0

    def fractional(self, yx_nm: ArrayLike) -> NDArray[np.float64]:
        """Positions (..., 2) in units of the lattice vectors."""
        return (np.asarray(yx_nm, dtype=np.float64) - self.origin_nm) @ np.linalg.inv(self.basis_nm)

    def cartesian(self, fractional: ArrayLike) -> NDArray[np.float64]:
        """Positions (..., 2) in nm."""
        return self.origin_nm + np.asarray(fractional, dtype=np.float64) @ self.basis_nm

    def nearest(self, fractional: ArrayLike, motif: NDArray[np.float64] = MOTIF) -> tuple[NDArray, NDArray]:
        """Nearest lattice sites to fractional positions (N, 2): their positions (N, 2) and motif numbers (N,)."""
        points = np.atleast_2d(np.asarray(fractional, dtype=np.float64))
        # The rounded cell is not always the one of the nearest site, so its neighbours are tried too.
        base = np.round(points[:, None, None] - motif[None, :, None])
        steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=float)
        options = base + steps + motif[None, :, None]
        distance = np.linalg.norm((options - points[:, None, None]) @ self.basis_nm, axis=-1)
        best = distance.reshape(len(points), -1).argmin(axis=1)
        sites = options.reshape(len(points), -1, 2)[np.arange(len(points)), best]
        return sites, best // len(steps)

    def distance_nm(self, yx_nm: ArrayLike, motif: NDArray[np.float64] = MOTIF) -> float:
        """Distance of one position (y, x) [nm] from the nearest lattice site of `motif` [nm]."""
        point = self.fractional(yx_nm)
        site, _ = self.nearest(point, motif)
        return float(np.linalg.norm((site[0] - point) @ self.basis_nm))


def _start(yx: NDArray[np.float64], material: Material) -> NDArray[np.float64] | None:
    """Lattice vectors from the directions and lengths of the bonds; None without bonds."""
    pairs = cKDTree(yx).query_pairs(1.3 * material.bond_nm, output_type="ndarray")
    steps = yx[pairs[:, 1]] - yx[pairs[:, 0]] if len(pairs) else np.empty((0, 2))
    length = np.hypot(*steps.T)
    steps, length = steps[length > 0.7 * material.bond_nm], length[length > 0.7 * material.bond_nm]
    if len(steps) < 4:
        return None
    angle = np.arctan2(steps[:, 0], steps[:, 1])
    bond = np.angle(np.exp(6j * angle).mean()) / 6
    a = np.sqrt(3.0) * np.median(length)
    first, second = bond - np.pi / 6, bond + np.pi / 6  # bonds run along the sum of both lattice vectors
    return a * np.array([[np.sin(first), np.cos(first)], [np.sin(second), np.cos(second)]])


def _phase(
    yx: NDArray[np.float64], basis: NDArray[np.float64], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centre of a hexagon from the phases of the first-order structure factors, which are -1 about it."""
    structure = np.exp(-2j * np.pi * ((yx - centre) @ np.linalg.inv(basis))).mean(axis=0)
    return centre - (np.angle(-structure) / (2 * np.pi)) @ basis


def fit_host_lattice(
    yx_nm: ArrayLike,
    *,
    material: Material,
    first_species: ArrayLike | None = None,
    prior: HostLattice | None = None,
) -> HostLattice | None:
    """Fit a honeycomb to host atoms.

    Parameters
    ----------
    yx_nm : (N, 2) array_like
        Positions of host atoms (y, x) [nm].
    material : Material
    first_species : (N,) array_like of bool, optional
        True for atoms of the first host species (the metal); tells the sublattices of MX2 apart.
    prior : HostLattice, optional
        Lattice of a frame before: its vectors are the start, and the labels A and B keep their meaning.

    Returns
    -------
    HostLattice or None
        None where the atoms show no lattice.
    """
    yx = np.asarray(yx_nm, dtype=np.float64).reshape(-1, 2)
    if len(yx) < _ENOUGH_FOR_PHASE:
        return None
    basis = _start(yx, material) if prior is None else prior.basis_nm
    if basis is None:
        return None
    centre = yx.mean(axis=0)
    radius = np.linalg.norm(yx - centre, axis=1)
    near = radius <= max(0.9, np.partition(radius, _ENOUGH_FOR_PHASE - 1)[_ENOUGH_FOR_PHASE - 1])
    lattice = HostLattice(_phase(yx[near], basis, centre), basis)
    distance = np.zeros(len(yx))
    keep = near
    # The start may be off by a few per cent: the fit grows outwards so that no atom is counted to a wrong cell.
    for reach in (0.9, 1.8, 3.6, np.inf, np.inf) if prior is None else (1.8, np.inf, np.inf):
        fractional = lattice.fractional(yx)
        site, _ = lattice.nearest(fractional)
        distance = np.linalg.norm((fractional - site) @ lattice.basis_nm, axis=1)
        inside = radius <= max(reach, radius[near].max())
        # Relaxed atoms around defects would pull the lattice towards them; they stand out of the median.
        limit = min(0.4 * material.bond_nm, max(0.02, 3.0 * float(np.median(distance[inside]))))
        keep = inside & (distance < limit)
        if keep.sum() < _ENOUGH_FOR_PHASE:
            return None
        if keep.sum() >= _ENOUGH_FOR_SHAPE:
            design = np.column_stack([np.ones(keep.sum()), site[keep]])
            solution, _, rank, _ = np.linalg.lstsq(design, yx[keep], rcond=None)
            if rank < 3:
                return None
            lattice = HostLattice(solution[0], solution[1:])
        else:
            origin = (yx[keep] - site[keep] @ lattice.basis_nm).mean(axis=0)
            lattice = HostLattice(origin, lattice.basis_nm)
    # Points thrown at random are 0.38 bond lengths from a honeycomb in the mean: an honest lattice is far below.
    if keep.sum() < 0.5 * len(yx) or float(np.median(distance)) > 0.28 * material.bond_nm:
        return None
    basis = lattice.basis_nm
    if first_species is not None and prior is None and len(material.species) > 1:
        _, motif = lattice.nearest(lattice.fractional(yx))
        first = np.asarray(first_species, dtype=bool)
        if (motif[first] == 1).sum() > (motif[first] == 0).sum():
            basis = np.array([basis[1], basis[1] - basis[0]])  # turned by 60 degrees: A and B change places
    return HostLattice(
        lattice.origin_nm, basis, int(keep.sum()), float(np.sqrt(np.mean(distance[keep] ** 2) / 2))
    )


def host_lattice(analysis: FrameAnalysis, *, prior: HostLattice | None = None) -> HostLattice | None:
    """`fit_host_lattice` to the host atoms of an analysed frame."""
    material = get_material(analysis.material)
    host = np.isin(analysis.sites.species, material.species)
    yx = analysis.pixel_size.to_nm(analysis.sites.yx_px[host])
    return fit_host_lattice(
        yx, material=material, prior=prior, first_species=analysis.sites.species[host] == material.species[0]
    )


def lattice_step(step: NDArray[np.float64]) -> str:
    """A displacement in lattice vectors, rounded to the thirds that honeycomb sites differ by.

    >>> lattice_step(np.array([1 / 3, -2 / 3]))
    '1/3 -2/3'
    """
    words = []
    for thirds in np.round(3 * np.asarray(step)).astype(int):
        words.append(str(thirds // 3) if thirds % 3 == 0 else f"{thirds}/3")
    return " ".join(words)


class SpecimenFrame:
    """Conversion of image positions to positions in the specimen's frame, one frame after another.

    The first frame with a visible lattice defines the frame of reference.
    """

    def __init__(self) -> None:
        self.reference: HostLattice | None = None
        self.current: HostLattice | None = None
        self.drift_nm = np.zeros(2)
        #: Mean of recent steps, and of what they had more than the drift within frames [nm].
        self.velocity_nm = np.zeros(2)
        self.excess_nm = np.zeros(2)
        #: Root mean square of what these two predictions missed [nm]; starts as wide as a fast drift.
        self._spreads = np.array([0.08, 0.09])
        self._within: NDArray[np.float64] | None = None
        self._within_before: NDArray[np.float64] | None = None
        self._last: int | None = None

    @property
    def spread_nm(self) -> float:
        """Root mean square of what the better of the predictions missed along an axis [nm]."""
        return float(self._spreads.min() if self._between is not None else self._spreads[0])

    @property
    def within_nm(self) -> NDArray[np.float64] | None:
        """What `look` was told of the newest frame."""
        return self._within

    @property
    def _between(self) -> NDArray[np.float64] | None:
        """Drift from the middle of the last frame to that of the newest, by the shear of both [nm]."""
        if self._within is None or self._within_before is None:
            return None
        return 0.5 * (self._within + self._within_before)

    @property
    def step_nm(self) -> NDArray[np.float64]:
        """(2,) displacement expected from one frame to the next [nm].

        A slow scan shows the drift within a frame as shear and stretch of the lattice; where the step between
        frames goes with it, it predicts steps better than the steps before do.
        """
        if self._between is not None and self._spreads[1] < self._spreads[0]:
            return self.excess_nm + self._between
        return self.velocity_nm

    def look(self, within_nm: ArrayLike | None) -> None:
        """Note the drift within the newest frame, from its first to its last line, up to a constant [nm]."""
        self._within = None if within_nm is None else np.asarray(within_nm, dtype=np.float64)

    def candidates(
        self,
        lattice: HostLattice | None,
        centre_nm: NDArray[np.float64],
        *,
        reach_nm: float,
        given_nm: ArrayLike | None = None,
        steps: int = 1,
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Drifts that the lattice allows around the predicted one, as pairs (drift, cell), nearest first.

        `steps` is the number of frames since the last one. Branches near `given_nm`, a drift known from
        elsewhere, are among them. Without a lattice there is one candidate, with a cell of NaN.
        """
        predicted = self.drift_nm + steps * self.step_nm
        if given_nm is not None and (lattice is None or self.reference is None):
            predicted = np.asarray(given_nm, dtype=float)
        if lattice is None or self.reference is None:
            return [(predicted, np.full(2, np.nan))]
        basis = self.reference.basis_nm
        home = centre_nm - self.reference.cartesian(lattice.fractional(centre_nm))
        inverse = np.linalg.inv(basis)
        middle = np.round((home - predicted) @ inverse)
        aside = 0.0 if given_nm is None else min(float(np.linalg.norm(np.asarray(given_nm) - predicted)), 1.0)
        span = int(np.ceil((reach_nm + aside) / np.linalg.norm(basis[0]) * 1.3)) + 1
        grid = np.stack(np.meshgrid(*(np.arange(-span, span + 1),) * 2, indexing="ij"), -1).reshape(-1, 2)
        cells = middle + grid
        drifts = home - cells @ basis
        off = np.linalg.norm(drifts - predicted, axis=1)
        if given_nm is not None:
            off = np.minimum(off, np.linalg.norm(drifts - np.asarray(given_nm, dtype=float), axis=1))
        order = np.argsort(off)
        order = order[off[order] <= max(reach_nm, off.min() + 1e-9)]
        return [(drifts[i], cells[i]) for i in order]

    def cost(
        self,
        drift_nm: NDArray[np.float64],
        *,
        given_nm: ArrayLike | None = None,
        given_sigma_nm: float = 0.03,
        steps: int = 1,
        alone: bool = False,
    ) -> float:
        """Negative log-likelihood of a drift, with the heavy tail that stage jumps have (Student, 3 degrees).

        A drift known from elsewhere counts as one more witness that may be wrong by a lattice vector, and counts in
        full where no defect tells the branch (`alone`).
        """
        miss = drift_nm - self.drift_nm - steps * self.step_nm
        cost = 2.5 * float(np.log1p(miss @ miss / (3 * steps * self.spread_nm**2)))
        cost = min(cost, _JUMP + _JUMP_PER_NM * float(np.linalg.norm(miss)))
        if given_nm is not None:
            off = drift_nm - np.asarray(given_nm, dtype=float)
            against = 2.5 * float(np.log1p(off @ off / (3 * given_sigma_nm**2)))
            cost += against if alone else min(against, _MOST_AGAINST)
        return cost

    def to_specimen(
        self,
        yx_nm: ArrayLike,
        lattice: HostLattice | None,
        drift_nm: NDArray[np.float64],
        cell: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Positions (..., 2) in the image [nm] to positions in the specimen's frame [nm]."""
        yx = np.asarray(yx_nm, dtype=np.float64)
        if lattice is None or self.reference is None or np.isnan(cell).any():
            return yx - drift_nm
        return self.reference.cartesian(lattice.fractional(yx) + cell)

    def accept(self, lattice: HostLattice | None, drift_nm: NDArray[np.float64], *, steps: int = 1) -> None:
        """Take a drift as that of the newest frame and learn how well it was predicted."""
        if self.reference is None and lattice is not None:
            # A point of the specimen is at its image position minus the drift up to here.
            self.reference = HostLattice(
                lattice.origin_nm - drift_nm, lattice.basis_nm, lattice.sites, lattice.rms_nm
            )
        if self._last is not None:
            step = (drift_nm - self.drift_nm) / steps
            between = self._between
            beyond = np.zeros(2) if between is None else step - between - self.excess_nm
            misses = np.stack([step - self.velocity_nm, beyond])
            # A jump says nothing about the steps to come.
            length = np.linalg.norm(misses, axis=1)
            misses *= np.minimum(1.0, _OUTLYING * np.sqrt(2.0) * self._spreads / np.maximum(length, 1e-12))[:, None]
            spreads = np.sqrt(0.85 * self._spreads**2 + 0.15 * (misses**2).sum(axis=1) / 2)
            known = np.array([True, between is not None])
            self._spreads = np.where(known, np.clip(spreads, 0.015, 0.15), self._spreads)
            # Only part of a step predicts the next: jitter would otherwise be counted twice.
            self.velocity_nm = self.velocity_nm + 0.3 * misses[0]
            self.excess_nm = self.excess_nm + 0.2 * misses[1]
        self._within_before = self._within
        self._last = 0
        self.drift_nm = np.asarray(drift_nm, dtype=np.float64)
        if lattice is not None:
            self.current = lattice
