"""Changes between resting places (positions, angles) of one track, decided frame by frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .decode import Decided, OnlineViterbi, Places
from .evidence import Row

#: A move between places: first row, place before, place after, and a row that shows both.
Move = tuple[Row, int, int, Row | None]
#: Evidence of every place, and of any other [nats].
Weigh = Callable[[Mapping[int, NDArray[np.float64]]], tuple[dict[int, float], float]]


class Moves:
    """Changes between decided places; a single row half-way between two others is a mixed frame."""

    def __init__(self) -> None:
        self.current: int | None = None
        self.waiting: tuple[Row, int] | None = None

    def push(self, row: Row, place: int, between) -> list[Move]:  # type: ignore[no-untyped-def]
        """Moves (first row, from, to, mixed row) that are certain now."""
        if self.current is None:
            self.current = place
            return []
        if self.waiting is None:
            if place != self.current:
                self.waiting = (row, place)
            return []
        first, middle = self.waiting
        if place == middle:
            done: Move = (first, self.current, middle, None)
            self.current, self.waiting = middle, None
            return [done]
        if place != self.current and between(self.current, middle, place):
            done = (row, self.current, place, first)
            self.current, self.waiting = place, None
        else:
            done = (first, self.current, middle, None)
            self.current, self.waiting = middle, (row, place)
        return [done]

    def flush(self) -> list[Move]:
        """The move that no further row can contradict."""
        if self.waiting is None:
            return []
        (row, place), start = self.waiting, self.current
        self.current, self.waiting = place, None
        return [(row, start, place, None)]  # type: ignore[list-item]


class PlaceChain:
    """Hops (of positions) or rotations (of angles) within one composition of a track."""

    def __init__(self, *, places: Places, change_cost: float, span: float, longest: float) -> None:
        self.places, self.span, self.longest = places, span, longest
        self.chain = OnlineViterbi(change_cost=change_cost)
        self.moves = Moves()
        self.settled: NDArray[np.float64] | None = None
        self._rows: dict[int, Row] = {}
        self.recent: deque[Row] = deque(maxlen=64)
        #: Rows decided to be at another place than they were read at.
        self.elsewhere: list[tuple[Row, NDArray[np.float64]]] = []

    def push(
        self,
        row: Row,
        value: NDArray[np.float64],
        stray: float,
        weigh: Weigh | None = None,
        misread: bool = False,
    ) -> list[Move]:
        """Add a reading; `stray` is the probability that it means nothing.

        Where every place of a frame says by itself how likely the defect is there, `weigh` gives that for places,
        and for any other place [nats]; a reading of something else (`misread`) is then no place to be at.
        """
        known = weigh is not None and misread and self.places.centers
        squared = {} if known else self.places.visit(value)
        if weigh is not None:
            return self._push(row, *weigh(self.places.centers))
        dimensions = len(np.atleast_1d(value))
        # Density of a stray reading relative to the peak of the Gaussian.
        floor = float(np.log(stray) + dimensions * np.log(np.sqrt(2 * np.pi) * self.places.sigma / self.span))
        evidence = {k: float(np.logaddexp(np.log1p(-stray) - d / 2, floor)) for k, d in squared.items()}
        return self._push(row, evidence, floor)

    def _push(self, row: Row, evidence: dict[int, float], floor: float) -> list[Move]:
        self._rows[row.number] = row
        decided = self.chain.push(row.number, evidence, floor=floor)
        result = self._read(decided)
        in_use = set(self.chain.states) | {s for d in self.chain.outlook() for s in d.evidence}
        in_use |= {self.moves.current} if self.moves.current is not None else set()
        in_use |= {self.moves.waiting[1]} if self.moves.waiting is not None else set()
        self.places.forget(in_use)  # type: ignore[arg-type]
        return result

    def flush(self) -> list[Move]:
        """Moves that were still open."""
        return self._read(self.chain.flush()) + self.moves.flush()

    def _read(self, decided: list[Decided]) -> list[Move]:
        moves = []
        for item in decided:
            row = self._rows.pop(item.frame)
            center = self.places.centers[item.state]  # type: ignore[index]
            if self.settled is None:
                self.settled = center.copy()
            if self.places.period is None and float(np.linalg.norm(row.yx_nm - center)) > self.places.apart:
                self.elsewhere.append((row, center.copy()))
            moves += self.moves.push(row, item.state, self._between)  # type: ignore[arg-type]
        return moves

    def on_the_way(self, row: Row, start: NDArray[np.float64], end: NDArray[np.float64]) -> Row | None:
        """The reading at or just before `row` that is neither at one end of the move nor at the other."""
        away = max(0.25 * float(np.linalg.norm(end - start)), 1.8 * self.places.sigma)
        for r in self.recent:
            ends = (float(np.linalg.norm(r.yx_nm - e)) for e in (start, end))
            if row.frame - 1 <= r.frame <= row.frame and min(ends) > away:
                return r
        return None

    def _between(self, a: int, middle: int, b: int) -> bool:
        c = self.places.centers
        if not {a, middle, b} <= set(c):
            return False
        whole = self.places.difference(c[b], c[a])
        half = self.places.difference(c[middle], c[a])
        length = float(np.linalg.norm(whole))
        # Two hops in a row also pass near the middle, but of a longer way.
        return length < self.longest and float(np.linalg.norm(half - whole / 2)) < 0.25 * length
