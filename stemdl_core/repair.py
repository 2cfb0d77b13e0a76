"""Second look at doubtful places: is an atom missing there, is one too many, is a bond turned?

Where the graph departs from the perfect sheet, where a column is too faint, or where the residual of the joint fit
stands out, the arrangements that a sheet of carbon can have there (what was found, the perfect lattice, atoms taken
away or put in, bonds turned) are fitted to the counts and the most probable one is kept. Rare arrangements need
evidence: the prior is that of perfect lattice, and what the network has seen counts a little, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .arrangement import Arrangement, Array, Counts, Fitted, Patch
from .columns import two_colour
from .graph import AtomGraph
from .planar import find_faces
from .refine import Refined, refine_sites
from .rings import group_faces
from .sites import Sites

#: Log-odds against an odd arrangement; reached when some twelve atoms have rings other than hexagons around them. A
#: frame has a thousand atoms, of which noise makes one or two fainter by three and a half standard deviations: that
#: alone is no vacancy.
ODD, ODD_ATOMS = 12.0, 12.0
#: Log-odds against every bond too many, and in favour of what the network has seen.
CROWDED, SEEN = 4.0, 1.0
#: Log-odds against each change within so many host bonds of a dopant.
BESIDE, BESIDE_REACH = 7.0, 2.0
#: No host atom is nearer to a foreign one than this many host bonds (silicon to carbon: 150 pm at least); what shows
#: there is the foot of the bright column.
CLOSEST_TO_DOPANT = 1.05
#: By how much a changed arrangement has to be more probable than the found one.
DECISIVE = 1.5
#: Changes that lose more than this before anything relaxes are not looked into.
PROMISING = -8.0
#: An atom that is found so far from where it was [host bonds] is refined again from there.
MOVED = 0.22
#: A host column fainter than this part of its neighbours and by so many standard deviations is looked at again.
FAINT, FAINT_Z = 0.62, 2.0
#: So are columns whose error of position is so many times the usual one, or which the network is not sure of.
DOUBTFUL, UNSURE = 1.5, 0.7
#: Residual variance over the expected one beyond which nothing is decided: noise is shared between pixels.
WORST_MISFIT = 6.0
#: Nor where a host column stands out of the noise by less (square of its standard deviations).
FEWEST_POWER = 12.0
#: Radius of the part that is rearranged, added margin in which atoms may follow, and largest part [nm].
CORE_NM, MARGIN_NM, LARGEST_NM = 0.26, 0.14, 0.62
#: Nearer to the border than this nothing is looked at [nm].
BORDER_NM = 0.22
#: Sites within this of a change take their new positions [nm].
REFITTED_NM = 0.5
#: Most places of one frame that are looked at, and most changes in a row at one place.
MOST_PLACES, MOST_CHANGES = 16, 4


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
    """

    keep: NDArray[np.bool_]
    added_px: Array
    added_score: Array
    holes_px: Array

    @property
    def changed(self) -> bool:
        """Whether there is anything to change."""
        return bool(len(self.added_px)) or not bool(self.keep.all())


@dataclass(frozen=True)
class _Place:
    """A place to look at: centre and radius of the part that may be rearranged [nm]."""

    center: Array
    radius: float


