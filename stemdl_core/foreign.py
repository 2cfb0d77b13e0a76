"""Which sites are foreign atoms: the network's class and the measured intensity have to agree.

The network tells a dopant by its looks in a window of a nanometre or two; the joint refinement measures how much
brighter than the host it is. An amorphous patch over a carbon atom looks foreign to the one, and the atomic number
says to the other how bright the element has to be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .scatter import excess_around

#: Annular dark-field intensity grows at least as this power of the atomic number (Krivanek et al., Nature 464, 571
#: (2010), find 1.64; smaller inner angles lower it).
LEAST_EXPONENT = 1.3
#: Spread of the intensity of host columns about their median beyond the error of the fit, and by how many standard
#: deviations a foreign atom has to exceed it; more where the network is not sure: of a thousand columns some do.
HOST_SPREAD, DOPANT_SIGMAS, UNSURE_SIGMAS = 0.15, 2.5, 3.5
#: Intensity of host columns under a patch that is not thick enough to be masked.
UNDER_DIRT = 2.4
#: Relative uncertainty of the intensity that divides host from foreign atoms.
LIMIT_SPREAD = 0.10
#: Relative error of intensities in images whose pixels share their noise (smoothed, enlarged).
ROUGH = 0.35
#: Share of the class 'dopant' in the network's answer from which it half believes in a foreign atom.
HALF_BELIEF = 0.3
#: Surroundings are clean where the next three columns are as bright as the host's within this, none of the next eleven
#: is brighter than this, and the level under the column is raised by no more than this part of one: dirt covers more
#: than a single column.
CLEAN, MOST_USUAL, CLEAN_LEVEL = 0.35, 1.7, 0.15
#: In clean surroundings a foreign atom exceeds the spread of host columns, and the limit between both, by so many
#: standard deviations.
CLEAR_SIGMAS, CLEAR_LIMIT_SIGMAS = 5.0, 2.5
#: So many columns around one say how uneven their brightness is.
AROUND = 40
#: Where host columns are brighter than usual by more than this (root mean square, beyond the errors of the fit) dirt
#: lies on them, and dirt on a column is as bright as many an element: there the network has to be this sure.
UNEVEN, SURE = 0.10, 0.8
#: A foreign atom that is fainter than the element allows by so many standard deviations is doubtful unless the network
#: is as sure as it ever is of dirt (simulated: 0.81-0.96 of carbon under dirt, 0.97 and more of most silicon).
FAINT, CERTAIN = 1.0, 0.97


def clean_surroundings(yx_px: NDArray[np.float64], intensity: NDArray[np.float64],
                       level: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Sites around which columns are as bright as usual, and the level under them is the usual one.

    Parameters
    ----------
    yx_px : (N, 2) float64
        Positions [px].
    intensity : (N,) float64
        Relative to the median host column.
    level : (N,) float64
        Of the image under the columns, in the same units.

    Returns
    -------
    (N,) bool
    """
    if len(yx_px) < 12:
        return np.zeros(len(yx_px), dtype=bool)
    near = cKDTree(yx_px).query(yx_px, k=12)[1]
    with np.errstate(invalid="ignore"):
        usual = np.abs(intensity[near[:, 1:4]].mean(axis=1) - 1) < CLEAN
        usual &= (intensity[near[:, 1:]] < MOST_USUAL).all(axis=1)
        return usual & (level - np.median(level[near[:, 4:]], axis=1) < CLEAN_LEVEL)


