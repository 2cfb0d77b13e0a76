"""Second look at doubtful places: is an atom missing there, is one too many, is a bond turned?

Where the graph departs from the perfect sheet, where a column is too faint, or where the residual of the joint fit
stands out, the arrangements that a sheet of carbon can have there (what was found, the perfect lattice, atoms taken
away or put in, bonds turned) are fitted to the counts and the most probable one is kept. Rare arrangements need
evidence: the prior is that of perfect lattice, and what the network has seen counts a little, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .arrangement import Array, Counts, Fitted, Place
from .graph import AtomGraph
from .moves import faint
from .rearrange import MARGIN_NM, Search, as_found
from .refine import Imaging, Refined, refine_sites
from .rings import group_faces
from .sites import Sites

#: Arrangements fitted in one frame at most: bounds the time of a frame full of defects.
MOST_FITS = 150
#: Columns whose error of position is so many times the usual one, or which the network is not sure of, are looked at.
DOUBTFUL, UNSURE = 1.5, 0.7
#: Residual variance over the expected one beyond which nothing is decided, as noise is shared between pixels; unless it
#: is less than this part of a host column all the same.
WORST_MISFIT, QUIET = 6.0, 0.05
#: Radius of the part that is rearranged, and largest part [nm].
CORE_NM, LARGEST_NM = 0.26, 0.62
#: What was odd and does not fit is looked at once more with so much of its surroundings [nm].
WIDER_NM = 0.12
#: No host atom is so near to a foreign one (silicon: 150 pm at least, seen from above), and few are found so near where
#: there is one [host bonds].
IMPOSSIBLE, CLOSE = 0.8, 0.97
#: Nearer to the border than this nothing is looked at [nm].
BORDER_NM = 0.22
#: Sites within this of a change take their new positions [nm].
REFITTED_NM = 0.5
#: ... and so much of the image beyond is looked at for it [nm].
AROUND_NM = 0.35
#: Most places of one frame that are looked at.
MOST_PLACES = 20


@dataclass(frozen=True)
class Revision:
    """What to change about the sites.

    Attributes
    ----------
    keep : (N,) bool
        Sites that stay.
    added_px : (K, 2) float64
        Host atoms that were overlooked (y, x) [px].
    added_score : (K,) float64
        Probability that each of them is there.
    holes_px : (M, 2) float64
        Lattice sites on which the counts show that no atom is [px].
    weighed : (W, 5) float64
        Places (y, x) [nm] at which something odd was weighed against perfect lattice, and its probability; by how much
        [log-odds] it is more probable than what has another number of atoms, and how many atoms more that has.
    """

    keep: NDArray[np.bool_]
    added_px: Array
    added_score: Array
    holes_px: Array
    weighed: Array = field(default_factory=lambda: np.zeros((0, 5)))
    postponed_nm: Array = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def changed(self) -> bool:
        """Whether there is anything to change."""
        return bool(len(self.added_px)) or not bool(self.keep.all())


def reconsider(image: NDArray[np.floating], valid: NDArray[np.bool_], graph: AtomGraph, refined: Refined, *,
               vacancies_px: NDArray[np.float64], near_nm: Array | None = None) -> Revision:
    """Look again where the sites and the counts, or the sites and the lattice, disagree.

    Parameters
    ----------
    image : (H, W) float array
        Raw image without bad pixels.
    valid : (H, W) bool
        Pixels that carry information.
    graph : AtomGraph
        Sites and bonds of a one-element host.
    refined : Refined
        The joint fit of the frame (of at least these sites).
    vacancies_px : (K, 2) float64
        Where the network sees missing atoms [px].
    near_nm : (P, 2) float64, optional
        Look only near these places (y, x) [nm].
    """
    n = len(graph.sites)
    keep, none = np.ones(n, dtype=bool), np.zeros((0, 2))
    imaging = refined.imaging
    heights = None if n < 12 or imaging is None else _heights(graph, refined)
    if heights is None or imaging is None:
        return Revision(keep, none, np.zeros(0), none)
    counts = Counts(image, valid, refined, imaging, graph.pixel_size)
    unit = float(np.median(heights[~graph.foreign])) if not graph.foreign.all() else 0.0
    noise = float(np.sqrt(counts.variance(np.array([imaging.background + unit]))[0]))
    if not (imaging.misfit < WORST_MISFIT or noise < QUIET * unit):
        return Revision(keep, none, np.zeros(0), none)
    crowding = _to_foreign(graph)
    # What the network drew into a hole beside a bright column.
    sheet = as_found(graph, heights).without(np.flatnonzero(crowding < IMPOSSIBLE).tolist())
    altered: list[Place] = []
    weighed: list[tuple[float, ...]] = []
    holes: list[Array] = []
    put: list[tuple[Array, float]] = []
    postponed: list[Array] = []
    fits = 0

    def search_at(place: Place) -> tuple[Search, Fitted | None]:
        nonlocal fits
        search = Search(counts, graph, sheet, place, MOST_FITS - fits)
        found = search.best()
        fits += search.fits
        return search, found

    for place in _places(graph, graph.pixel_size.to_nm(vacancies_px).reshape(-1, 2), graph.yx_nm[crowding < CLOSE]):
        if any(math.dist(place.center, c.center) < place.radius + c.radius + MARGIN_NM for c in altered):
            # What is about to change here is judged by what was found before: not twice.
            postponed.append(place.center)
            continue
        if near_nm is not None and not (np.hypot(*(near_nm - place.center).T) < CORE_NM).any():
            continue
        if fits >= MOST_FITS:
            break
        search, found = search_at(place)
        if search.mended and place.radius < CORE_NM + WIDER_NM:
            # Odd as it was found and nothing odd explains it better than perfect lattice: what is there may be larger.
            wide, larger = search_at(Place(place.center, place.radius + WIDER_NM))
            if larger is not None and not wide.mended:
                search, found = wide, larger
        elif (search.rearranged and found is not None and (whole := search.around(found)) is not None
              and _within(graph, whole.center)):
            # Part of what is odd now is out of reach.
            before, sheet = sheet, search.applied(found)
            wide, larger = search_at(whole)
            if larger is None or wide.mended:
                sheet = before
            else:
                altered.append(search.place)
                wide.belief = search.belief if math.isnan(wide.belief) else wide.belief
                search, found = wide, larger
        holes += search.empty
        if not math.isnan(search.belief):
            weighed.append((*search.place.center, search.belief, *search.rival(found)))
        if found is None:
            continue
        altered.append(search.place)
        sheet = search.applied(found)
        put.append((sheet.yx_nm[sheet.origin < 0], search.certainty))
    gone = ~np.isin(np.arange(n), sheet.origin)
    new = sheet.yx_nm[sheet.origin < 0]
    # An atom is as certain as the search that put it there.
    score = np.zeros(len(new))
    for yx, certainty in reversed(put if len(new) else []):
        score[cKDTree(new).query(yx)[1]] = certainty
    to_px = graph.pixel_size.to_px
    return Revision(~gone, to_px(new).reshape(-1, 2), score, to_px(np.array(holes)).reshape(-1, 2) if holes else none,
                    np.array(weighed, dtype=np.float64).reshape(-1, 5), np.array(postponed).reshape(-1, 2))


def second_look(image: NDArray[np.floating], valid: NDArray[np.bool_], graph: AtomGraph, refined: Refined, *,
                vacancies_px: NDArray[np.float64],
                bonded: Callable[[Sites], AtomGraph]) -> tuple[AtomGraph, Array, Array]:
    """Reconsider a graph, and once more the places that had to wait until their surroundings were settled.

    Parameters
    ----------
    image, valid, graph, refined, vacancies_px
        As for `reconsider`.
    bonded : callable
        Makes the graph of changed sites.

    Returns
    -------
    AtomGraph
        With all that was changed.
    (M, 2) float64
        Holes: those given, and lattice sites on which the counts show that no atom is [px].
    (W, 5) float64
        Places that were weighed, as of `Revision`.
    """
    holes, weighed, near = vacancies_px, np.zeros((0, 5)), None
    for _ in range(2):
        revision = reconsider(image, valid, graph, refined, vacancies_px=holes, near_nm=near)
        if revision.changed:
            graph = bonded(revised(image, valid, graph, revision, imaging=refined.imaging))
        holes, weighed = np.concatenate([holes, revision.holes_px]), np.concatenate([weighed, revision.weighed])
        near = revision.postponed_nm
        if not (revision.changed and len(near)):
            break
    return graph, holes, weighed


def _heights(graph: AtomGraph, refined: Refined) -> Array | None:
    """Height of every site in image units; None where intensities are not to be used."""
    found = np.stack([refined.y_px, refined.x_px], axis=1)
    distance, index = cKDTree(found).query(graph.sites.yx_px)
    if not np.isfinite(graph.sites.intensity).any() or not refined.converged.any():
        return None
    known = refined.amplitude[refined.converged & np.isfinite(refined.amplitude)]
    unit = float(np.median(known)) if len(known) else 0.0
    if not unit > 0:
        return None
    height = np.asarray(refined.amplitude)[index]
    height = np.where((distance < 2.0) & np.isfinite(height), height, unit)
    # Columns that the fit could not tell apart share one peak between them, with heights beyond all reason.
    return np.where(graph.foreign, np.clip(height, 0.0, 12.0 * unit), np.clip(height, 0.0, 2.0 * unit))


def _to_foreign(graph: AtomGraph) -> Array:
    """(N,) distance of each host atom to the nearest foreign one [host bonds]; infinite for the foreign ones."""
    result = np.full(len(graph.sites), np.inf)
    if graph.foreign.any():
        host = ~graph.foreign
        distance = cKDTree(graph.yx_nm[graph.foreign]).query(graph.yx_nm[host])[0]
        result[host] = distance / (graph.scale * graph.material.bond_nm)
    return result


def _places(graph: AtomGraph, holes: Array, crowded: Array) -> list[Place]:
    """Where to look, most suspicious first."""
    places: list[Place] = []
    yx = graph.yx_nm
    faces = graph.faces
    inner = ~graph.sites.edge & ~graph.foreign
    intensity = graph.sites.intensity
    # A misfit of the picture around a column widens its error of position.
    doubtful = inner & (graph.sites.sigma_pm > DOUBTFUL * np.nanmedian(graph.sites.sigma_pm))
    # First what would be reported as it is, as a whole.
    odd = graph.inside & (faces.size != 6)
    for group in group_faces(graph, np.flatnonzero(odd).tolist()):
        atoms = np.unique([a for f in group for a in faces.nodes(f)])
        center = yx[atoms].mean(axis=0)
        extent = float(np.max(np.hypot(*(yx[atoms] - center).T)))
        if extent < LARGEST_NM:
            places.append(Place(center, max(CORE_NM, extent - 0.10)))
        else:
            places += [Place(yx[faces.nodes(f)].mean(axis=0), CORE_NM) for f in group]
    places += [Place(at, CORE_NM) for at in crowded]
    unusual = faint(graph) | (graph.degree != 3) | (graph.sites.score < UNSURE)
    strange = np.flatnonzero(doubtful | (inner & unusual)).tolist()
    strange.sort(key=lambda i: float(intensity[i]) if np.isfinite(intensity[i]) else 1.0)
    places += [Place(yx[i], CORE_NM) for i in strange]
    places += [Place(at, CORE_NM) for at in holes]
    chosen: list[Place] = []
    for place in places:
        # Atoms at the border make no defect.
        if _within(graph, place.center) and all(
                math.dist(place.center, other.center) > max(0.12, other.radius - 0.08) for other in chosen):
            chosen.append(place)
    return chosen[:MOST_PLACES]


def _within(graph: AtomGraph, center_nm: Array) -> bool:
    """Whether a place is far enough from the border to be looked at."""
    border = BORDER_NM / graph.pixel_size.nm
    px = graph.pixel_size.to_px(center_nm)
    return bool((px >= border).all() and (px <= np.array(graph.shape) - 1 - border).all())


def _windows(altered: Array, reach: float,
             shape: tuple[int, int]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Parts of the image (low, high) [px] around what changed, overlapping ones made one."""
    boxes = [(np.floor(p - reach), np.ceil(p + reach)) for p in altered]
    joined: list[tuple[Array, Array]] = []
    for low, high in boxes:
        while True:
            hit = next((k for k, (a, b) in enumerate(joined) if (a < high).all() and (low < b).all()), None)
            if hit is None:
                break
            a, b = joined.pop(hit)
            low, high = np.minimum(a, low), np.maximum(b, high)
        joined.append((low, high))
    top = np.array(shape)
    return [(np.clip(low, 0, top).astype(int), np.clip(high + 1, 0, top).astype(int)) for low, high in joined]


