"""Tables of a tracked movie: trajectories, drift, events and bad frames."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Kinds of event, as written to ``events.csv``.
EVENT_KINDS = ("switch", "hop", "rotation", "merge", "split", "birth", "death")
#: Columns of ``trajectories.csv``, in this order.
TRAJECTORY_COLUMNS = (
    "frame",
    "time_s",
    "track_id",
    "name",
    "y_px",
    "x_px",
    "y_nm",
    "x_nm",
    "orientation_deg",
)


def freeze(table: Any, dtypes: dict[str, Any]) -> None:
    """Make the columns of a frozen dataclass read-only arrays of the given dtypes and of equal length."""
    length = None
    for name, dtype in dtypes.items():
        column = np.array(getattr(table, name), dtype=dtype, ndmin=1)
        length = len(column) if length is None else length
        if column.shape != (length,):
            raise ValueError(f"column {name} has shape {column.shape}, expected ({length},)")
        column.flags.writeable = False
        object.__setattr__(table, name, column)


@dataclass(frozen=True)
class Event:
    """One thing that happened to one or more defects.

    Parameters
    ----------
    frame : int
        First frame that shows the new state; for a death, the first frame without the defect.
    kind : str
        One of `EVENT_KINDS`.
    track_ids : tuple of int
        The track it happened to; for merge and split the continuing track first, then the others.
    before, after : str
        Defect names (``from`` and ``to`` in the table); of several tracks joined with `` + ``.
    time_s : float, optional
        Time of `frame` [s].
    angle_deg : float
        Rotation angle [deg], within (-fold/3, 2 fold/3] of the symmetry; NaN for other kinds.
    confidence : float
        Probability that the event is real, given how often readings are wrong.
    mid_frame : bool
        The change happened while `frame` was being scanned: its upper part shows the state before.
    where : str
        For births and deaths ``border`` (entered or left the view) or ``inside``; otherwise empty.
    step_nm : (float, float)
        Displacement (y, x) [nm] relative to the host lattice; NaN where it says nothing.
    lattice_step : str
        The same in units of the host lattice vectors, as ``1/3 -2/3``.
    sublattice : str
        ``A>B`` for a hop between sublattices; empty where not known.
    """

    frame: int
    kind: str
    track_ids: tuple[int, ...]
    before: str
    after: str
    time_s: float | None = None
    angle_deg: float = float("nan")
    confidence: float = 1.0
    mid_frame: bool = False
    where: str = ""
    step_nm: tuple[float, float] = (float("nan"), float("nan"))
    lattice_step: str = ""
    sublattice: str = ""

    def __post_init__(self) -> None:
        if self.kind not in EVENT_KINDS:
            raise ValueError(f"kind of event must be one of {EVENT_KINDS}, not {self.kind!r}")


@dataclass(frozen=True)
class Events:
    """The events of a movie in order of their frames."""

    items: tuple[Event, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.items)

    def __getitem__(self, index: int) -> Event:
        return self.items[index]

    def of_kind(self, *kinds: str) -> Events:
        """The events of the named kinds."""
        return Events(tuple(e for e in self.items if e.kind in kinds))

    def to_dataframe(self) -> pd.DataFrame:
        """One row an event: the columns of ``events.csv``, the contract's seven first."""
        rows = self.items
        table = pd.DataFrame(
            {
                "frame": [e.frame for e in rows],
                "time_s": [float("nan") if e.time_s is None else e.time_s for e in rows],
                "kind": [e.kind for e in rows],
                "track_ids": [" ".join(map(str, e.track_ids)) for e in rows],
                "from": [e.before for e in rows],
                "to": [e.after for e in rows],
                "angle_deg": [e.angle_deg for e in rows],
                "confidence": [e.confidence for e in rows],
                "mid_frame": [e.mid_frame for e in rows],
                "where": [e.where for e in rows],
                "step_y_nm": [e.step_nm[0] for e in rows],
                "step_x_nm": [e.step_nm[1] for e in rows],
                "lattice_step": [e.lattice_step for e in rows],
                "sublattice": [e.sublattice for e in rows],
            }
        )
        text = ("kind", "track_ids", "from", "to", "where", "lattice_step", "sublattice")
        dtypes = {name: "float64" for name in table} | dict.fromkeys(text, object)
        return table.astype(dtypes | {"frame": "int64", "mid_frame": "bool"})


