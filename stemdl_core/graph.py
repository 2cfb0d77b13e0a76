"""Sites to a graph of bonds under the constraints of chemistry.

Distance alone is a poor bond criterion: a limit that keeps the bonds of a 4-fold silicon makes the 3-fold one
4-fold. Chemistry helps: a carbon atom with three carbon neighbours has no bond left for a dopant, two bonds
at one atom are not nearly parallel, and no bond crosses another in a flat sheet. Limits scale with the host's
own bond length in the same image, so a wrong calibration or strain of several percent changes nothing.

References
----------
Ziatdinov et al., ACS Nano 11, 12742 (2017): graph representation with limits per species on bonds and
lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .analysis import Bonds
from .bond_network import atoms_and_bonds
from .bonding import Bonding, mx2_pairs, regularised
from .calibration import PixelSize
from .columns import Columns, classify_columns
from .materials import Material
from .planar import Faces, find_faces
from .sites import Sites

#: Sites nearer than this may be one column found twice [host bonds]: the nearest pairs of real structures,
#: strained carbon bonds and silicon on top of them, are 0.85.
CLOSEST = 0.55
#: Median position uncertainty [host bonds] beyond which bonds are decided on positions that neighbours have a
#: say in.
NOISY = 0.065
#: Scatter of bond lengths in real, rippled and strained sheets [pm].
REAL_BOND_SCATTER_PM = 5.0
#: An atom has bonds on all sides where neighbouring bonds are nowhere farther apart than this [deg]: 120 between three
#: bonds, 150-165 where a vacancy lies between two of three.
ALL_ROUND_DEG = 137.0
#: Nearer to the border than this an atom may have a bond beyond it [host bonds]: silicon's in graphene are up to 195 pm
#: long.
HOST_REACH, FOREIGN_REACH = 1.25, 1.4
#: Uncertainty of a position [pm] where the site has none.
DEFAULT_SIGMA_PM = 8.0


class Neighbours:
    """Bonded atoms of every atom, in the order of the bonds.

    Thousands of short lists would cost more than all that is done with the few that are asked for.
    """

    def __init__(self, bonds: Bonds, atoms: int) -> None:
        start = np.concatenate([bonds.a, bonds.b])
        order = np.lexsort((np.tile(np.arange(len(bonds)), 2), start))
        self._others = np.concatenate([bonds.b, bonds.a])[order]
        self._first = np.concatenate([[0], np.cumsum(np.bincount(start, minlength=atoms))]).tolist()

    def __getitem__(self, atom: int) -> list[int]:
        found: list[int] = self._others[self._first[atom]:self._first[atom + 1]].tolist()
        return found


@dataclass(frozen=True)
class AtomGraph:
    """Atoms and bonds of one frame.

    Parameters
    ----------
    sites : Sites
        As given, with `edge` completed; a foreign atom with bonds on all sides has them in view, wherever it lies.
    material : Material
    pixel_size : PixelSize
    shape : (int, int)
        (H, W) [px].
    yx_nm : (N, 2) float64
        Positions [nm].
    bonds : Bonds
        a < b.
    scale : float
        Host bond length measured here over the material's: about 1.
    foreign : (N,) bool
        Not of a host species.
    degree : (N,) int64
        Number of bonds.
    faces : Faces
        Faces of the bond graph.
    inside : (F,) bool
        Faces that are rings or holes wholly inside the image and outside the mask.
    columns : Columns, optional
        For a dichalcogenide, what every column is.
    """

    sites: Sites
    material: Material
    pixel_size: PixelSize
    shape: tuple[int, int]
    yx_nm: NDArray[np.float64]
    bonds: Bonds
    scale: float
    foreign: NDArray[np.bool_]
    degree: NDArray[np.int64]
    faces: Faces
    inside: NDArray[np.bool_]
    columns: Columns | None = None

    @property
    def rings(self) -> Mapping[int, int]:
        """Number of rings of each size."""
        return dict(sorted(Counter(self.faces.size[self.inside].tolist()).items()))

    @cached_property
    def neighbours(self) -> Neighbours:
        """Bonded atoms of every atom."""
        return Neighbours(self.bonds, len(self.sites))

    @cached_property
    def tree(self) -> cKDTree:
        """Search tree over the positions [nm]."""
        return cKDTree(self.yx_nm)

    @cached_property
    def network(self) -> nx.Graph:
        """The same as a networkx graph, see `atoms_and_bonds`."""
        return atoms_and_bonds(self.sites, self.bonds, yx_nm=self.yx_nm, foreign=self.foreign)


def build_graph(sites: Sites, *, material: Material, pixel_size: PixelSize, shape: tuple[int, int],
                mask: NDArray[np.bool_] | None = None, dopant: str | None = None) -> AtomGraph:
    """Bonds between sites under chemical constraints.

    Parameters
    ----------
    sites : Sites
    material : Material
        The host.
    pixel_size : PixelSize
        Its distortion is corrected before lengths are taken.
    shape : (int, int)
        (H, W) of the image [px].
    mask : (h, w) bool array, optional
        True where the image was not analysed, on any grid that spans the same field of view.

    dopant : str, optional
        For a dichalcogenide, the element expected on metal sites; the material's by default.

    Returns
    -------
    AtomGraph
        Its `sites` have `edge` completed, columns found twice made one and, for a dichalcogenide, the species
        of every column.
    """
    yx = pixel_size.to_nm(sites.yx_px)
    scale = host_scale(yx[np.isin(sites.species, material.species)], material)
    host = scale * material.bond_nm
    sites = merge_twins(sites, yx, CLOSEST * host)
    yx = pixel_size.to_nm(sites.yx_px)
    foreign = ~np.isin(sites.species, material.species)
    columns = None
    smooth = yx
    if material.kind == "mx2":
        pairs = mx2_pairs(yx, host)
        columns = classify_columns(yx, sites, pairs, material, dopant)
        sites = sites.replace(species=columns.species)
        foreign = ~np.isin(sites.species, material.species)
    else:
        pairs = Bonding(yx, sites, foreign, material, host).pairs()
        sites = honest_sigma(sites, yx, pairs[~foreign[pairs].any(axis=1)])
        sigma = 1e-3 * np.where(np.isfinite(sites.sigma_pm), sites.sigma_pm, DEFAULT_SIGMA_PM)
        if len(sigma) and float(np.median(sigma)) > NOISY * host:
            # Too noisy for one atom's distances to be trusted by themselves: let its neighbours have a say.
            smooth = regularised(yx, sigma, pairs, foreign, host)
            pairs = Bonding(smooth, sites, foreign, material, host).pairs()
    large = foreign & (material.kind == "honeycomb")
    reach_px = np.where(large, FOREIGN_REACH, HOST_REACH) * host / pixel_size.nm
    edge = sites.edge | _near_border(sites, shape, reach_px)
    if mask is not None:
        edge = edge | _near_mask(sites, shape, mask, reach_px)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    a, b = pairs[order, 0], pairs[order, 1]
    edge = edge & ~surrounded(yx, a, b, np.flatnonzero(edge & large))
    length = 1e3 * np.hypot(*(yx[a] - yx[b]).T)
    bonds = Bonds(a, b, length, np.hypot(sites.sigma_pm[a], sites.sigma_pm[b]))
    faces = find_faces(smooth, a, b)
    inside = faces.area > 0
    if mask is not None and np.any(mask) and len(faces):
        inside = inside & ~_over_mask(faces, sites, shape, mask)
    return AtomGraph(sites.replace(edge=edge), material, pixel_size, shape, yx, bonds, scale, foreign,
                     np.bincount(np.concatenate([a, b]), minlength=len(sites)), faces, inside, columns)


def host_scale(yx_nm: NDArray[np.float64], material: Material) -> float:
    """Measured over nominal distance of neighbouring columns; 1 where too few columns tell.

    The median over the three nearest neighbours of every column: columns at borders and holes are outvoted.
    """
    if len(yx_nm) < 12:
        return 1.0
    distance = cKDTree(yx_nm).query(yx_nm, k=4)[0][:, 1:].ravel() / material.bond_nm
    usual = distance[(distance > 0.7) & (distance < 1.4)]
    if len(usual) < 20:
        return 1.0
    first = float(np.median(usual))
    return float(np.median(usual[np.abs(usual - first) < 0.2]))


def merge_twins(sites: Sites, yx_nm: NDArray[np.float64], nearest_nm: float) -> Sites:
    """Make one of sites that are nearer than atoms can be: the same column found twice.

    The fits of twins share one peak between them, with wild intensities of opposite sign; what both agree on
    is the place between them. Two sites of ordinary brightness may be two atoms, poorly placed.
    """
    if len(sites) < 2:
        return sites
    pairs = cKDTree(yx_nm).query_pairs(nearest_nm, output_type="ndarray")
    if len(pairs) == 0:
        return sites
    apart = np.hypot(*(yx_nm[pairs[:, 0]] - yx_nm[pairs[:, 1]]).T)
    odd = (sites.score < 0.5) | ~(
        (sites.intensity > 0.25) & (sites.intensity < 8.0) | np.isnan(sites.intensity)
    )
    pairs = pairs[(apart < 0.6 * nearest_nm) | odd[pairs].any(axis=1)]
    if len(pairs) == 0:
        return sites
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(sites), len(sites)))
    count, part = connected_components(links, directed=False)
    size = np.bincount(part, minlength=count)
    y, x = sites.y_px.copy(), sites.x_px.copy()
    intensity, keep = sites.intensity.copy(), np.ones(len(sites), dtype=bool)
    sigma = sites.sigma_pm.copy()
    for group in np.flatnonzero(size > 1).tolist():
        members = np.flatnonzero(part == group)
        best = members[int(np.argmax(sites.score[members]))]
        keep[members] = members == best
        y[best], x[best] = sites.y_px[members].mean(), sites.x_px[members].mean()
        together = float(np.sum(sites.intensity[members]))
        intensity[best] = together if 0.2 < together < 5.0 else float("nan")
        spread = 0.5e3 * float(np.max(np.hypot(*(yx_nm[members] - yx_nm[members].mean(axis=0)).T)))
        sigma[best] = np.fmax(sigma[best], spread)
    return sites.replace(y_px=y, x_px=x, intensity=intensity, sigma_pm=sigma).select(keep)


def surrounded(yx_nm: NDArray[np.float64], a: NDArray[np.int64], b: NDArray[np.int64],
               candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Atoms with a bond in every direction: whatever lies beyond their neighbours, they have no room for another bond.

    Parameters
    ----------
    yx_nm : (N, 2) float64
        Positions [nm].
    a, b : (B,) int64
        Bonds.
    candidates : (K,) int64
        The atoms to look at.

    Returns
    -------
    (N,) bool
    """
    result = np.zeros(len(yx_nm), dtype=bool)
    for k in candidates.tolist():
        others = np.concatenate([b[a == k], a[b == k]])
        result[k] = len(others) >= 3 and widest_gap_deg(yx_nm[others] - yx_nm[k]) < ALL_ROUND_DEG
    return result


