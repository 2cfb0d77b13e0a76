"""Which defect of this frame is which track: costs in units of negative log-likelihood, and the best assignment.

The drift of a frame is known modulo a lattice vector only; the branch is the one under which the defects and
the drift's own history are most probable together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

_FORBIDDEN = 1e6
#: Cost of a defect that was taken for a host atom [nats]; within this distance a defect rests where it was [nm].
_OVERLOOKED, _REST_NM = 1.2, 0.08
#: What speaks against going on with a track that may be noise: in a frame that was changed half-way a defect is seen at
#: both of its places, and the old one moved rather than died beside a new one [nats].
_DOUBTFUL = 1.8
#: Evidence from which a site is taken for a defect that has moved there, or for one not yet certain [nats].
FIRM = 2.5


@dataclass(frozen=True)
class TrackSettings:
    """Numbers that decide how defects are linked and when a change counts.

    Parameters
    ----------
    search_range_nm : float
        A defect does not move farther than this between two frames, relative to the lattice [nm].
    memory_frames : int
        Good frames a defect may be missing and keep its track.
    position_sigma_nm : float
        Scatter of a resting defect's position along one axis [nm].
    hop_bonds : float
        A displacement beyond this is a hop, in units of the host's bond length: between the half bond that
        a change from three to four bonds takes and the whole bond of a hop.
    change_probability : float
        Probability per frame of a change to one other state.
    misread_probability : float
        Probability that a single frame's name is wrong although it claims certainty.
    angle_sigma_deg, rotation_deg : float
        Scatter of a resting cluster's orientation, and the smallest rotation reported [deg].
    mixed_deviation_deg : float
        A triangle of three foreign atoms that deviates more than this from equilateral was caught between
        two orientations [deg].
    border_nm : float
        Nearer than this to the border of the image a defect cannot be told whole [nm].
    confirm, confirm_later : float
        Evidence that makes a track real, for those of the first frames and for those that appear later: a good
        reading counts its probability, a missing one -0.6.
    merge_range_nm : float
        Defects nearer than this can merge or have split [nm].
    """

    search_range_nm: float = 0.5
    memory_frames: int = 5
    position_sigma_nm: float = 0.025
    hop_bonds: float = 0.7
    change_probability: float = 0.03
    misread_probability: float = 0.01
    angle_sigma_deg: float = 5.0
    rotation_deg: float = 25.0
    mixed_deviation_deg: float = 14.0
    border_nm: float = 0.3
    confirm: float = 1.5
    confirm_later: float = 2.2
    merge_range_nm: float = 1.0


@dataclass(frozen=True)
class Target:
    """A track as the linker sees it.

    Parameters
    ----------
    yx_nm : (2,) float64
        Where it is expected in the specimen's frame [nm].
    foreign : mapping of str to int
        Its foreign atoms by element.
    name : str
    missed : int
        Good frames since it was last seen.
    real : bool
        Confirmed.
    visible : bool
        Expected well inside the image: a missing reading means something.
    away : bool
        It left the view: only the place where it was counts.
    heavy : bool
        A cluster, or a metal in the place of another: it turns and changes, but hardly ever hops.
    """

    yx_nm: NDArray[np.float64]
    foreign: Mapping[str, int]
    name: str
    missed: int = 0
    real: bool = True
    visible: bool = True
    away: bool = False
    heavy: bool = False


@dataclass(frozen=True)
class Linked:
    """Pairs (target, detection) and the cost of the whole assignment [nats]."""

    pairs: tuple[tuple[int, int], ...]
    cost: float


def position_cost(
    distance_nm: NDArray[np.float64],
    *,
    sigma_nm: float,
    missed: NDArray[np.float64],
    hop_nm: float = 0.142,
    heavy: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Negative log-likelihood of displacements: rest with scatter, or a hop now and then.

    Parameters
    ----------
    distance_nm : (T, D) float64
        Displacements [nm].
    sigma_nm : float
        Scatter of a resting defect along one axis [nm].
    missed : (T, 1) float64
        Frames since the defect was last seen.
    hop_nm : float
        Length of the shortest hop [nm]; longer ones are rarer.
    heavy : (T, 1) bool, optional
        Defects that hardly ever hop.
    """
    hop = np.minimum(0.03 * (1.0 + missed), 0.2)
    if heavy is not None:
        hop = np.where(heavy, 0.1 * hop, hop)
    with np.errstate(under="ignore"):
        rest = (1.0 - hop) * np.exp(-0.5 * (distance_nm / (1.4 * sigma_nm)) ** 2)
        return -np.log(rest + hop * np.exp(-1.4 * distance_nm / hop_nm))


