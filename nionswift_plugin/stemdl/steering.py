"""A first step to the self-driving microscope: what is found in the live scan may move the scan or the probe.

The hook is a function ``decide(situation) -> Move | None``, called once for each analysed frame; `Rule` is one
that needs no programming ("when a defect of type X appears, centre the scan on it"). Whatever it asks for is
carried out through Swift's own instrument API, on a thread of its own, inside `Limits`, and logged. Nothing is
moved unless a person has armed it, and no scan is ever started from here.

Examples
--------
In Swift's Python console, or in a plug-in of one's own, with the live annotation of a scan running::

    from nionswift_plugin.stemdl import live, steering

    def follow_the_trimer(situation):
        for defect in situation.defects:
            if defect.name == "Si3C6":
                return steering.Move("centre", defect.yx_nm, f"{defect.name} at {defect.where}")

    driver = steering.Steering(live.find(data_item), decide=follow_the_trimer)
    driver.arm()
"""

from __future__ import annotations

import gettext
import logging
import threading
import time
import typing
from collections import deque

import numpy
from nion.utils import Event

from . import live
from .rules import ACTIONS, Limits, Move, Rule, Situation, situation_of
from .scanning import to_image

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    from nion.swift.model import DataItem

    from stemdl_core.analysis import FrameAnalysis
    from stemdl_core.frames import Frame

_ = gettext.gettext

_MOST_LOG = 200


class Instrument:
    """The part of Swift's scan hardware source that is steered; never starts or stops a scan."""

    def __init__(self, hardware_source: typing.Any) -> None:
        self.__scan = hardware_source

    @property
    def center_nm(self) -> tuple[float, float]:
        """Centre of the scan (y, x) [nm]."""
        center = self.__scan.get_current_frame_parameters().center_nm
        return float(center.y), float(center.x)

    def centre(self, yx_nm: tuple[float, float]) -> None:
        """Let the scan's centre be there from the next frame on."""
        parameters = self.__scan.get_current_frame_parameters()
        parameters.center_nm = tuple(float(v) for v in yx_nm)
        self.__scan.set_current_frame_parameters(parameters)

    def zoom(self, yx_nm: tuple[float, float], size_nm: float) -> None:
        """Scan only an area around a place, as the sub-scan of the scan's panel does."""
        from nion.utils import Geometry as Shapes

        y, x = self.__fraction(yx_nm)
        side = min(size_nm / float(self.__scan.get_current_frame_parameters().fov_nm), 1.0)
        top, left = (min(max(v - side / 2, 0.0), 1.0 - side) for v in (y, x))
        self.__scan.subscan_region = Shapes.FloatRect.from_tlhw(top, left, side, side)
        self.__scan.subscan_enabled = True

    def probe(self, yx_nm: tuple[float, float]) -> None:
        """Where the probe rests when no scan runs."""
        from nion.utils import Geometry as Shapes

        y, x = self.__fraction(yx_nm)
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError(_("the place lies outside of the scan"))
        self.__scan.probe_position = Shapes.FloatPoint(y=y, x=x)

    def __fraction(self, yx_nm: tuple[float, float]) -> tuple[float, float]:
        parameters = self.__scan.get_current_frame_parameters()
        center = (float(parameters.center_nm.y), float(parameters.center_nm.x))
        step = to_image(numpy.subtract(yx_nm, center), float(parameters.rotation_rad))
        y, x = 0.5 + step / float(parameters.fov_nm)
        return float(y), float(x)