def widest_gap_deg(steps: NDArray[np.float64]) -> float:
    """Widest angle between neighbouring ones of some directions (K, 2) [deg]: 120 if threefold and undisturbed."""
    angle = np.sort(np.degrees(np.arctan2(steps[:, 0], steps[:, 1])))
    return float(np.max(np.diff(np.append(angle, angle[0] + 360.0))))


def honest_sigma(sites: Sites, yx_nm: NDArray[np.float64], bonds: NDArray[np.int64]) -> Sites:
    """Position uncertainties no smaller than the scatter of the host's bonds shows.

    Images that were smoothed after they were taken have correlated noise that no fit can tell from signal;
    the spread of bond lengths, which is 1-3 % in real sheets, gives it away.
    """
    if len(bonds) < 60 or not np.isfinite(sites.sigma_pm).any():
        return sites
    length = 1e3 * np.hypot(*(yx_nm[bonds[:, 0]] - yx_nm[bonds[:, 1]]).T)
    scatter = 1.4826 * float(np.median(np.abs(length - np.median(length))))
    seen = np.sqrt(max(scatter**2 - REAL_BOND_SCATTER_PM**2, 0.0) / 2.0)
    stated = float(np.nanmedian(sites.sigma_pm))
    if seen <= 1.5 * stated:
        return sites
    return sites.replace(sigma_pm=np.hypot(sites.sigma_pm, np.sqrt(seen**2 - stated**2)))


