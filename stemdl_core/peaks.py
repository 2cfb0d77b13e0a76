"""From probability maps to sites: threshold, Laplacian of Gaussian, class, and refinement on the image.

The network says that there is an atom, also where the image has no local maximum; the Laplacian of Gaussian [1]_ of
its probability map gives the centre of each blob and separates blobs that touch; the refinement on the raw image
(`refine.py`) then gives the position as precisely as the electrons allow.

References
----------
.. [1] Laanait et al., Adv. Struct. Chem. Imaging 2016, 2, 14; Ziatdinov et al., ACS Nano 2017, 11, 12742.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace, map_coordinates, maximum_filter, uniform_filter
from scipy.spatial import cKDTree

from .weights import ModelCard

#: An atom and a missing atom cannot be closer than this [nm]: half a bond.
CONFLICT_NM = 0.07
#: No two columns are closer than this in projection [nm]: the shortest bond (Stone-Wales) is 132 pm, less what a
#: jittering scan takes away.
SEPARATION_NM = 0.10


@dataclass(frozen=True)
class Peaks:
    """Blobs of the probability maps, on the model's grid.

    Attributes
    ----------
    yx_px : (N, 2) float64
        Sub-pixel centres on the model's grid [px].
    dopant : (N,) bool
        Whether the class 'dopant' prevails over 'lattice' within the blob.
    dopant_share : (N,) float64
        Part of the atom probability that is of the class 'dopant'.
    response : (N,) float64
        Response of the Laplacian of Gaussian, 1 for a perfect disc.
    vacancies_px : (K, 2) float64
        Centres of the blobs of the class 'vacancy' [px].
    vacancy_response : (K,) float64
        Their responses.
    """

    yx_px: NDArray[np.float64]
    dopant: NDArray[np.bool_]
    dopant_share: NDArray[np.float64]
    response: NDArray[np.float64]
    vacancies_px: NDArray[np.float64]
    vacancy_response: NDArray[np.float64]


def atom_map(card: ModelCard, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w) probability of any atom: the sum over the classes 'lattice' and 'dopant'."""
    channels = [k for k, name in enumerate(card.classes) if name in ("lattice", "dopant")]
    return maps[channels].sum(axis=0)


def find_peaks(card: ModelCard, maps: NDArray[np.float32]) -> Peaks:
    """Locate blobs in the probability maps.

    Parameters
    ----------
    card : ModelCard
        Classes, disc radius and thresholds.
    maps : (C, h, w) float32
        Softmax output of the network.
    """
    radius = card.radius_nm / card.pixel_size_nm
    atoms = atom_map(card, maps)
    threshold = card.thresholds["site"]
    reach = max(SEPARATION_NM / card.pixel_size_nm, 1.0)
    yx, response = _log_blobs(atoms, radius, threshold, reach)
    share = np.zeros(len(yx))
    dopant_channel = card.classes.index("dopant") if "dopant" in card.classes else None
    if dopant_channel is not None and len(yx):
        # Sums over the blob rather than the single central pixel: the class of a noisy pixel is not the atom's.
        size = 2 * int(np.ceil(radius)) + 1
        total = uniform_filter(atoms, size, mode="constant")
        foreign = uniform_filter(maps[dopant_channel], size, mode="constant")
        at = tuple(np.clip(np.round(yx).astype(int).T, 0, np.asarray(atoms.shape)[:, None] - 1))
        share = np.asarray(foreign[at] / np.maximum(total[at], 1e-9), dtype=np.float64)
    holes, hole_response = np.empty((0, 2)), np.empty(0)
    if "vacancy" in card.classes:
        vacancy_radius = float(card.recipe.get("vacancy_radius_nm", 1.5 * card.radius_nm)) / card.pixel_size_nm
        holes, hole_response = _log_blobs(maps[card.classes.index("vacancy")], vacancy_radius,
                                          card.thresholds.get("vacancy", threshold), reach)
        # Where both an atom and its absence answer, the stronger answer holds.
        if len(yx) and len(holes):
            gap, nearest = cKDTree(holes).query(yx, distance_upper_bound=CONFLICT_NM / card.pixel_size_nm)
            beaten = np.isfinite(gap)
            beaten[beaten] = hole_response[nearest[beaten]] > response[beaten]
            yx, share, response = yx[~beaten], share[~beaten], response[~beaten]
    return Peaks(yx, share > 0.5, share, response, holes, hole_response)