def _species_cost(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Foreign atoms do not change their element, and come and go rarely."""
    if bool(a) != bool(b):
        return _FORBIDDEN
    if not a:
        return 0.0
    common = sum(min(a.get(k, 0), b.get(k, 0)) for k in a)
    if common == 0:
        return _FORBIDDEN
    return 2.5 * (sum(a.values()) + sum(b.values()) - 2 * common)


def chemistry_costs(
    targets: Sequence[Target], foreign: Sequence[Mapping[str, int]], names: Sequence[Mapping[str, float]]
) -> NDArray[np.float64]:
    """(T, D) costs of pairing targets with detections for what they are, wherever they are."""
    table = np.zeros((len(targets), len(foreign)))
    for i, target in enumerate(targets):
        for j in range(len(foreign)):
            table[i, j] = _species_cost(target.foreign, foreign[j])
            table[i, j] += 0.8 * (1.0 - min(names[j].get(target.name, 0.0), 1.0))
            # The larger, and of equal ones the older, of two tracks that merge goes on.
            atoms = sum(target.foreign.values())
            table[i, j] += (0.0 if target.real else _DOUBTFUL) - 0.2 * min(atoms, 5)
            if atoms < sum(foreign[j].values()):
                table[i, j] += 0.4 * min(i, 5)
    return table


def recomposition(targets: Sequence[Target], foreign: Sequence[Mapping[str, int]]) -> NDArray[np.bool_]:
    """(T, D) whether a pair differs in its foreign atoms."""
    return np.array([[dict(t.foreign) != dict(f) for f in foreign] for t in targets], dtype=bool).reshape(
        len(targets), len(foreign)
    )


def link(
    targets: Sequence[Target],
    yx_nm: NDArray[np.float64],
    chemistry: NDArray[np.float64],
    foreign: Sequence[Mapping[str, int]],
    birth: NDArray[np.float64],
    settings: TrackSettings,
    *,
    hop_nm: float = 0.142,
    faint: NDArray[np.float64] | None = None,
    evidence: NDArray[np.float64] | None = None,
    names: Sequence[Mapping[str, float]] = (),
) -> Linked:
    """Cheapest assignment of detections to tracks.

    Parameters
    ----------
    targets : sequence of Target
    yx_nm : (D, 2) float64
        Positions of the detections in the specimen's frame [nm].
    chemistry : (T, D) float64
        From `chemistry_costs`.
    foreign : sequence of D mappings
        Foreign atoms of the detections by element.
    birth : (D,) float64
        Cost of a detection that belongs to no track.
    settings : TrackSettings
    hop_nm : float
        Length of the shortest hop [nm].
    faint : (D,) float64, optional
        Evidence of detections that count only where such a defect is expected [nats]; 0 for all others.
    evidence : (D,) float64, optional
        Log-likelihood ratio of what stands on one site to a host atom [nats]; NaN for other detections.
    names : sequence of D mappings
        Possible names of the detections, for `faint` ones.

    References
    ----------
    K. Jaqaman et al., Nature Methods 5, 695 (2008): the augmented matrix that lets tracks end and begin.
    """
    count, found = len(targets), len(yx_nm)
    lose = np.array([_lose_cost(t) for t in targets])
    if count == 0 or found == 0:
        return Linked((), float(lose.sum() + birth.sum()))
    where = np.array([t.yx_nm for t in targets])
    missed = np.array([[t.missed] for t in targets], dtype=float)
    distance = np.linalg.norm(where[:, None] - yx_nm[None], axis=-1)
    heavy = np.array([[t.heavy] for t in targets])
    cost = position_cost(
        distance, sigma_nm=settings.position_sigma_nm, missed=missed, hop_nm=hop_nm, heavy=heavy
    )
    # An atom more or less moves the centre: such a step says nothing about rest.
    cost = np.where(recomposition(targets, foreign), distance / 0.2, cost) + chemistry
    if faint is not None and faint.any():
        # Without the defect the site would be an atom as faint, or as bright, as that; with it, it was overlooked.
        real = np.array([[t.real] for t in targets])
        # Among many sites some are faint by chance: one that is so slightly, or seen by a track that may be none,
        # counts only where the defect was.
        weak = ((faint < FIRM)[None] | ~real) & (distance > _REST_NM) | ((faint < FIRM)[None] & ~real)
        away = np.array([[t.away] for t in targets])
        weak |= away & ((faint < FIRM)[None] | (distance > _REST_NM))
        fits = np.array([[t.name in n for n in names] for t in targets]) & ~weak
        cost = np.where(faint > 0, np.where(fits, cost - faint + _OVERLOOKED, _FORBIDDEN), cost)
        birth = np.where(faint > 0, 0.0, birth)
    if evidence is not None:
        # The same odds hold for those that the frame shows by itself: noise shows one now and then, too.
        sure = np.isfinite(evidence) & ~(faint > 0 if faint is not None else False)
        cost = np.where(sure, cost - evidence, cost)
        birth = np.where(sure, 0.0, birth)
    limit = np.array([[min(settings.search_range_nm, 0.12) if t.away else settings.search_range_nm] for t in targets])
    # What one frame shows of a point defect may be noise, and such noise at two places is no defect that moved.
    doubtful = np.array([[not t.real and (t.name == "SV" or "_" in t.name)] for t in targets])
    cost[(distance > limit) | (doubtful & (distance > _REST_NM))] = _FORBIDDEN
    table = np.full((count + found, count + found), _FORBIDDEN)
    table[:count, :found] = np.minimum(cost, _FORBIDDEN)
    table[np.arange(count), found + np.arange(count)] = lose
    table[count + np.arange(found), np.arange(found)] = birth
    table[count:, found:] = 0.0
    rows, columns = linear_sum_assignment(table)
    pairs = tuple((int(r), int(c)) for r, c in zip(rows, columns) if r < count and c < found)
    total = float(table[rows, columns].sum())
    return Linked(pairs, total - _explained(targets, foreign, pairs, distance, lose, birth, settings))


def _explained(
    targets: Sequence[Target],
    foreign: Sequence[Mapping[str, int]],
    pairs: Sequence[tuple[int, int]],
    distance: NDArray[np.float64],
    lose: NDArray[np.float64],
    birth: NDArray[np.float64],
    settings: TrackSettings,
) -> float:
    """What merges and splits save: atoms that vanish into, or come out of, a cluster are neither lost nor born."""
    saved = 0.0
    lost = set(range(len(targets))) - {i for i, _ in pairs}
    new = set(range(len(foreign))) - {j for _, j in pairs}
    for i, j in pairs:
        more = sum(foreign[j].values()) - sum(targets[i].foreign.values())
        if more > 0:
            near = [k for k in lost if sum(targets[k].foreign.values()) == more and not targets[k].away]
            near = [k for k in near if distance[k, j] < settings.merge_range_nm]
            if near:
                lost -= {near[0]}
                saved += max(float(lose[near[0]]) - 0.5, 0.0)
        elif more < 0:
            near = [k for k in new if sum(foreign[k].values()) == -more]
            near = [k for k in near if distance[i, k] < settings.merge_range_nm]
            if near:
                new -= {near[0]}
                saved += max(float(birth[near[0]]) - 0.5, 0.0)
    return saved


def _lose_cost(target: Target) -> float:
    """Cost of not seeing a track in this frame: small where it has been missing or cannot be seen."""
    if target.away or not target.visible:
        return 0.5
    if not target.real:
        return 1.5
    return 5.0 if target.missed == 0 else 2.0


def birth_costs(border_nm: Sequence[float], settings: TrackSettings) -> NDArray[np.float64]:
    """Cost of a new track for detections at given distances from the border [nm]."""
    near = np.asarray(border_nm, dtype=float) < settings.border_nm
    return np.where(near, 3.0, 6.0)
