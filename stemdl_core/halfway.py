"""Changes that happened while a frame was scanned: its upper part shows the state before, its lower part the one after.

The frames before and after a change are its two pictures, moved to where the specimen stood in the frame in question.
Line by line that frame is compared with both; where one change on the way explains it far better than either picture
alone, the change happened there (the fourth frame of the paper's figure 8).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from .bridging import Shown
from .frames import Frame
from .trajectories import Event

#: Kinds of event that leave the defect in view before and after.
KINDS = ("switch", "hop", "rotation")
#: Frames averaged on either side of a change, at most and at least; from the defect to the window's sides [nm].
_SIDE_FRAMES, _LEAST_SIDE, _HALF_WINDOW_NM = 4, 2, 0.45
#: Frames after an event until which the next one, which ends its picture, may not have been decided.
PATIENCE = 9
#: How much better a change on the way has to be than none [nats]: lines on which it may have happened are many.
#: Less of it is enough where the atoms of that frame showed both states; with even less they were wrong.
_GAIN, _DENIED = 8.0, 3.0
#: Least part of what a frame gains that was changed in the middle of the defect.
_PART = 0.2
#: Width over which pictures are smoothed [nm], and where they differ clearly, in standard deviations.
_PROBE_NM, _CLEAR = 0.03, 3.5
#: Images kept, at most this many and this much memory [bytes], but at least the third.
_MOST_FRAMES, _MOST_BYTES, _LEAST_FRAMES = 32, 48e6, 14


@dataclass(frozen=True)
class _Kept:
    frame: int
    image: NDArray[np.float16]
    shown: Shown


class HalfWay:
    """Keeps the newest frames of a movie and tells which changes happened inside one.

    Memory is constant: a change that is decided too late for its frames to be there is not looked at.
    """

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque()

    def add(self, frame: Frame, shown: Shown) -> None:
        """Keep a good frame."""
        image = np.asarray(frame.image, dtype=np.float32)
        spread = float(image.std())
        # Dose and gain vary from frame to frame.
        # ... and half precision is finer than any noise.
        image = ((image - image.mean()) / (spread if spread > 0 else 1.0)).astype(np.float16)
        self._kept.append(_Kept(frame.index, image, shown))
        most = int(np.clip(_MOST_BYTES / max(image.nbytes, 1), _LEAST_FRAMES, _MOST_FRAMES))
        while len(self._kept) > most:
            self._kept.popleft()

    def judged(self, event: Event, place_nm: NDArray[np.float64], every: Sequence[Event]) -> Event:
        """An event, marked and put into the frame inside which it happened, where one shows that.

        Parameters
        ----------
        event : Event
        place_nm : (2,) float64
            Where it happened, in the specimen's frame [nm].
        every : sequence of Event
            All events: what happened before and after is no part of the two pictures.
        """
        mine = [e.frame for e in every if e is not event and set(e.track_ids) & set(event.track_ids)]
        before = max((f for f in mine if f <= event.frame), default=-1)
        after = min((f for f in mine if f > event.frame), default=None)
        # An event that is known to be half-way is in that frame's place already.
        first = event.frame if event.mid_frame else event.frame - 1
        gains = [
            (gain, kept)
            for kept in self._kept
            if first <= kept.frame <= first + 1 and kept.frame > before
            for gain in [self._gain(kept, place_nm, before, after)]
            if gain is not None
        ]
        if not gains:
            return event
        gain, kept = max(gains, key=lambda pair: pair[0])
        # What the atoms of the frame showed is another witness.
        if gain < (_DENIED if event.mid_frame else _GAIN):
            return replace(event, mid_frame=False)
        time_s = float(kept.shown.time_s)
        return replace(event, mid_frame=True, frame=kept.frame, time_s=None if np.isnan(time_s) else time_s)

    def __deepcopy__(self, memo: object) -> HalfWay:
        # Images are never changed: copies share them.
        other = HalfWay()
        other._kept.extend(self._kept)
        return other

    def _gain(self, now: _Kept, place: NDArray[np.float64], before: int, after: int | None) -> float | None:
        """How much better a change inside it explains a frame than none does [nats]; None where it cannot be told."""
        earlier = [k for k in self._kept if before <= k.frame < now.frame][-_SIDE_FRAMES:]
        later = [k for k in self._kept if k.frame > now.frame and (after is None or k.frame < after - 1)][:_SIDE_FRAMES]
        if min(len(earlier), len(later)) < _LEAST_SIDE:
            return None
        window = _window(now, place)
        if window is None:
            return None
        rows, columns = window
        picture = now.image[rows, columns].astype(np.float64)
        old, new = ([_moved(k, now, place, rows, columns) for k in side] for side in (earlier, later))
        width = _PROBE_NM * float(np.abs(np.diag(now.shown.px_per_nm)).mean())
        first, last = (gaussian_filter(np.mean(side, axis=0), width) for side in (old, new))
        middle, change = 0.5 * (first + last), last - first
        # Noise is that of the counts, more where it is bright: what frames of the same state differ by.
        off = [(p - t) ** 2 for side, t in ((old, first), (new, last)) for p in side]
        noise = np.maximum(gaussian_filter(np.mean(off, axis=0), 1.5 * width), 1e-6)
        # Where the two pictures do not differ a frame can say nothing, but noise.
        unsure = noise * (1 / len(old) + 1 / len(new)) / max(4 * np.pi * width**2, 1.0)
        change = np.where(np.abs(change) > _CLEAR * np.sqrt(unsure), change, 0.0)
        weight = change / noise

        def lines(frame: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(((frame - middle) * weight).sum(axis=1))

        # Lines displaced by jitter err with all their pixels: frames of one state tell how much.
        expected = float((change * weight).sum())
        if expected <= 0:
            return 0.0
        half = 0.5 * (change * weight).sum(axis=1)
        scatter = [float(((lines(p) - sign * half) ** 2).sum()) for side, sign in ((old, -1), (new, 1)) for p in side]
        trust = 1.0 / max(float(np.mean(scatter)) / expected, 1.0)
        line = trust * lines(picture)
        # In favour of the old state above, of the new one below.
        above = np.concatenate([[0.0], np.cumsum(-line)])
        below = np.concatenate([np.cumsum(line[::-1])[::-1], [0.0]])
        cut = int((above + below).argmax())
        gain = float(min(above[cut], below[cut]))
        # What pictures err in (shear, focus) grows with what they differ by; half of a frame shows half of that.
        return gain if gain > _PART * trust * expected / 4 else 0.0


def _window(kept: _Kept, place: NDArray[np.float64]) -> tuple[slice, slice] | None:
    """Rows and columns of a frame around a place of the specimen."""
    center = kept.shown.px(place)
    reach = _HALF_WINDOW_NM * np.abs(np.diag(kept.shown.px_per_nm))
    low = np.maximum(np.floor(center - reach), 0).astype(int)
    high = np.minimum(np.ceil(center + reach) + 1, kept.image.shape).astype(int)
    if (high - low < 6).any():
        return None
    return slice(low[0], high[0]), slice(low[1], high[1])


def _moved(kept: _Kept, to: _Kept, place: NDArray[np.float64], rows: slice, columns: slice) -> NDArray[np.float64]:
    """A frame as it would look with a place of the specimen where it is in another."""
    y, x = np.mgrid[rows, columns].astype(np.float64)
    shift = kept.shown.px(place) - to.shown.px(place)
    # Only what is needed is turned back into full precision.
    low = np.maximum([int(y[0, 0] + shift[0]) - 1, int(x[0, 0] + shift[1]) - 1], 0)
    part = kept.image[low[0] : low[0] + len(y) + 3, low[1] : low[1] + y.shape[1] + 3].astype(np.float32)
    if not part.size:
        return np.zeros(y.shape)
    shift = shift - low
    return np.asarray(map_coordinates(part, [y + shift[0], x + shift[1]], order=1, mode="nearest"))
