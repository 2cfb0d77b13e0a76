"""Hidden states behind noisy readings, decided as the frames arrive.

A state persists and rarely changes; a reading is right most of the time. The most probable sequence of states
(Viterbi) then ignores a wrong reading but keeps a short real change whose evidence outweighs two changes. The
decision about a frame is final as soon as every surviving sequence agrees on it, so the result is that of the
whole movie while memory stays constant.

References
----------
G. D. Forney, The Viterbi algorithm, Proc. IEEE 61, 268 (1973).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Other(enum.Enum):
    """Any state that was never named: a state that is named later may have been there all along."""

    STATE = 0


_OTHER = _Other.STATE


@dataclass(frozen=True)
class Decided:
    """State of one frame; `margin` is how much better its reading fits it than the next best state [nats]."""

    frame: int
    state: Hashable
    evidence: Mapping[Any, float]


class OnlineViterbi:
    """Viterbi decoding with one cost for every change of state.

    Parameters
    ----------
    change_cost : float
        Negative logarithm of the probability of a change to one other state per frame [nats].
    max_lag : int
        Frames after which a decision is made even if sequences disagree.
    extra_cost : callable, optional
        ``extra_cost(a, b)`` is added to the cost of a change from state a to state b [nats].
    """

    def __init__(
        self,
        *,
        change_cost: float,
        max_lag: int = 48,
        extra_cost: Callable[[Hashable, Hashable], float] | None = None,
    ) -> None:
        self.change_cost = change_cost
        self._extra = extra_cost
        self.max_lag = max_lag
        self._score: dict[Hashable, float] = {}
        self._pending: deque[tuple[int, dict[Hashable, Hashable], dict[Hashable, float]]] = deque()

    @property
    def states(self) -> tuple:
        """States that are still possible."""
        return tuple(s for s in self._score if s is not _OTHER)

    @property
    def best(self) -> Hashable | None:
        """The most probable state now."""
        named = self.states
        return max(named, key=self._score.__getitem__) if named else None

    @property
    def decided_before(self) -> int | None:
        """Number of the first frame that is not decided; None when all are."""
        return self._pending[0][0] if self._pending else None

    def push(self, frame: int, evidence: Mapping[Any, float], *, floor: float) -> list[Decided]:
        """Add a frame and return the frames that this decided.

        Parameters
        ----------
        frame : int
        evidence : mapping of state to float
            Log-likelihood of the reading in each state.
        floor : float
            Log-likelihood in states that are not named.
        """
        states = {*self._score, *evidence, _OTHER}
        fits: dict[Hashable, float] = {s: evidence.get(s, floor) for s in states}
        back: dict[Hashable, Hashable] = {}
        if not self._score:
            score = dict(fits)
        else:
            score = {}
            for state in states:
                best, value = state, self._score.get(state, -np.inf)
                if state not in self._score:
                    best, value = _OTHER, self._score.get(_OTHER, -np.inf)
                for other, reached in self._score.items():
                    if other == state:
                        continue
                    changed = reached - self.change_cost
                    changed -= self._extra(other, state) if self._extra is not None else 0.0
                    if changed > value:
                        best, value = other, changed
                back[state] = best
                score[state] = fits[state] + value
        top = max(score.values())
        # States that could not win even by later evidence in their favour for many frames are dropped.
        self._score = {s: v - top for s, v in score.items() if v - top > -60.0}
        self._pending.append((frame, {s: back[s] for s in self._score if s in back}, fits))
        fits.pop(_OTHER)
        return self._release()

    def _release(self) -> list[Decided]:
        """Decide the frames about which all surviving sequences agree."""
        alive = set(self._score)
        agreed = -1
        for position in range(len(self._pending) - 1, -1, -1):
            if len(alive) == 1:
                agreed = position
                break
            alive = {self._pending[position][1].get(s, s) for s in alive} if position else alive
        if agreed < 0 and len(self._pending) <= self.max_lag:
            return []
        last = agreed if agreed >= 0 else len(self._pending) - self.max_lag - 1
        path = self._path()
        decided = [Decided(f, s, fits) for (f, _, fits), s in zip(list(self._pending)[: last + 1], path[: last + 1])]
        for _ in range(last + 1):
            self._pending.popleft()
        if agreed < 0 and decided:
            # Sequences that contradict the forced decision are no longer possible.
            final, keep = decided[-1].state, {}
            for state, score in self._score.items():
                at = state
                for _, back, _ in reversed(self._pending):
                    at = back.get(at, at)
                if at == final:
                    keep[state] = score
            self._score = keep or self._score
        return decided

    def _path(self) -> list[Hashable]:
        state = name = self.best
        path: list[Hashable] = []
        for _, back, _ in reversed(self._pending):
            name = name if state is _OTHER else state
            path.append(name)
            state = back.get(state, state)
        return path[::-1]

    def outlook(self) -> list[Decided]:
        """The frames not yet decided, as they would be if the movie ended now."""
        return [Decided(f, s, fits) for (f, _, fits), s in zip(self._pending, self._path())]

    def flush(self) -> list[Decided]:
        """Decide all that is left: there are no more frames."""
        rest = self.outlook()
        self._pending.clear()
        return rest


class Places:
    """Resting values (positions, angles) that are discovered as they are visited.

    Parameters
    ----------
    sigma, apart : float
        Scatter of a reading about its place, and the distance from all places that makes a new one.
    period : float, optional
        For angles: readings are the same modulo this.
    keep : int
        Places remembered; the one unvisited for longest is forgotten.
    """

    def __init__(self, *, sigma: float, apart: float, period: float | None = None, keep: int = 10) -> None:
        self.sigma, self.apart, self.period, self.keep = sigma, apart, period, keep
        self.centers: dict[int, NDArray[np.float64]] = {}
        self._visits: dict[int, int] = {}
        self._next = 0

    def difference(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        """a - b, within half a period of zero."""
        step = np.asarray(a, dtype=float) - b
        return step if self.period is None else (step + self.period / 2) % self.period - self.period / 2

    def visit(self, value: NDArray[np.float64]) -> dict[int, float]:
        """Squared distances of a reading from every place in units of sigma, after learning from it."""
        value = np.atleast_1d(np.asarray(value, dtype=float))
        far = {k: float(np.linalg.norm(self.difference(value, c))) for k, c in self.centers.items()}
        nearest = min(far, key=far.__getitem__) if far else None
        if nearest is None or far[nearest] > self.apart:
            nearest = self._next
            self._next += 1
            self.centers[nearest], self._visits[nearest], far[nearest] = value, 0, 0.0
        self._visits[nearest] = visits = self._visits[nearest] + 1
        weight = max(1.0 / visits, 0.05)
        self.centers[nearest] = self.centers[nearest] + weight * self.difference(value, self.centers[nearest])
        self._visits[nearest] = self._visits.pop(nearest)  # the order of this dict is that of last visits
        return {k: (d / self.sigma) ** 2 for k, d in far.items()}

    def forget(self, in_use: set[int]) -> None:
        """Drop the places unvisited for longest, except those that undecided frames still refer to."""
        for key in list(self._visits):
            if len(self.centers) <= self.keep:
                return
            if key not in in_use:
                del self.centers[key], self._visits[key]