class Steering:
    """Lets a rule move the scan of a live annotation, between `arm` and `disarm`.

    Parameters
    ----------
    annotation : LiveAnnotation
        Whose frames are decided on.
    decide : callable
        ``decide(situation) -> Move | None``, called on the thread of the analysis; by default `Rule()`.
    limits : Limits
    instrument : Instrument, optional
        By default that of the live image.
    """

    def __init__(
        self,
        annotation: live.LiveAnnotation,
        decide: Callable[[Situation], Move | None] | None = None,
        *,
        limits: Limits | None = None,
        instrument: Instrument | None = None,
    ) -> None:
        device = live.hardware_source_of(annotation.source)
        if instrument is None and device is None:
            raise ValueError("not a live image")
        self.annotation = annotation
        self.decide: Callable[[Situation], Move | None] = decide or Rule()
        self.limits = limits or Limits()
        self.log: deque[str] = deque(maxlen=_MOST_LOG)
        #: Fired on the main thread after each frame, and when it is armed or disarmed.
        self.changed_event = Event.Event()
        self.dose_e_per_nm2 = 0.0
        self.__instrument = instrument or Instrument(typing.cast(tuple, device)[0])
        self.__armed = self.__closed = False
        self.__home = (0.0, 0.0)
        self.__condition = threading.Condition()
        self.__next: Move | None = None
        self.__thread = threading.Thread(target=self.__work, name="stemdl-steering", daemon=True)
        self.__thread.start()
        annotation.attach(self)
        _all.append(self)

    @property
    def is_armed(self) -> bool:
        """Whether moves are carried out."""
        return self.__armed

    def arm(self) -> None:
        """From now on the scan may be moved, inside the limits, which count from where it is now."""
        if not self.__armed and not self.__closed:
            self.__home = self.__instrument.center_nm
            self.dose_e_per_nm2 = 0.0
            self.__armed = True
            self.__say(_("armed; the scan stays within {:g} nm").format(self.limits.range_nm))
            self.changed_event.fire()

    def disarm(self, why: str = "") -> None:
        """Nothing is moved any more."""
        if self.__armed:
            self.__armed = False
            self.__say(_("disarmed") + (f": {why}" if why else ""))

    def frame_analysed(self, frame: live.LiveFrame, image: Frame, analysis: FrameAnalysis) -> None:
        """Let the rule decide. On the thread of the analysis."""
        if not self.__armed:
            return
        situation = situation_of(frame, analysis, self.limits.beam_pa)
        try:
            move = self.decide(situation)
        except Exception as error:
            # A rule that fails must not go on moving a microscope.
            self.disarm(_("the rule failed: {}").format(error))
            return
        if getattr(self.decide, "chosen", move) is not None:
            self.dose_e_per_nm2 += situation.dose_e_per_nm2
        if self.dose_e_per_nm2 > self.limits.dose_e_per_nm2:
            self.disarm(_("the defect has had its dose of {:.3g} e/nm^2").format(self.limits.dose_e_per_nm2))
        elif move is not None:
            with self.__condition:
                self.__next = move  # the newest decision counts
                self.__condition.notify()

    def __work(self) -> None:
        while True:
            with self.__condition:
                self.__condition.wait_for(lambda: self.__closed or self.__next is not None)
                if self.__closed:
                    return
                move, self.__next = self.__next, None
            assert move is not None
            if not self.__armed:
                continue
            try:
                self.__carry_out(move)
            except Exception as error:
                self.disarm(str(error))

    def __carry_out(self, move: Move) -> None:
        if move.action not in ACTIONS:
            raise ValueError(_("unknown action {!r}: choose one of {}").format(move.action, ", ".join(ACTIONS)))
        away = float(numpy.hypot(*numpy.subtract(move.yx_nm, self.__home)))
        step = float(numpy.hypot(*numpy.subtract(move.yx_nm, self.__instrument.center_nm)))
        if not (away <= self.limits.range_nm):
            self.disarm(_("{:.2f} nm away would leave the range of {:g} nm").format(away, self.limits.range_nm))
            return
        if not (step <= self.limits.step_nm):
            self.disarm(_("a step of {:.2f} nm would exceed {:g} nm").format(step, self.limits.step_nm))
            return
        if move.action == "centre":
            self.__instrument.centre(move.yx_nm)
        elif move.action == "zoom":
            self.__instrument.zoom(move.yx_nm, move.size_nm)
        else:
            self.__instrument.probe(move.yx_nm)
        self.__say(f"{move.action} {move.yx_nm[0]:+.3f}, {move.yx_nm[1]:+.3f} nm: {move.reason}")
        if move.action != "centre":
            self.disarm(_("done"))

    def __say(self, text: str) -> None:
        self.log.append(f"{time.strftime('%H:%M:%S')}  {text}")
        logging.getLogger(__name__).info("steering: %s", text)

    def show(self) -> None:
        """Tell the panel. On the main thread."""
        self.changed_event.fire()

    def close(self) -> None:
        """End. On the main thread."""
        if self.__closed:
            return
        self.disarm(_("the live annotation has ended"))
        self.annotation.detach(self)
        with self.__condition:
            self.__closed = True
            self.__condition.notify_all()
        if self in _all:
            _all.remove(self)
        self.changed_event.fire()

    def join(self, timeout_s: float = 10.0) -> None:
        """Wait until the thread has ended."""
        self.__thread.join(timeout_s)


_all: list[Steering] = []


def find(data_item: DataItem.DataItem | None) -> Steering | None:
    """The steering of the live annotation that a data item belongs to."""
    annotation = live.find(data_item)
    return next((s for s in _all if s.annotation is annotation), None) if annotation else None


def stop_all() -> None:
    """End everything, when the plug-in is unloaded."""
    for one in list(_all):
        one.close()
        one.join()
