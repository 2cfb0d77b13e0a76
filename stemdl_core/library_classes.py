"""Classes of defects that nobody named beforehand: equal graphs first, then geometry joins what noise has split.

Frequent graphs are candidates for classes. Two candidates whose mean geometries agree within their errors are one
class whose graph noise reads in two ways; a candidate whose only difference is an atom that its own average image
shows to be there is one whose detector overlooked that atom. Rare graphs join the class that explains them, or
stay what they are: rare. Members of one graph whose geometry falls into two are sub-classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .library_environment import COMPARED_NM, GRID_PX, Environment
from .library_kinds import DefectClass, Member, novelty, ranked
from .library_match import UNPAIRED, Fit, Geometry, lay_over, level, mean_image, turned

#: Classes seen at least this often stand on their own; rarer graphs may be accidents of noise.
FREQUENT = 3
#: An environment belongs to a class when its cost exceeds one a paired atom by less than this many times the root of
#: their number, for no, one and two atoms that were overlooked or invented. Stated uncertainties are on the safe side:
#: members lie at -4 to -1, other structures of the same chemistry above -0.5, or above -2 with a lone atom.
LARGEST_EXCESS = (0.3, -2.0, -2.5)
#: Foreign atoms are bright: one that is elsewhere by more than this many standard deviations is another structure.
FOREIGN_SIGMAS = 4.5
#: A member that fits its class worse than this is tried with all others.
DOUBTFUL = 1.0
#: Two mean geometries are different when an atom's places differ by more than this [nm] and by this many standard
#: deviations (of both means and what scatter remains in them [nm]).
APART_NM, APART_SIGMAS, LEFT_NM = 0.020, 4.0, 0.005
#: In an average image, a column is there when the level at its place exceeds this (host column 1, ring middle 0).
THERE = 0.6
#: Structures drawn in a library average at most this many members: the mean no longer improves.
MOST_AVERAGED = 60
#: Members whose images are kept for the contact sheet.
SHOWN = 15


class _Group:
    """A class under construction."""

    def __init__(self, members: Sequence[int], everything: Sequence[Environment]) -> None:
        self.members = list(members)
        self._all = everything
        self.fits: dict[int, Fit] = {}
        # The best placed whole member starts; means follow.
        first = min(self.members, key=lambda k: (not everything[k].whole, float(np.median(everything[k].sigma_nm))))
        self.first = first
        self.geometry = Geometry.of(everything[first])
        self.occupancy = np.ones(len(self.geometry.yx_nm))
        self.refine()

    @property
    def chemistry(self) -> tuple[object, ...]:
        return self._all[self.first].chemistry

    def keys(self) -> Counter[str]:
        return Counter(self._all[k].key for k in self.members)

    def refine(self, turns: int = 2) -> None:
        """Mean geometry over the members, each laid over the last mean."""
        for _ in range(turns if len(self.members) > 1 else 1):
            used = self.members[:MOST_AVERAGED]
            self.fits = {k: lay_over(self.geometry, self._all[k]) for k in used}
            n = len(self.geometry.yx_nm)
            total, square, count, possible = np.zeros((n, 2)), np.zeros(n), np.zeros(n), np.zeros(n)
            for k, fit in self.fits.items():
                e = self._all[k]
                i, j = fit.pairs.T
                placed = fit.place(e.yx_nm)[j]
                total[i] += placed
                square[i] += ((placed - self.geometry.yx_nm[i]) ** 2).sum(axis=1)
                count[i] += 1
                back = (self.geometry.yx_nm - fit.shift_nm) @ fit.rotation
                possible += np.hypot(*back.T) < e.reach_nm - 0.03
            possible = np.maximum(possible, count)
            seen = count > 0
            mean = np.where(seen[:, None], total / np.maximum(count, 1)[:, None], self.geometry.yx_nm)
            variance = square / np.maximum(2 * count, 1) - 0.5 * ((mean - self.geometry.yx_nm) ** 2).sum(axis=1)
            # Of the mean, not of a member: measured and general scatter are added when it is compared.
            sem = np.sqrt(np.maximum(variance, 1e-6) / np.maximum(count, 1))
            single = len(used) == 1
            spread = self.geometry.spread_nm if single else np.where(seen, sem, self.geometry.spread_nm)
            self.occupancy = count / np.maximum(possible, 1)
            inner = np.hypot(*mean.T) <= self.geometry.radius_nm
            keep = ~inner | (self.occupancy >= 0.5) | self.geometry.core & (self.occupancy >= 0.3)
            if single or len(used) == 2:
                keep[:] = True
            self.geometry = replace(self.geometry, yx_nm=mean[keep], species=self.geometry.species[keep],
                                    core=self.geometry.core[keep], spread_nm=spread[keep])
            self.occupancy = self.occupancy[keep]


def belongs(fit: Fit) -> bool:
    """Whether an environment is a member of the class over whose geometry it was laid."""
    if fit.worst_foreign > FOREIGN_SIGMAS or fit.lone >= len(LARGEST_EXCESS):
        return False
    paired = fit.cost - fit.atoms - (UNPAIRED - 1) * fit.lone
    return bool(paired <= LARGEST_EXCESS[fit.lone] * np.sqrt(max(fit.atoms, 1)))


def classify(found: Sequence[Environment], *, progress: Callable[[int, int], None] | None = None) -> list[DefectClass]:
    """Sort environments into classes.

    Parameters
    ----------
    found : sequence of Environment
    progress : callable, optional
        ``progress(done, total)``.

    Returns
    -------
    list of DefectClass
        Ranked by count and novelty. What the image's border cuts is a member where it fits, and no class.
    """
    tell = progress or (lambda done, total: None)
    # What the border of the image cuts may belong to a class, but makes none.
    whole = [k for k, e in enumerate(found) if e.whole]
    groups = [_Group(g, found) for g in _split(_equal_graphs(found, whole), found)]
    groups.sort(key=lambda g: -len(g.members))
    classes: list[_Group] = []
    for k, group in enumerate(groups):
        tell(k, len(groups))
        if len(group.members) < FREQUENT:
            continue
        home = _same_class(group, classes, found)
        if home is None:
            classes.append(group)
        else:
            home.members += group.members
            home.refine(1)
    rest = [k for g in groups if len(g.members) < FREQUENT for k in g.members]
    for k in rest:
        best = best_class(found[k], [(g.geometry, g.chemistry) for g in classes])
        if best is None:
            classes.append(_Group([k], found))
        else:
            classes[best[0]].members.append(k)
    for k in sorted(set(range(len(found))) - set(whole)):
        best = best_class(found[k], [(g.geometry, g.chemistry) for g in classes])
        if best is not None:
            classes[best[0]].members.append(k)
    for group in classes:
        group.refine(1)
    _reassign(classes, found)
    classes = [g for g in classes if g.members]
    for group in classes:
        group.refine(1)
    tell(len(groups), len(groups))
    return ranked([_finished(g, found) for g in classes])


def _reassign(classes: Sequence[_Group], found: Sequence[Environment]) -> None:
    """Members to the class that fits best: one graph may hold two structures when noise moves a single bond."""
    means = [_as_environment(g, found) for g in classes]
    near = [{b for b, other in enumerate(classes) if b != a and other.chemistry == g.chemistry
             and lay_over(other.geometry, means[a]).lone == 0} for a, g in enumerate(classes)]
    moves = []
    for a, group in enumerate(classes):
        for k in group.members:
            own = group.fits.get(k) or lay_over(group.geometry, found[k])
            # Who fits badly may belong anywhere, the others only where a few atoms decide.
            rivals = near[a] if _misfit(own) < DOUBTFUL else \
                {b for b, other in enumerate(classes) if b != a and other.chemistry == group.chemistry}
            best = best_class(found[k], [(classes[b].geometry, classes[b].chemistry) for b in sorted(rivals)])
            if best is not None and _misfit(best[1]) < _misfit(own) - 0.2:
                moves.append((k, a, sorted(rivals)[best[0]]))
    for k, a, b in moves:
        classes[a].members.remove(k)
        classes[b].members.append(k)


def best_class(e: Environment, classes: Sequence[tuple[Geometry, tuple[object, ...]]]) -> tuple[int, Fit] | None:
    """The class that explains an environment best, None if none does."""
    best: tuple[int, Fit] | None = None
    for k, (geometry, chemistry) in enumerate(classes):
        if chemistry != e.chemistry:
            continue
        fit = lay_over(geometry, e)
        # Larger structures compare more atoms: cost per atom beyond the first few decides, not the sum.
        if belongs(fit) and (best is None or _misfit(fit) < _misfit(best[1])):
            best = k, fit
    return best


def _misfit(fit: Fit) -> float:
    return (fit.cost - fit.atoms) / float(np.sqrt(max(fit.atoms, 1)))


def _equal_graphs(found: Sequence[Environment], which: Sequence[int]) -> list[list[int]]:
    """Numbers of environments whose graphs are isomorphic."""
    buckets: dict[tuple[object, ...], list[list[int]]] = {}
    for k in which:
        e = found[k]
        here = buckets.setdefault((e.key, e.chemistry), [])
        for group in here:
            if found[group[0]].same_graph(e):
                group.append(k)
                break
        else:
            here.append([k])
    return [g for several in buckets.values() for g in several]


def _split(groups: list[list[int]], found: Sequence[Environment]) -> list[list[int]]:
    """Equal graphs with different geometry apart: who does not belong starts a group of its own, if it has company."""
    result = []
    for group in groups:
        left = group
        while len(left) >= 2 * FREQUENT:
            core = _Group(left, found)
            outside = [k for k in left if not belongs(core.fits.get(k) or lay_over(core.geometry, found[k]))]
            if len(outside) < FREQUENT or len(outside) == len(left):
                break
            # The mean of two sub-classes lies between them: once more with those nearest to it.
            inside = [k for k in left if k not in outside]
            core = _Group(inside, found)
            inside = [k for k in left if belongs(lay_over(core.geometry, found[k]))]
            if not inside or len(inside) == len(left):
                break
            result.append(inside)
            left = [k for k in left if k not in inside]
        result.append(left)
    return [g for g in result if g]


def _same_class(group: _Group, classes: Sequence[_Group], found: Sequence[Environment]) -> _Group | None:
    """An existing class that a frequent graph is a misreading of."""
    mean = _as_environment(group, found)
    best: tuple[float, _Group] | None = None
    for other in classes:
        if other.chemistry != group.chemistry:
            continue
        fit = lay_over(other.geometry, mean)
        if not belongs(fit) or (fit.lone and not _explained(group, other, fit, found)):
            continue
        if _apart(group.geometry, other.geometry, fit):
            continue
        if best is None or _misfit(fit) < best[0]:
            best = _misfit(fit), other
    return None if best is None else best[1]


def _apart(one: Geometry, other: Geometry, fit: Fit) -> bool:
    """Whether some atom has another place in two means: a few atoms differ clearly, or they are the same."""
    i, j = fit.pairs.T
    distance = np.hypot(*(other.yx_nm[i] - fit.place(one.yx_nm)[j]).T)
    sigma = np.sqrt(other.spread_nm[i] ** 2 + one.spread_nm[j] ** 2 + LEFT_NM**2)
    near = np.hypot(*other.yx_nm[i].T) < other.radius_nm - 0.5 * COMPARED_NM
    return bool(np.any(near & (distance > APART_NM) & (distance > APART_SIGMAS * sigma)))


def _as_environment(group: _Group, found: Sequence[Environment]) -> Environment:
    """The mean of a group in the place of its first member."""
    g, first = group.geometry, found[group.first]
    return replace(first, yx_nm=g.yx_nm, species=g.species, core=g.core, sigma_nm=np.maximum(g.spread_nm, 0.002),
                   bonds=np.zeros((0, 2), np.int64), rings=(), reach_nm=2.0)


def _explained(group: _Group, other: _Group, fit: Fit, found: Sequence[Environment]) -> bool:
    """Whether every atom that only one of two means has is seen in both average images, or in neither."""
    ours, theirs = mean_image(group.fits, found), mean_image(other.fits, found)
    if ours is None or theirs is None:
        return False
    mine = np.setdiff1d(np.flatnonzero(np.hypot(*group.geometry.yx_nm.T) < 0.95 * group.geometry.radius_nm),
                        fit.pairs[:, 1])
    other_only = np.setdiff1d(np.flatnonzero(np.hypot(*other.geometry.yx_nm.T) < other.geometry.radius_nm),
                              fit.pairs[:, 0])
    back = (other.geometry.yx_nm[other_only] - fit.shift_nm) @ fit.rotation
    places = [(p, fit.place(p[None])[0]) for p in group.geometry.yx_nm[mine]]
    places += list(zip(back, other.geometry.yx_nm[other_only]))
    return all((level(ours, a) > THERE) == (level(theirs, b) > THERE) for a, b in places)


def _finished(group: _Group, found: Sequence[Environment]) -> DefectClass:
    members = [found[k] for k in group.members]
    fits = {k: group.fits.get(k) or lay_over(group.geometry, found[k]) for k in group.members}
    votes: Counter[tuple[int, int]] = Counter()
    core_votes = np.zeros(len(group.geometry.yx_nm))
    for k in group.fits:
        i, j = group.fits[k].pairs.T
        partner = np.full(len(found[k].yx_nm), -1)
        partner[j] = i
        ends = partner[found[k].bonds]
        votes.update((min(a, b), max(a, b)) for a, b in ends.tolist() if a >= 0 and b >= 0)
        core_votes[i] += found[k].core[j]
    half = 0.5 * len(group.fits)
    core = core_votes >= max(half, 0.5)
    geometry = group.geometry if not core.any() else replace(group.geometry, core=core)
    names = Counter(" + ".join(sorted(e.names)) for e in members)
    parts = [e.names for e in members if len(e.names) > 1]
    kind = "single"
    if 2 * len(parts) > len(members):
        kind = "agglomeration" if len(set(Counter(parts).most_common(1)[0][0])) == 1 else "mixture"
    own = Counter(geometry.species[geometry.core].tolist())
    order = sorted(own, key=lambda s: (s in geometry.host, s))
    image = mean_image(group.fits, found)
    shown = [turned(e.image, fits[k]) for k, e in zip(group.members, members) if e.image is not None][:SHOWN]
    return DefectClass(
        id="", geometry=geometry, occupancy=group.occupancy,
        bonds=np.array(sorted(p for p, n in votes.items() if n > half), dtype=np.int64).reshape(-1, 2),
        members=tuple(_member(found[k], fits[k]) for k in group.members), chemistry=group.chemistry,
        key=group.keys().most_common(1)[0][0], variants=len(group.keys()),
        missing=Counter(e.missing for e in members).most_common(1)[0][0],
        composition=" ".join(f"{s}{own[s]}" for s in order),
        image=np.full((GRID_PX, GRID_PX), np.nan, np.float32) if image is None else image,
        examples=np.array(shown, dtype=np.float16).reshape(-1, GRID_PX, GRID_PX),
        novelty=float(np.mean([novelty(e) for e in members])), found_as=tuple(names.most_common()), kind=kind)


def _member(e: Environment, fit: Fit) -> Member:
    mirrored = bool(np.linalg.det(fit.rotation) < 0)
    plain = fit.rotation @ np.diag([-1.0, 1.0]) if mirrored else fit.rotation
    angle = float(np.degrees(np.arctan2(plain[0, 1], plain[0, 0])))
    return Member(e.source, e.frame, e.center_px[0], e.center_px[1], " + ".join(sorted(e.names)), fit.excess, angle,
                  mirrored, e.pixel_nm)
