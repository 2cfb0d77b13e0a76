"""The journal of a movie on disk: what an interrupted run had analysed is not analysed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import Bonds, Defect, DefectAngle, DefectBond, Defects, FrameAnalysis
from .calibration import PixelSize
from .errors import StemdlError
from .frames import FrameSequence
from .linking import TrackSettings
from .sites import Sites
from .writers import strict_json


class Journal:
    """Analyses of a movie on disk, a line each, of one run or of its continuation.

    Parameters
    ----------
    path : path
    identity : mapping
        What the analyses depend on (movie, model, settings): a journal of anything else is started anew.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        head = (strict_json({"journal": 1, "identity": _digest(identity)}) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._start, end, self.count = len(head), 0, 0
        if self.path.is_file():
            with self.path.open("rb") as file:
                if file.readline() == head:
                    end = len(head)
                    for line in file:
                        # The last line may be the one that was being written when the run was cut off.
                        if not _is_entry(line, self.count):
                            break
                        self.count += 1
                        end += len(line)
        self._file = self.path.open("r+b" if end else "wb")
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._file.write(head)
            self._file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """What earlier runs wrote, one frame at a time."""
        with self.path.open("rb") as file:
            file.seek(self._start)
            for _ in range(self.count):
                yield json.loads(file.readline())

    def add(self, line: str) -> None:
        """Write one frame's line to the disk."""
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal: its movie is done."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def unfinished(folder: str | os.PathLike[str]) -> Path:
    """Where the journal of a run that writes into `folder` is kept: hidden, beside it."""
    folder = Path(folder).absolute()
    return folder.parent / f".{folder.name}-unfinished" / "journal.jsonl"


@contextlib.contextmanager
def kept_when_interrupted(path: str | os.PathLike[str], identity: dict[str, Any]) -> Iterator[Journal | None]:
    """A journal that stays after an interruption, and goes away at the end or after an error.

    None where no file can be written beside the results: then a run cannot be continued.
    """
    try:
        journal = Journal(path, identity=identity)
    except OSError:
        yield None
        return
    try:
        yield journal
    except (KeyboardInterrupt, SystemExit, MemoryError):
        journal.close()
        raise
    except BaseException:
        journal.remove()
        raise
    journal.remove()


def _is_entry(line: bytes, number: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return json.loads(line).get("frame") == number
    except ValueError:
        return False


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def journal_entry(number: int, record: dict[str, Any], analysis: FrameAnalysis | None) -> str:
    """A frame's line of the journal: its record, and what tracking needs besides."""
    extra = [] if analysis is None else analysis.sites.intensity_sigma.tolist()
    return strict_json({"frame": number, "record": record, "intensity_sigma": extra})


def known_from(entry: dict[str, Any]) -> FrameAnalysis | str:
    """What a line of the journal says about its frame."""
    record = entry["record"]
    if "image" not in record:
        return str(record["fault"])
    analysis = analysis_from_dict(record)
    sigma = np.array([_nan(v) for v in entry["intensity_sigma"]])
    return replace(analysis, sites=analysis.sites.replace(intensity_sigma=sigma))


def analysis_from_dict(record: dict[str, Any]) -> FrameAnalysis:
    """A `FrameAnalysis` from the object that `FrameAnalysis.to_dict` made of it (masks are not kept).

    Raises
    ------
    StemdlError
        If the object is not of this kind.
    """
    try:
        return _analysis(record)
    except (KeyError, TypeError, ValueError) as error:
        raise StemdlError(f"not an analysis of schema 1: {error!r}") from None


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _analysis(record: dict[str, Any]) -> FrameAnalysis:
    image, sites, bonds = record["image"], record["sites"], record["bonds"]
    (a, b), (c, d) = image.get("distortion", ((1.0, 0.0), (0.0, 1.0)))
    pixel = PixelSize(
        float(image["pixel_size_nm"]),
        image["pixel_size_source"],
        image.get("nominal_pixel_size_nm"),
        ((float(a), float(b)), (float(c), float(d))),
    )  # type: ignore[arg-type]
    table = Sites.from_columns(
        y_px=[s["y_px"] for s in sites],
        x_px=[s["x_px"] for s in sites],
        species=np.array([s["species"] for s in sites], dtype="U4"),
        score=[s["score"] for s in sites],
        sigma_pm=[_nan(s["sigma_pm"]) for s in sites],
        intensity=[_nan(s.get("intensity")) for s in sites],
        intensity_sigma=[_nan(s.get("intensity_sigma")) for s in sites],
        edge=[s["edge"] for s in sites],
    )
    columns = [np.array([bond[k] for bond in bonds]) for k in ("a", "b", "length_pm")]
    defects = tuple(
        Defect(
            d["id"],
            d["name"],
            d["composition"],
            tuple(d["site_ids"]),
            tuple(d["center_px"]),
            d["missing_atoms"],
            tuple(DefectBond(b["a"], b["b"], b["length_pm"], _nan(b.get("sigma_pm"))) for b in d["bonds"]),
            tuple(DefectAngle(g["a"], g["at"], g["b"], g["deg"], _nan(g.get("sigma_deg"))) for g in d["angles"]),
            d.get("probability", 1.0),
            tuple((a["name"], a["probability"]) for a in d.get("alternatives", ())),
            {int(k): {int(n): p for n, p in v.items()} for k, v in d.get("coordination", {}).items()},
            _nan(d.get("misorientation_deg")),
        )
        for d in record["defects"]
    )
    return FrameAnalysis(
        record["model"],
        record["material"],
        tuple(image["shape"]),
        pixel,
        table,
        Bonds(columns[0], columns[1], columns[2], np.array([_nan(b["sigma_pm"]) for b in bonds])),
        Defects(defects),
        {int(k): int(v) for k, v in record["rings"].items()},
        record.get("frame", 0),
        record.get("time_s"),
        image.get("masked_fraction", 0.0),
        None,
        tuple(record.get("warnings", ())),
        {k: (v["fraction"], v["sigma"]) for k, v in record.get("alloy", {}).items()},
    )


def movie_identity(sequence: FrameSequence, *, settings: TrackSettings | None = None, **what: Any) -> dict[str, Any]:
    """What the analyses of a movie depend on, for `Journal`: the file, its calibration, settings, and `what` else."""
    source = Path(sequence.source)
    known = source.is_file()
    return {
        "source": str(source.resolve()) if known else sequence.source,
        "stamp": [source.stat().st_size, source.stat().st_mtime_ns] if known else None,
        "frames": len(sequence),
        "pixel_size": None if sequence.pixel_size is None else asdict(sequence.pixel_size),
        "frame_time_s": sequence.frame_time_s,
        "settings": asdict(settings or TrackSettings()),
        **what,
    }