def revised(image: NDArray[np.floating], valid: NDArray[np.bool_], graph: AtomGraph, revision: Revision, *,
            imaging: Imaging | None = None) -> Sites:
    """The sites after a revision, refined again on the image.

    Parameters
    ----------
    image, valid
        As for `reconsider`.
    graph : AtomGraph
        The graph that the revision is about.
    revision : Revision
    imaging : Imaging, optional
        Probe and noise of the frame.
    """
    kept = graph.sites.select(revision.keep)
    added = revision.added_px
    host = graph.material.species[0]
    yx = np.concatenate([kept.yx_px, added])
    species = np.append(kept.species, np.full(len(added), host))
    foreign = ~np.isin(species, graph.material.species)
    columns = {name: np.concatenate([getattr(kept, name), np.full(len(added), np.nan)])
               for name in ("sigma_pm", "intensity", "intensity_sigma")}
    columns["y_px"], columns["x_px"] = yx.T.copy()
    # Far from what changed nothing is to change: noise must not flip a bond elsewhere.
    altered = np.concatenate([added, graph.sites.yx_px[~revision.keep]])
    reach, margin = (nm / graph.pixel_size.nm for nm in (REFITTED_NM, AROUND_NM))
    for window in _windows(altered, reach + margin, image.shape):
        low, high = window
        near = ((yx > low - margin) & (yx < high + margin)).all(axis=1)
        new = cKDTree(altered).query(yx[near])[0] < reach
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        refined = refine_sites(image[part], yx[near, 0] - low[0], yx[near, 1] - low[1],
                               pixel_size_nm=graph.pixel_size.nm, groups=foreign[near].astype(int), valid=valid[part],
                               whole=imaging)
        usable = (~foreign[near] & ~new & refined.converged & np.isfinite(refined.amplitude)
                  & np.isfinite(columns["intensity"][near]))
        # In the units of the frame: the window's own host columns say what they are.
        unit = float(np.median(refined.amplitude[usable] / columns["intensity"][near][usable])) if usable.any() else 0.0
        values = {"y_px": refined.y_px + low[0], "x_px": refined.x_px + low[1], "sigma_pm": refined.sigma_pm}
        if np.isfinite(kept.intensity).any() and unit > 0:
            values |= {"intensity": refined.amplitude / unit, "intensity_sigma": refined.amplitude_sigma / unit}
        inner = ((yx[near] >= low + 0.6 * margin * (low > 0))
                 & (yx[near] <= high - 0.6 * margin * (high < image.shape))).all(axis=1)
        index = np.flatnonzero(near)[new & inner]
        for name, value in values.items():
            columns[name][index] = np.asarray(value)[new & inner]
    sites = Sites.from_columns(**columns, species=species, score=np.append(kept.score, revision.added_score),
                               edge=np.append(kept.edge, np.zeros(len(added), bool)))
    inside = ((sites.yx_px >= -0.5) & (sites.yx_px <= np.array(graph.shape) - 0.5)).all(axis=1)
    return sites.select(inside)