def reconsider(image: NDArray[np.floating], valid: NDArray[np.bool_], graph: AtomGraph, refined: Refined, *,
               vacancies_px: NDArray[np.float64]) -> Revision:
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
    """
    n = len(graph.sites)
    keep, added, score, holes = np.ones(n, dtype=bool), [], [], []
    none = np.zeros((0, 2))
    imaging = refined.imaging
    if n < 12 or imaging is None or not imaging.misfit < WORST_MISFIT:
        return Revision(keep, none, np.zeros(0), none)
    heights = _heights(graph, refined)
    if heights is None:
        return Revision(keep, none, np.zeros(0), none)
    altered: list[_Place] = []
    counts = Counts(image, valid, refined, imaging, graph.pixel_size)
    for place in _places(graph, graph.pixel_size.to_nm(vacancies_px).reshape(-1, 2)):
        if any(math.dist(place.center, c.center) < place.radius + c.radius + MARGIN_NM for c in altered):
            # What is about to change here is judged by what was found before: not twice.
            continue
        search = _Search(counts, graph, heights, place)
        found = search.best()
        holes += search.empty
        if found is None:
            continue
        altered.append(place)
        new = search.replaced(found)
        keep[search.own[~np.isin(search.own, found.atoms.origin[~new])]] = False
        for yx in found.atoms.yx_nm[new]:
            if not added or np.min(np.hypot(*(np.array(added) - yx).T)) > 0.5 * search.host:
                added.append(yx)
                score.append(search.certainty)
    to_px = graph.pixel_size.to_px
    return Revision(keep, to_px(np.array(added)).reshape(-1, 2) if added else none, np.array(score),
                    to_px(np.array(holes)).reshape(-1, 2) if holes else none)


def _heights(graph: AtomGraph, refined: Refined) -> Array | None:
    """Height of every site in image units; None where intensities are not to be used."""
    found = np.stack([refined.y_px, refined.x_px], axis=1)
    distance, index = cKDTree(found).query(graph.sites.yx_px)
    if not np.isfinite(graph.sites.intensity).any() or not refined.converged.any():
        return None
    unit = float(np.median(refined.amplitude[refined.converged]))
    if not unit > 0:
        return None
    height = np.asarray(refined.amplitude)[index]
    return np.where((distance < 2.0) & np.isfinite(height), height, unit)


def _places(graph: AtomGraph, holes: Array) -> list[_Place]:
    """Where to look, most suspicious first."""
    places: list[_Place] = []
    yx = graph.yx_nm
    faces = graph.faces
    inner = ~graph.sites.edge & ~graph.foreign
    intensity, sigma = graph.sites.intensity, graph.sites.intensity_sigma
    # A misfit of the picture around a column widens its error of position.
    doubtful = inner & (graph.sites.sigma_pm > DOUBTFUL * np.nanmedian(graph.sites.sigma_pm))
    faint = inner & (intensity < FAINT) & (intensity + FAINT_Z * np.hypot(sigma, 0.08) < 1.0)
    strange = np.flatnonzero(faint | doubtful | (inner & ((graph.degree != 3) | (graph.sites.score < UNSURE)))).tolist()
    strange.sort(key=lambda i: float(intensity[i]) if np.isfinite(intensity[i]) else 1.0)
    places += [_Place(yx[i], CORE_NM) for i in strange]
    places += [_Place(at, CORE_NM) for at in holes]
    odd = graph.inside & (faces.size != 6)
    for group in group_faces(graph, np.flatnonzero(odd).tolist()):
        atoms = np.unique([a for f in group for a in faces.nodes(f)])
        center = yx[atoms].mean(axis=0)
        extent = float(np.max(np.hypot(*(yx[atoms] - center).T)))
        if extent < LARGEST_NM:
            places.append(_Place(center, max(CORE_NM, extent - 0.10)))
        else:
            places += [_Place(yx[faces.nodes(f)].mean(axis=0), CORE_NM) for f in group]
    chosen: list[_Place] = []
    # Atoms at the border make no defect.
    border = BORDER_NM / graph.pixel_size.nm
    limit = np.array(graph.shape) - 1 - border
    for place in places:
        px = graph.pixel_size.to_px(place.center)
        if (px < border).any() or (px > limit).any():
            continue
        if all(math.dist(place.center, other.center) > max(0.12, other.radius - 0.08) for other in chosen):
            chosen.append(place)
    return chosen[:MOST_PLACES]


class _Search:
    """Arrangements at one place."""

    def __init__(self, counts: Counts, graph: AtomGraph, heights: Array, place: _Place) -> None:
        self.graph, self.place = graph, place
        self.host = graph.scale * graph.material.bond_nm
        self.certainty = 0.5
        self.empty: list[Array] = []
        reach = place.radius + MARGIN_NM
        self.patch = Patch(counts, place.center, reach + 2.2 * counts.sigma_nm)
        near = np.array(graph.tree.query_ball_point(place.center, reach + 4.5 * counts.sigma_nm + 0.25), dtype=np.int64)
        distance = np.hypot(*(graph.yx_nm[near] - place.center).T)
        own = ~graph.foreign[near] & (distance < 1.0)
        typical = heights[near[own & (graph.degree[near] == 3)]]
        self.unit = float(np.median(typical)) if len(typical) >= 6 else float(np.median(heights[~graph.foreign]))
        self.start = Arrangement(graph.yx_nm[near], heights[near], graph.foreign[near], near, distance < reach)
        self.own = near[distance < reach]

    def best(self) -> Fitted | None:
        """The most probable arrangement, None where it is the found one."""
        if len(self.patch) < 30 or self.unit <= 0 or float(self.patch.share.mean()) < 0.8:
            return None
        now = self._fit(self.start)
        if float(((self.unit * self.patch.profile(self.place.center) * now.root) ** 2).sum()) < FEWEST_POWER:
            return None
        lattice = self._lattice()
        first = self._probability(now) + SEEN
        best, top = self._climb(now, lattice)
        if lattice is not None:
            perfect = self._perfect(lattice)
            if perfect is not None:
                other, its = self._climb(self._fit(perfect), lattice)
                if its > top:
                    best, top = other, its
        self._note_holes(best, lattice)
        if best is now or top < first + DECISIVE:
            # The same atoms, but not where they were found: a turned bond drawn as if it were not.
            return now if self.replaced(now).any() else None
        self.certainty = 1.0 / (1.0 + math.exp(-min(top - first, 30.0)))
        return best

    def replaced(self, fitted: Fitted) -> NDArray[np.bool_]:
        """(N,) atoms that were put there, or that belong elsewhere than where they were found."""
        atoms = fitted.atoms
        known = atoms.origin >= 0
        gone = np.hypot(*(atoms.yx_nm - self.graph.yx_nm[atoms.origin]).T) > MOVED * self.host
        return ~known | (gone & atoms.free & ~atoms.dopant)

    def _fit(self, atoms: Arrangement, iterations: int = 4) -> Fitted:
        return self.patch.fit(atoms, unit=self.unit, host_nm=self.host, iterations=iterations)

    def _probability(self, fitted: Fitted) -> float:
        return fitted.score - self._oddness(fitted.atoms)

    def _oddness(self, atoms: Arrangement) -> float:
        """Log-odds against the bonds of an arrangement before the counts are looked at."""
        yx = atoms.yx_nm
        pairs = cKDTree(yx).query_pairs(1.32 * self.host, output_type="ndarray")
        light = ~atoms.dopant[pairs].any(axis=1)
        degree = np.bincount(pairs[light].ravel(), minlength=len(yx))
        inner = np.hypot(*(yx - self.place.center).T) < self.place.radius + MARGIN_NM
        crowded = float(np.maximum(degree - 3, 0)[inner & ~atoms.dopant].sum())
        lonely = float((degree[inner & ~atoms.dopant] < 2).sum())
        if len(pairs) == 0:
            return ODD
        dopant_near = np.zeros(len(yx), dtype=bool)
        if atoms.dopant.any():
            dopant_near = cKDTree(yx[atoms.dopant]).query(yx)[0] < 1.7 * self.host
        faces = find_faces(yx, pairs[:, 0], pairs[:, 1])
        hexagons = np.bincount(faces.start, weights=((faces.size == 6) & (faces.area > 0))[faces.face],
                               minlength=len(yx))
        odd = float((3.0 - hexagons)[inner & ~dopant_near].clip(0).sum())
        return ODD * (1.0 - math.exp(-odd / ODD_ATOMS)) + CROWDED * crowded + 2.0 * lonely + self._beside(atoms)

    def _beside(self, atoms: Arrangement) -> float:
        """Log-odds against changes beside a dopant, whose light covers what stands there."""
        if not atoms.dopant.any():
            return 0.0
        bright = cKDTree(self.start.yx_nm[self.start.dopant])
        gone = self.start.yx_nm[~np.isin(self.start.origin, atoms.origin)]
        changed = np.concatenate([gone, atoms.yx_nm[atoms.origin < 0]])
        return BESIDE * float((bright.query(changed)[0] < BESIDE_REACH * self.host).sum()) if len(changed) else 0.0

    # --- moves

    def _climb(self, now: Fitted, lattice: Array | None) -> tuple[Fitted, float]:
        """Take the best single change until none improves."""
        value = self._probability(now) + (SEEN if now.atoms.origin[now.atoms.free].min(initial=0) >= 0
                                          and len(now.atoms.yx_nm) == len(self.start.yx_nm) else 0.0)
        for _ in range(MOST_CHANGES):
            options = []
            for arrangement in self._moves(now, lattice):
                fitted = self._fit(arrangement)
                options.append((self._probability(fitted), fitted))
            if not options:
                break
            chance, fitted = max(options, key=lambda o: o[0])
            if chance <= value + 0.1:
                break
            now, value = fitted, chance
        return now, value

    def _moves(self, now: Fitted, lattice: Array | None) -> list[Arrangement]:
        """The most promising changes by their gain before anything relaxes."""
        atoms, patch = now.atoms, self.patch
        core = np.hypot(*(atoms.yx_nm - self.place.center).T) < self.place.radius
        mine = np.flatnonzero(atoms.free & core & ~atoms.dopant)
        found: list[tuple[float, Arrangement]] = []
        if len(mine):
            # Taking away: relative to an atom of the height fitted here.
            gain = np.array([patch.gain(now, atoms.yx_nm[[i]], -atoms.height[i])[0] for i in mine])
            found += [(float(g), atoms.without(int(i))) for g, i in zip(gain, mine)]
        places = []
        near = patch.yx_nm[np.hypot(*(patch.yx_nm - self.place.center).T) < self.place.radius + 0.05]
        near = near[:: max(1, len(near) // 80)]
        if len(near):
            places.append(near[int(np.argmax(patch.z_scores(now, near)))])
        if lattice is not None and len(lattice):
            places += list(lattice[np.hypot(*(lattice - self.place.center).T) < self.place.radius + 0.05])
        closest = np.where(atoms.dopant, CLOSEST_TO_DOPANT, 0.55) * self.host
        free = [p for p in places if (np.hypot(*(atoms.yx_nm - p).T) > closest).all()]
        if free:
            gain = patch.gain(now, np.array(free), self.unit)
            found += [(float(g), atoms.with_atoms(p, self.unit)) for g, p in zip(gain, free)]
        found += self._turned(now, core) + self._merged(now, mine)
        found.sort(key=lambda o: -o[0])
        # The clearer the columns, the more a change loses that only wants relaxing.
        single = float(((self.unit * patch.profile(self.place.center) * now.root) ** 2).sum())
        least = PROMISING - 0.12 * single
        return [arrangement for gain, arrangement in found[:4] if gain > least]

    def _turned(self, now: Fitted, core: NDArray[np.bool_]) -> list[tuple[float, Arrangement]]:
        """Bonds turned by 90 degrees."""
        atoms = now.atoms
        pairs = cKDTree(atoms.yx_nm).query_pairs(1.3 * self.host, output_type="ndarray")
        pairs = pairs[(atoms.free & ~atoms.dopant)[pairs].all(axis=1) & core[pairs].any(axis=1)]
        if len(pairs) == 0:
            return []
        a, b = atoms.yx_nm[pairs[:, 0]], atoms.yx_nm[pairs[:, 1]]
        middle, step = 0.5 * (a + b), 0.5 * (b - a)
        turned = np.stack([step[:, 1], -step[:, 0]], axis=1)
        profile = self.patch.profile
        there = atoms.height[:, None] * profile(atoms.yx_nm)
        change = (self.unit * (profile(middle + turned) + profile(middle - turned))
                  - there[pairs[:, 0]] - there[pairs[:, 1]]) * now.root
        gain = change @ now.residual - 0.5 * (change**2).sum(1)
        result = []
        for k in np.argsort(-gain)[:2].tolist():
            pair = [int(v) for v in pairs[k]]
            new = np.stack([middle[k] + turned[k], middle[k] - turned[k]])
            # Around the turned bond the sheet relaxes; before that, the gain is far too low.
            result.append((float(gain[k]) + 10.0, atoms.without(pair).with_atoms(new, self.unit)))
        return result

    def _merged(self, now: Fitted, mine: NDArray[np.int64]) -> list[tuple[float, Arrangement]]:
        """Atoms nearer to each other than atoms are, made one."""
        if len(mine) < 2:
            return []
        yx = now.atoms.yx_nm[mine]
        pairs = mine[cKDTree(yx).query_pairs(0.8 * self.host, output_type="ndarray")]
        return [(0.0, now.atoms.without(p).with_atoms(now.atoms.yx_nm[p].mean(axis=0), self.unit))
                for p in pairs.tolist()]

    # --- the perfect lattice

    def _lattice(self) -> Array | None:
        """Sites of the perfect lattice in this part, continued from the hexagons around it."""
        graph, center = self.graph, self.place.center
        faces = graph.faces
        hexagons = np.bincount(faces.start, weights=(graph.inside & (faces.size == 6))[faces.face],
                               minlength=len(graph.sites))
        near = np.array(graph.tree.query_ball_point(center, self.place.radius + 0.55), dtype=np.int64)
        calm = near[(hexagons[near] >= 2) & (graph.degree[near] == 3) & ~graph.foreign[near]]
        if len(calm) < 8:
            return None
        number = np.full(len(graph.sites), -1)
        number[calm] = np.arange(len(calm))
        a, b = number[graph.bonds.a], number[graph.bonds.b]
        use = (a >= 0) & (b >= 0)
        pairs = np.stack([a[use], b[use]], axis=1)
        if len(pairs) < 8:
            return None
        colour, part = two_colour(len(calm), pairs)
        largest = int(np.bincount(part).argmax())
        yx = graph.yx_nm[calm]
        start = np.where(colour[pairs[:, 0]] == 0, pairs[:, 0], pairs[:, 1])
        end = pairs.sum(axis=1) - start
        use = part[start] == largest
        step = (yx[end] - yx[start])[use]
        turn = np.angle(np.exp(3j * np.arctan2(step[:, 0], step[:, 1])).mean()) / 3.0
        kind = np.round((np.arctan2(step[:, 0], step[:, 1]) - turn) / (2 * np.pi / 3)).astype(int) % 3
        if len(np.unique(kind)) < 3:
            return None
        d = np.array([step[kind == k].mean(axis=0) for k in range(3)])
        basis = np.stack([d[0] - d[1], d[0] - d[2]])
        members = np.flatnonzero(part == largest)
        anchor = members[int(np.argmin(np.hypot(*(yx[members] - center).T)))]
        origin = yx[anchor] - colour[anchor] * d[0]
        place = (yx[members] - origin - colour[members][:, None] * d[0]) @ np.linalg.inv(basis)
        index = np.round(place)
        design = np.column_stack([np.ones(len(members)), index, colour[members]])
        solution, *_ = np.linalg.lstsq(design, yx[members], rcond=None)
        error = yx[members] - design @ solution
        if np.sqrt((error**2).sum(1).mean()) > 0.25 * self.host:
            return None
        reach = int(np.ceil((self.place.radius + 0.9) / (1.7 * self.host))) + 1
        middle = np.round((center - solution[0]) @ np.linalg.inv(solution[1:3])).astype(int)
        i, j, s = (v.ravel() for v in np.meshgrid(middle[0] + np.arange(-reach, reach + 1),
                                                  middle[1] + np.arange(-reach, reach + 1), (0, 1), indexing="ij"))
        sites = np.column_stack([np.ones(len(i)), i, j, s]) @ solution
        return sites[np.hypot(*(sites - center).T) < self.place.radius + MARGIN_NM + 0.02]

    def _perfect(self, lattice: Array) -> Arrangement | None:
        """The part replaced by perfect lattice; None where foreign atoms are."""
        inside = np.hypot(*(self.start.yx_nm - self.place.center).T) < self.place.radius + 0.02
        if self.start.dopant[inside].any() or (self.start.dopant.any() and len(lattice) == 0):
            return None
        rest = self.start.without(np.flatnonzero(inside).tolist())
        old = self.start.yx_nm[inside]
        new = lattice[np.hypot(*(lattice - self.place.center).T) < self.place.radius + 0.02]
        gap = np.min(np.hypot(*(rest.yx_nm[:, None] - new[None]).transpose(2, 0, 1)), axis=0) if len(new) else \
            np.zeros(0)
        new = new[gap > 0.5 * self.host]
        if len(new) == len(old) and (len(old) == 0 or
                                     np.max(np.min(np.hypot(*(old[:, None] - new[None]).transpose(2, 0, 1)),
                                                   axis=0)) < 0.3 * self.host):
            return None
        # A site that is there keeps its number: only what differs is a change.
        result = rest.with_atoms(new, self.unit)
        if len(old):
            distance, which = cKDTree(old).query(new)
            origin = result.origin.copy()
            ids = self.start.origin[inside]
            same = distance < 0.45 * self.host
            origin[len(rest.yx_nm):][same] = ids[which[same]]
            result = Arrangement(result.yx_nm, result.height, result.dopant, origin, result.free)
        return result

    def _note_holes(self, best: Fitted, lattice: Array | None) -> None:
        """Lattice sites without an atom, where an atom would contradict the counts."""
        if lattice is None:
            return
        yx = best.atoms.yx_nm
        for site in lattice[np.hypot(*(lattice - self.place.center).T) < self.place.radius]:
            if np.min(np.hypot(*(yx - site).T)) > 0.6 * self.host and \
                    float(self.patch.gain(best, site[None], self.unit)[0]) < -4.0:
                self.empty.append(site)




def revised(image: NDArray[np.floating], valid: NDArray[np.bool_], graph: AtomGraph, revision: Revision) -> Sites:
    """The sites after a revision, refined again on the image.

    Parameters
    ----------
    image, valid
        As for `reconsider`.
    graph : AtomGraph
        The graph that the revision is about.
    revision : Revision
    """
    kept = graph.sites.select(revision.keep)
    added = revision.added_px
    host = graph.material.species[0]
    yx = np.concatenate([kept.yx_px, added])
    species = np.append(kept.species, np.full(len(added), host))
    foreign = ~np.isin(species, graph.material.species)
    refined = refine_sites(image, yx[:, 0], yx[:, 1], pixel_size_nm=graph.pixel_size.nm,
                           groups=foreign.astype(int), valid=valid)
    usable = ~foreign & refined.converged
    unit = float(np.median(refined.amplitude[usable])) if usable.any() else 1.0
    intensity, sigma = refined.amplitude / unit, refined.amplitude_sigma / abs(unit)
    if not np.isfinite(kept.intensity).any():
        intensity = sigma = np.full(len(yx), np.nan)
    if len(kept):
        # Far from what changed nothing is to change: noise must not flip a bond elsewhere.
        altered = np.concatenate([added, graph.sites.yx_px[~revision.keep]])
        far = cKDTree(altered).query(kept.yx_px)[0] * graph.pixel_size.nm > REFITTED_NM
        index = np.flatnonzero(far)
        columns = {"y_px": refined.y_px.copy(), "x_px": refined.x_px.copy(), "sigma_pm": refined.sigma_pm.copy(),
                   "intensity": intensity.copy(), "intensity_sigma": sigma.copy()}
        for name, values in columns.items():
            values[index] = getattr(kept, name)[index]
    else:
        columns = {"y_px": refined.y_px, "x_px": refined.x_px, "sigma_pm": refined.sigma_pm,
                   "intensity": intensity, "intensity_sigma": sigma}
    sites = Sites.from_columns(**columns, species=species, score=np.append(kept.score, revision.added_score),
                               edge=np.append(kept.edge, np.zeros(len(added), bool)))
    inside = ((sites.yx_px >= -0.5) & (sites.yx_px <= np.array(graph.shape) - 0.5)).all(axis=1)
    return sites.select(inside)