def foreign_sites(*, intensity: NDArray[np.float64], sigma: NDArray[np.float64], measured: NDArray[np.bool_],
                  share: NDArray[np.float64], clean: NDArray[np.bool_], contrast: float) -> NDArray[np.bool_]:
    """Sites of a foreign element heavier than the host.

    Parameters
    ----------
    intensity, sigma : (N,) float64
        Fitted intensity relative to the median host column, and its standard error; NaN where unknown.
    measured : (N,) bool
        False where the intensity is rough; there it may only object to the network's class.
    share : (N,) float64
        Part of the network's atom probability that is of the class 'dopant'.
    clean : (N,) bool
        Whether nothing lies on the surroundings, see `clean_surroundings`.
    contrast : float
        Ratio of the atomic numbers of the foreign and the host element.

    Returns
    -------
    (N,) bool
    """
    network = share > 0.5
    least = contrast**LEAST_EXPONENT
    # Half way, on the logarithmic scale, between a host column and the faintest foreign atom, but beyond what a host
    # column under a patch of contamination reaches, where the element allows.
    limit = min(max(np.sqrt(least), UNDER_DIRT), 0.8 * least)
    with np.errstate(invalid="ignore"):
        above = (intensity - limit) / np.hypot(sigma, LIMIT_SPREAD * limit)
        beyond_host = (intensity - 1) / np.hypot(sigma, HOST_SPREAD)
        # Where intensities could not tell at all, they do not contradict either.
        mute = (share >= SURE) & ((limit - 1) / np.hypot(sigma, HOST_SPREAD) < DOPANT_SIGMAS)
        enough = np.where(share >= SURE, DOPANT_SIGMAS, UNSURE_SIGMAS)
        agreed = network & (above > -0.5) & ((beyond_host > enough) | mute)
        half = (share > HALF_BELIEF) & (above > 1) & (beyond_host > DOPANT_SIGMAS + 1)
        # So bright that no host column can be: the network missed the class, not the atom.
        bright = above > 3.4
        # A single bright column on a clean sheet needs no dirt to be allowed for.
        divide = np.sqrt(least)
        clear = (clean & (beyond_host > CLEAR_SIGMAS)
                 & ((intensity - divide) / np.hypot(sigma, LIMIT_SPREAD * divide) > CLEAR_LIMIT_SIGMAS))
        # Heights of overlapping columns trade against each other where neighbouring pixels share their noise.
        objected = (intensity - limit) / np.hypot(ROUGH * intensity, LIMIT_SPREAD * limit) < -1
    return np.where(measured, agreed | half | bright | clear, network & ~objected)


def told_from_dirt(foreign: NDArray[np.bool_], *, yx_px: NDArray[np.float64], intensity: NDArray[np.float64],
                   sigma: NDArray[np.float64], share: NDArray[np.float64], contrast: float) -> NDArray[np.bool_]:
    """Foreign sites less those that may be host columns with a single atom of dirt on them.

    Dirt comes in patches: other host columns nearby are too bright, too. A carbon with an atom of dirt on it is two to
    two and a half times as bright as one without, and looks foreign to the network. Nothing is said against the
    neighbour of a sure foreign atom; in a cluster heights trade against each other.

    Parameters
    ----------
    foreign : (N,) bool
        See `foreign_sites`, for whose other parameters see there, too.
    yx_px : (N, 2) float64
        Positions [px].

    Returns
    -------
    (N,) bool
    """
    least = contrast**LEAST_EXPONENT
    with np.errstate(invalid="ignore"):
        faint = (share < CERTAIN) & ((intensity - least) / np.hypot(sigma, LIMIT_SPREAD * least) < -FAINT)
    sure = (share >= SURE) & ~faint
    doubtful = np.flatnonzero(foreign & np.isfinite(intensity) & ~sure)
    if len(doubtful) == 0 or len(yx_px) <= AROUND:
        return foreign
    uneven = excess_around(doubtful, yx_px, intensity - 1, sigma, share < SURE, crowd=AROUND)
    beside = cKDTree(yx_px).query(yx_px[doubtful], k=5)[1][:, 1:]
    in_cluster = (foreign & sure)[beside].any(axis=1)
    # Neither the network nor the counts are sure.
    neither = faint[doubtful] & (share[doubtful] < SURE)
    kept = foreign.copy()
    kept[doubtful] = in_cluster | ((uneven < UNEVEN) & ~neither)
    return kept