def _near_border(sites: Sites, shape: tuple[int, int], reach: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) sites nearer to the border than each one's reach (N,) [px]."""
    y, x = sites.y_px, sites.x_px
    return (y < reach - 0.5) | (x < reach - 0.5) | (y > shape[0] - 0.5 - reach) | (x > shape[1] - 0.5 - reach)


def _mask_index(
    yx_px: NDArray[np.float64], shape: tuple[int, int], mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    cells = np.floor((yx_px + 0.5) / np.asarray(shape) * np.asarray(mask.shape)).astype(np.int64)
    return np.clip(cells, 0, np.asarray(mask.shape) - 1)


def _near_mask(sites: Sites, shape: tuple[int, int], mask: NDArray[np.bool_],
               reach: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) sites nearer to what is masked than each one's reach (N,) [px]."""
    near = np.zeros(len(sites), dtype=bool)
    for angle in np.arange(0.0, 2 * np.pi, np.pi / 4):
        step = reach[:, None] * np.array([np.sin(angle), np.cos(angle)])
        cell = _mask_index(sites.yx_px + step, shape, mask)
        near |= mask[cell[:, 0], cell[:, 1]]
    return near


def _over_mask(
    faces: Faces, sites: Sites, shape: tuple[int, int], mask: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Faces whose corner or middle lies on the mask."""
    yx = sites.yx_px
    count = faces.size[:, None]
    middle = np.stack([np.bincount(faces.face, weights=yx[faces.start, k], minlength=len(faces))
                       for k in (0, 1)], axis=1) / count
    cell = _mask_index(middle, shape, mask)
    covered = mask[cell[:, 0], cell[:, 1]]
    for part in (0.0, 0.35, 0.7):
        points = yx[faces.start] + part * (middle[faces.face] - yx[faces.start])
        cell = _mask_index(points, shape, mask)
        covered |= np.bincount(faces.face, weights=mask[cell[:, 0], cell[:, 1]], minlength=len(faces)) > 0
    return covered