@dataclass(frozen=True)
class Drift:
    """Where the specimen stood in each frame.

    Parameters
    ----------
    frame : (F,) int64
        Frame numbers, bad frames left out.
    y_nm, x_nm : (F,) float64
        Displacement of the specimen within the image since the first good frame [nm]: a point of the
        specimen appears at its position in the specimen's frame plus the drift.
    """

    frame: NDArray[np.int64]
    y_nm: NDArray[np.float64]
    x_nm: NDArray[np.float64]

    def __post_init__(self) -> None:
        freeze(self, {"frame": "i8", "y_nm": "f8", "x_nm": "f8"})

    @classmethod
    def empty(cls) -> Drift:
        """No frames."""
        return cls(*(np.array([]) for _ in range(3)))

    def __len__(self) -> int:
        return len(self.frame)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a frame."""
        return pd.DataFrame({f.name: getattr(self, f.name) for f in fields(self)})


_DTYPES: dict[str, Any] = {
    "frame": "i8",
    "time_s": "f8",
    "track_id": "i8",
    "name": object,
    "y_px": "f8",
    "x_px": "f8",
    "y_nm": "f8",
    "x_nm": "f8",
    "orientation_deg": "f8",
    "seen_as": object,
    "probability": "f8",
    "deviation_deg": "f8",
}
_PANDAS = {"i8": "int64", "f8": "float64"}


@dataclass(frozen=True)
class Tracks:
    """Defects followed through a movie: one row a defect and frame, ordered by frame and track.

    Parameters
    ----------
    frame, time_s, track_id : (R,) int64, float64, int64
        Frame number, its time [s] (NaN: not known), number of the track.
    name : (R,) str
        Type of the defect, decided from all frames: a single wrong reading does not change it.
    y_px, x_px : (R,) float64
        Position in the image [px]: mean of the foreign atoms, or the centre of a defect without any.
    y_nm, x_nm : (R,) float64
        Position relative to the host lattice [nm], drift removed.
    orientation_deg : (R,) float64
        Direction from +x (columns) towards +y (rows, downwards) [deg], modulo the symmetry of the defect
        (120 for three-fold, 90 for four-fold, 180 for a pair); NaN where the defect has none.
    seen_as, probability, deviation_deg : (R,)
        Name the single frame gave and its probability; largest deviation of a triangle of foreign atoms
        from 60 degrees [deg]. Not part of ``trajectories.csv``.
    drift : Drift
    events : Events
    faults : tuple of (int, str)
        Frames that were not used, and why.
    lattice : (2, 2) float64, optional
        Host lattice vectors, rows (y, x) [nm]; None when no lattice was seen.
    frames : int
        Number of frames seen, bad ones included.
    """

    frame: NDArray[np.int64]
    time_s: NDArray[np.float64]
    track_id: NDArray[np.int64]
    name: NDArray[Any]
    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]
    y_nm: NDArray[np.float64]
    x_nm: NDArray[np.float64]
    orientation_deg: NDArray[np.float64]
    seen_as: NDArray[Any]
    probability: NDArray[np.float64]
    deviation_deg: NDArray[np.float64]
    drift: Drift = field(default_factory=Drift.empty)
    events: Events = field(default_factory=Events)
    faults: tuple[tuple[int, str], ...] = ()
    lattice: NDArray[np.float64] | None = None
    frames: int = 0

    def __post_init__(self) -> None:
        freeze(self, _DTYPES)

    @classmethod
    def from_rows(cls, rows: dict[str, list[Any]], **tables: Any) -> Tracks:
        """Tracks from columns in any order of rows."""
        order = np.lexsort((rows["track_id"], rows["frame"])) if rows["frame"] else np.array([], dtype=int)
        columns = {k: np.array(rows[k], dtype=d)[order] for k, d in _DTYPES.items()}
        return cls(**columns, **tables)

    @classmethod
    def empty(cls) -> Tracks:
        """No tracks, with the same columns and dtypes."""
        return cls.from_rows({name: [] for name in _DTYPES})

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(K,) numbers of the tracks, ascending."""
        return np.unique(self.track_id)

    @property
    def yx_nm(self) -> NDArray[np.float64]:
        """(R, 2) positions (y, x) relative to the host lattice [nm]."""
        return np.stack([self.y_nm, self.x_nm], axis=1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a defect and frame: the columns of ``trajectories.csv``."""
        return self._frame(TRAJECTORY_COLUMNS)

    def details(self) -> pd.DataFrame:
        """`to_dataframe` with the single-frame readings and triangle deviations besides."""
        return self._frame(tuple(_DTYPES))

    def _frame(self, names: tuple[str, ...]) -> pd.DataFrame:
        # Strings stay Python objects in a table with rows as in one without: pandas would choose by content.
        return pd.DataFrame(
            {n: pd.Series(getattr(self, n), dtype=_PANDAS.get(_DTYPES[n], _DTYPES[n])) for n in names}
        )