def _log_blobs(probability: NDArray[np.float32], radius: float, threshold: float,
               reach: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Maxima of the scale-normalised negative Laplacian of Gaussian above a threshold, `reach` pixels apart.

    The distance is one between sub-pixel positions: a square window of whole pixels would drop atoms whose neighbour
    lies along its diagonal.
    """
    # A disc of radius r answers most strongly at sigma = r / sqrt(2); discs are a few pixels wide, so never less
    # than one pixel.
    sigma = max(radius / np.sqrt(2.0), 1.0)
    if probability.max(initial=0.0) * _largest_response(radius, sigma) < threshold:
        return np.empty((0, 2)), np.empty(0)
    response = -gaussian_laplace(probability, sigma, mode="constant", truncate=3.5)
    response *= np.float32(1 / _disc_response(radius, sigma))
    padded = np.pad(response, 1)
    rows, columns = np.nonzero(response > threshold)
    r, c = rows + 1, columns + 1
    own, top = padded[r, c], np.ones(len(rows), dtype=bool)
    for dr, dc in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        # Two equal neighbours (a blob centred between pixels) are one maximum: the later one.
        beside = padded[r + dr, c + dc]
        top &= own > beside if (dr, dc) > (0, 0) else own >= beside
    rows, columns, r, c = rows[top], columns[top], r[top], c[top]
    if len(rows) == 0:
        return np.empty((0, 2)), np.empty(0)
    padded = np.pad(response, 1, mode="edge")
    center = padded[r, c].astype(np.float64)
    offset = np.zeros((len(rows), 2))
    sides = ((padded[r - 1, c], padded[r + 1, c]), (padded[r, c - 1], padded[r, c + 1]))
    for axis, (before, after) in enumerate(sides):
        curvature = before - 2 * center + after
        with np.errstate(divide="ignore", invalid="ignore"):
            step = 0.5 * (before - after) / curvature
        offset[:, axis] = np.where(curvature < 0, np.clip(step, -0.5, 0.5), 0.0)
    yx = np.stack([rows, columns], axis=1) + offset
    keep = np.ones(len(yx), dtype=bool)
    pairs = cKDTree(yx).query_pairs(reach, output_type="ndarray")
    if len(pairs):
        # The strongest first: a blob that gave way to a stronger one takes nothing away from a third.
        weaker = np.where(center[pairs[:, 0]] < center[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        stronger = pairs.sum(axis=1) - weaker
        for k in np.lexsort((-center[weaker], -center[stronger])):
            if keep[stronger[k]]:
                keep[weaker[k]] = False
    return yx[keep], center[keep]


def _disc_response(radius: float, sigma: float) -> float:
    """Response of the negative Laplacian of Gaussian at the centre of a disc of the radius.

    The integral of the kernel over the disc: r^2 / sigma^4 * exp(-r^2 / (2 sigma^2)).
    """
    return radius**2 / sigma**4 * float(np.exp(-(radius**2) / (2 * sigma**2)))


def _largest_response(radius: float, sigma: float) -> float:
    """Most that a probability of one can answer with: all of where the kernel is positive, and 20 % for the pixels."""
    return 1.2 * _disc_response(np.sqrt(2.0) * sigma, sigma) / _disc_response(radius, sigma)


def scores(card: ModelCard, response: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calibrated probability that a blob of this response is a true site (from the model card's knots)."""
    knots, values = card.score_knots
    return np.interp(response, knots, values)


def masked_area(card: ModelCard, maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(h, w) bool: where the network says that there is no lattice to be seen (contamination, vacuum).

    Single pixels do not count: the probability is averaged over about one ring of the lattice.
    """
    if "masked" not in card.classes:
        return np.zeros(maps.shape[1:], dtype=bool)
    return masked_probability(card, maps) > card.thresholds["masked"]


def masked_probability(card: ModelCard, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w) probability of the class 'masked', averaged over about one ring of the lattice."""
    size = 2 * round(0.10 / card.pixel_size_nm) + 1
    return np.asarray(uniform_filter(maps[card.classes.index("masked")], size, mode="nearest"))


def without_mask(card: ModelCard, maps: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(C, h, w) probabilities given that nothing is hidden in the pixels `seen` (h, w)."""
    result = maps.copy()
    part = result[:, seen]
    part[card.classes.index("masked")] = 0
    result[:, seen] = part / np.maximum(part.sum(axis=0), np.float32(1e-12))
    return result


def in_mask(mask: NDArray[np.bool_], yx_px: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) bool: whether positions (N, 2) on the mask's grid lie in masked area."""
    if len(yx_px) == 0 or not mask.any():
        return np.zeros(len(yx_px), dtype=bool)
    return map_coordinates(mask.astype(np.float32), yx_px.T, order=0, mode="nearest") > 0.5


def near_border(yx_px: NDArray[np.float64], shape: tuple[int, int], border_px: float, mask: NDArray[np.bool_],
                mask_shape_factor: float) -> NDArray[np.bool_]:
    """(N,) bool: sites closer than `border_px` to the border of the image or of a masked region.

    Parameters
    ----------
    yx_px : (N, 2) float64
        Positions on the image [px].
    shape : (int, int)
        (H, W) of the image.
    border_px : float
        Distance [px].
    mask : (h, w) bool
        True where not analysed, on the model's grid.
    mask_shape_factor : float
        h / H.
    """
    if len(yx_px) == 0:
        return np.zeros(0, dtype=bool)
    limit = np.asarray(shape) - 1 - border_px
    near = np.any((yx_px < border_px) | (yx_px > limit), axis=1)
    if mask.any():
        reach = int(np.ceil(border_px * mask_shape_factor))
        grown = maximum_filter(mask, 2 * reach + 1)
        near |= in_mask(grown, (yx_px + 0.5) * mask_shape_factor - 0.5)
    return near
