"""What steering decides from and about: situations, moves, limits, and a rule that needs no programming."""

from __future__ import annotations

import fnmatch
import typing
from dataclasses import dataclass

import numpy

from .scanning import Geometry

if typing.TYPE_CHECKING:
    from stemdl_core.analysis import FrameAnalysis

    from . import live

ACTIONS = ("centre", "zoom", "probe")
#: Electrons per microsecond in one picoampere.
_E_PER_US_PA = 6.2415
#: A defect is taken for the one that was chosen within this distance of where it was [nm]: a bond and the drift.
_SAME_NM = 0.35


@dataclass(frozen=True)
class Found:
    """A defect in the scan's own coordinates.

    Parameters
    ----------
    name : str
    yx_nm : (float, float)
        Position (y, x) in the coordinates of ``center_nm`` [nm].
    off_centre_nm : float
        Distance from the middle of the image [nm].
    """

    name: str
    yx_nm: tuple[float, float]
    off_centre_nm: float

    @property
    def where(self) -> str:
        """Position for the log."""
        return f"y {self.yx_nm[0]:+.2f}, x {self.yx_nm[1]:+.2f} nm"


@dataclass(frozen=True)
class Situation:
    """What a decision is made from: one frame, where it was scanned, what was found, and the dose it gave."""

    number: int
    geometry: Geometry
    defects: tuple[Found, ...]
    analysis: FrameAnalysis
    dose_e_per_nm2: float


@dataclass(frozen=True)
class Move:
    """What to do.

    Parameters
    ----------
    action : {'centre', 'zoom', 'probe'}
        Centre the scan there; scan a small area around it; or place the probe there once the scan is idle.
    yx_nm : (float, float)
        Position (y, x) in the scan's coordinates [nm].
    reason : str
        For the log.
    size_nm : float
        Side of the area, for 'zoom' [nm].
    """

    action: str
    yx_nm: tuple[float, float]
    reason: str = ""
    size_nm: float = 1.0


@dataclass(frozen=True)
class Limits:
    """What is never exceeded while armed.

    Parameters
    ----------
    range_nm : float
        Distance of the scan's centre from where it was when armed [nm].
    step_nm : float
        Longest single move [nm].
    dose_e_per_nm2 : float
        Electrons per area on one chosen defect [1/nm^2]; then it disarms itself.
    beam_pa : float
        Beam current from which the dose is reckoned [pA].
    """

    range_nm: float = 5.0
    step_nm: float = 3.0
    dose_e_per_nm2: float = 1e10
    beam_pa: float = 100.0


class Rule:
    """When a defect whose name fits a pattern appears: centre on it and follow it, zoom in, or place the probe.

    Parameters
    ----------
    pattern : str
        Name, with ``*`` for anything: ``Si-C3``, ``Si*``, ``V*``.
    action : {'centre', 'zoom', 'probe'}
    size_nm : float
        Side of the sub-scan of 'zoom' [nm].
    dead_nm : float
        Nearer than this to the middle, nothing is moved [nm].
    patience : int
        Frames without the chosen defect after which another one may be chosen.
    """

    def __init__(
        self,
        pattern: str = "Si*",
        action: str = "centre",
        *,
        size_nm: float = 1.0,
        dead_nm: float = 0.02,
        patience: int = 8,
    ) -> None:
        self.pattern, self.action, self.size_nm = pattern, action, size_nm
        self.dead_nm, self.patience = dead_nm, patience
        #: The chosen defect as last seen, and its velocity (y, x) [nm a frame].
        self.chosen: Found | None = None
        self.__velocity = numpy.zeros(2)
        self.__seen_at = self.__missing = 0

    def __call__(self, situation: Situation) -> Move | None:
        """Decide about one frame."""
        fitting = [d for d in situation.defects if fnmatch.fnmatchcase(d.name, self.pattern)]
        target = self.__same(fitting, situation.number)
        if target is None:
            self.__missing += 1
            if self.chosen is not None and self.__missing <= self.patience:
                return None
            if not fitting:
                self.chosen = None
                return None
            # The one nearest to the middle: the move is the shortest.
            target, self.chosen = min(fitting, key=lambda d: d.off_centre_nm), None
            self.__velocity = numpy.zeros(2)
        if self.chosen is not None:
            steps = max(situation.number - self.__seen_at, 1)
            step = numpy.subtract(target.yx_nm, self.chosen.yx_nm) / steps
            # Slow: a hop is no velocity.
            if numpy.hypot(*step) < 0.1:
                self.__velocity = 0.8 * self.__velocity + 0.2 * step
        self.chosen, self.__seen_at, self.__missing = target, situation.number, 0
        if target.off_centre_nm < self.dead_nm and self.action == "centre":
            return None
        # Where it will be when the next frame is scanned.
        ahead = numpy.add(target.yx_nm, self.__velocity)
        return Move(self.action, (float(ahead[0]), float(ahead[1])), f"{target.name} at {target.where}", self.size_nm)

    def __same(self, fitting: list[Found], number: int) -> Found | None:
        if self.chosen is None or not fitting:
            return None
        expected = numpy.add(self.chosen.yx_nm, self.__velocity * (number - self.__seen_at))
        distance, nearest = min(
            ((float(numpy.hypot(*numpy.subtract(d.yx_nm, expected))), d) for d in fitting), key=lambda p: p[0]
        )
        return nearest if distance <= _SAME_NM else None


def situation_of(frame: live.LiveFrame, analysis: FrameAnalysis, beam_pa: float) -> Situation:
    """A frame's defects in the scan's coordinates, and its dose."""
    geometry = Geometry.of(frame.xdata, analysis.pixel_size.nm)
    middle = (numpy.asarray(analysis.shape, dtype=float) - 1) / 2
    found = []
    for defect in analysis.defects:
        center = foreign_center(analysis, defect.site_ids, defect.center_px)
        y, x = geometry.position_nm(center)
        off = float(numpy.hypot(*(center - middle))) * analysis.pixel_size.nm
        found.append(Found(defect.name, (float(y), float(x)), off))
    metadata = frame.xdata.metadata
    time_us = metadata.get("hardware_source", {}).get("pixel_time_us", metadata.get("scan", {}).get("pixel_time_us", 0))
    dose = beam_pa * _E_PER_US_PA * float(time_us or 0.0) / (1e0 * analysis.pixel_size.nm**2)
    return Situation(frame.number, geometry, tuple(found), analysis, dose)


def foreign_center(analysis: FrameAnalysis, ids: tuple[int, ...], center_px: tuple[float, float]) -> numpy.ndarray:
    """Middle of the foreign atoms of a defect (y, x) [px]; its own centre where it has none."""
    from stemdl_core.materials import MATERIALS

    material = MATERIALS.get(analysis.material)
    host = material.species if material else ()
    foreign = [i for i in ids if str(analysis.sites.species[i]) not in host]
    if foreign:
        return analysis.sites.yx_px[foreign].mean(axis=0)
    return numpy.asarray(center_px, dtype=float)
