"""What the tests of the Nion Swift plugin share: a stand-in analysis, and a Swift without windows."""

from __future__ import annotations

import contextlib
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stemdl_core.analysis import Bonds, Defect, DefectBond, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.frames import Frame
from stemdl_core.sites import Sites

#: Where the stand-in finds its defects, by the brightness of the pixel there.
BRIGHT = 200.0


def stand_in(frame: Frame, **_: Any) -> FrameAnalysis:
    """An "analysis" whose answer is known: each pixel above `BRIGHT` is a silicon with three carbons."""
    pixel_size = frame.pixel_size or PixelSize(0.02, "lattice")
    species, positions, bonds, defects = [], [], [], []
    reach = 0.16 / pixel_size.nm
    for k, (y, x) in enumerate(np.argwhere(frame.image > BRIGHT)):
        first = len(species)
        species += ["Si", "C", "C", "C"]
        positions += [
            (y, x),
            (y - reach, x),
            (y + reach / 2, x - 0.87 * reach),
            (y + reach / 2, x + 0.87 * reach),
        ]
        ends = [(first, first + i) for i in (1, 2, 3)]
        bonds += ends
        defects.append(
            Defect(
                k,
                "Si-C3",
                {"Si": 1, "C": 3},
                tuple(range(first, first + 4)),
                (float(y), float(x)),
                bonds=tuple(DefectBond(a, b, 160.0) for a, b in ends),
            )
        )
    yx = np.array(positions, dtype=float).reshape(-1, 2)
    ends = np.array(bonds, dtype=int).reshape(-1, 2)
    return FrameAnalysis(
        "stand-in",
        "graphene",
        frame.shape,
        pixel_size,
        Sites.from_columns(y_px=yx[:, 0], x_px=yx[:, 1], species=np.array(species, dtype="U4")),
        Bonds(ends[:, 0], ends[:, 1], np.full(len(ends), 160.0), np.full(len(ends), np.nan)),
        Defects(tuple(defects)),
        {6: 12},
        frame=frame.index,
    )


def image_with(*bright: tuple[int, int], size: int = 64) -> np.ndarray:
    """A noisy (size, size) float32 image with bright pixels."""
    image = np.random.default_rng(7).normal(100, 5, (size, size)).astype(np.float32)
    for y, x in bright:
        image[y, x] = 255
    return image


def wait_for(condition: Callable[[], object], document_controller: Any, *, seconds: float = 120.0) -> None:
    """Let Swift's event loop run until something is true."""
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            raise AssertionError("Swift did not get there in time")
        document_controller.periodic()
        time.sleep(0.005)


def application(*, analyze: Callable[..., Any] | None = None, small_pictures: bool = True,
                apart: bool = False) -> Any:
    """A fixture for every test of a file: Swift's test application with the plug-in's parts, in an empty folder.

    At the end all that runs is stopped, and Swift looks for leaks.

    Parameters
    ----------
    analyze : callable, optional
        Stands in for the analysis.
    small_pictures : bool
        Draw few pixels, where what is drawn is tested elsewhere.
    apart : bool
        Live frames are analysed in a process of its own, as delivered; otherwise in this one, where what
        stands in for the analysis is.
    """
    from nion.swift import Facade

    Facade.initialize()

    @pytest.fixture(autouse=True)
    def program(tmp_path: Any) -> Iterator[None]:
        from nion.swift.test import TestContext

        from nionswift_plugin.stemdl import (
            actions,
            computations,
            engine,
            library_work,
            live,
            overlay,
            session,
            steering,
            tracking,
        )

        with pytest.MonkeyPatch.context() as patch:
            # Nion's test instrument deletes ./test_data.
            patch.chdir(tmp_path)
            if not apart:
                patch.setenv("STEMDL_IN_PROCESS", "1")
            if analyze is not None:
                patch.setattr(engine, "analyze", analyze)
            patch.setattr(live, "_TABLE_S", 0.0)  # a test reads the tables at once
            if small_pictures:
                patch.setattr(overlay, "TARGET_PX", 128)
            engine.recent.clear()
            computations.register()
            actions.register()
            TestContext.begin_leaks()
            setup = TestContext.TestSetup(set_global=True)
            try:
                yield
            finally:
                for part in (steering, session, live, tracking, library_work):
                    part.stop_all()
            del setup
            TestContext.end_leaks(unittest.TestCase())

    return program


@contextlib.contextmanager
def simulated_instrument(sample: Any, **parameters: Any) -> Iterator[Any]:
    """A window beside Nion's simulated instrument, with a microscope with atoms under its scan.

    Parameters
    ----------
    sample
        What makes the images, such as `microscope.Generator`.
    **parameters
        Of the scan's frames.

    Yields
    ------
    AcquisitionTestContext
        With `document_controller` and `scan_hardware_source`; the scan does not run.
    """
    from nion.instrumentation.test import AcquisitionTestContext
    from nion.usim_device import DeviceConfiguration

    from nionswift_plugin.stemdl import microscope

    configuration = DeviceConfiguration.AcquisitionContextConfiguration()
    configuration.scan_module = microscope.scan_module(configuration.instrument, sample)
    with AcquisitionTestContext.AcquisitionTestContext(configuration, is_app=True) as context:
        frame = context.scan_hardware_source.get_frame_parameters(0)
        for name, value in parameters.items():
            setattr(frame, name, value)
        context.scan_hardware_source.set_current_frame_parameters(frame)
        yield context


@contextlib.contextmanager
def swift() -> Iterator[Any]:
    """A document window of a Swift without screen."""
    from nion.swift.test import TestContext

    with TestContext.create_memory_context() as context:
        yield context.create_document_controller()


def annotation(document_model: Any) -> tuple[Any, Any, Any]:
    """The overlay, the table and the computation of the only annotation of a document."""
    (computation,) = [c for c in document_model.computations if c.processing_id == "stemdl.annotate"]
    return computation.get_output("overlay"), computation.get_output("table"), computation


def add_image(dc, data, *, units="nm", scale=0.02, descriptor=None, metadata=None, title="Graphene"):
    """A data item in the document, shown in a display panel and selected."""
    from nion.data import Calibration, DataAndMetadata
    from nion.swift.model import DataItem

    count = np.ndim(data) - (data.dtype == np.uint8 and data.shape[-1] == 3)
    calibrations = [Calibration.Calibration(0.0, scale, units) for _ in range(count)]
    xdata = DataAndMetadata.new_data_and_metadata(
        data, dimensional_calibrations=calibrations, data_descriptor=descriptor, metadata=metadata
    )
    item = DataItem.new_data_item(xdata)
    item.title = title
    dc.document_model.append_data_item(item)
    select(dc, item)
    return item


def select(dc, item):
    """Show an item in the first display panel and select it."""
    display_item = dc.document_model.get_display_item_for_data_item(item)
    panel = dc.workspace_controller.display_panels[0]
    panel.set_display_panel_display_item(display_item)
    dc.selected_display_panel = panel
    return display_item


def press(dc):
    """The one action."""
    dc.perform_action("stemdl.annotate")


def done(dc):
    """Whether the table of the only annotation has a result."""
    return lambda: not annotation(dc.document_model)[1].metadata["stemdl"].get("pending")


def lattice_stand_in(frame: Frame, **_: Any) -> FrameAnalysis:
    """As `stand_in`, in a perfect sheet of graphene around the middle, which tracking needs for its drift."""
    pixel_size = frame.pixel_size or PixelSize(0.02, "lattice")
    side = 0.246 / pixel_size.nm
    first, second = np.array([0.0, side]), np.array([side * 3**0.5 / 2, side / 2])
    count = int(max(frame.shape) / side) + 2
    i, j = (g.ravel()[:, None] for g in np.meshgrid(*[np.arange(-count, count + 1)] * 2))
    cell = i * first + j * second + np.array(frame.shape) / 2
    yx = np.concatenate([cell, cell + (first + second) / 3])
    yx = yx[((yx >= 0) & (yx <= np.array(frame.shape) - 1)).all(axis=1)]
    species = np.full(len(yx), "C", dtype="U4")
    distance = np.hypot(*(yx[:, None] - yx[None]).transpose(2, 0, 1))
    a, b = np.nonzero(np.triu((distance > 0) & (distance < 0.16 / pixel_size.nm)))
    defects = []
    for k, bright in enumerate(np.argwhere(frame.image > BRIGHT)):
        site = int(np.hypot(*(yx - bright).T).argmin())
        species[site] = "Si"
        near = [
            int(n) for n in np.flatnonzero((distance[site] > 0) & (distance[site] < 0.16 / pixel_size.nm))
        ]
        geometry = tuple(DefectBond(site, n, 1e3 * pixel_size.nm * distance[site, n], 5.0) for n in near)
        center = (float(yx[site, 0]), float(yx[site, 1]))
        defects.append(Defect(k, "Si-C3", {"Si": 1, "C": len(near)}, (site, *near), center, bonds=geometry))
    length = 1e3 * pixel_size.nm * distance[a, b]
    sites = Sites.from_columns(
        y_px=yx[:, 0], x_px=yx[:, 1], species=species, sigma_pm=np.full(len(yx), 5.0),
        edge=(np.minimum(yx, np.array(frame.shape) - 1 - yx) < side).any(axis=1),
    )  # fmt: skip
    return FrameAnalysis(
        "stand-in", "graphene", frame.shape, pixel_size, sites, Bonds(a, b, length, np.full(len(a), 5.0)),
        Defects(tuple(defects)), {6: 12}, frame=frame.index, time_s=frame.time_s,
    )  # fmt: skip


class FakeScan:
    """The part of a scan device that is listened to and steered."""

    def __init__(self) -> None:
        from nion.utils import Event, Geometry

        self.data_channel_updated_event = Event.Event()
        self.parameters = SimpleNamespace(
            center_nm=Geometry.FloatPoint(), fov_nm=2.0, rotation_rad=0.0, pixel_size=(64, 64), pixel_time_us=4.0
        )
        self.is_aborted = False
        self.subscan_enabled, self.subscan_region, self.probe_position = False, None, None
        #: Threads on which it was steered.
        self.threads: set[str] = set()

    def finish(self, image: np.ndarray, index: int, *, state: str = "complete", channel: str = "a",
               valid_rows: int | None = None) -> None:  # fmt: skip
        """End a frame, as the acquisition thread does."""
        from nion.data import Calibration, DataAndMetadata

        p = self.parameters
        metadata = {
            "hardware_source": {
                "frame_index": index, "valid_rows": valid_rows or len(image), "pixel_time_us": p.pixel_time_us
            },
            "scan": {
                "fov_nm": p.fov_nm, "rotation": p.rotation_rad, "center_y_nm": p.center_nm.y,
                "center_x_nm": p.center_nm.x,
            },
        }  # fmt: skip
        step = Calibration.Calibration(0.0, p.fov_nm / len(image), "nm")
        xdata = DataAndMetadata.new_data_and_metadata(
            image, metadata=metadata, dimensional_calibrations=[step, step]
        )
        args = SimpleNamespace(state=state, channel_id=channel)
        self.data_channel_updated_event.fire(args, xdata)

    def get_current_frame_parameters(self) -> SimpleNamespace:
        return SimpleNamespace(**vars(self.parameters))

    def set_current_frame_parameters(self, parameters: SimpleNamespace) -> None:
        from nion.utils import Geometry

        self.threads.add(threading.current_thread().name)
        parameters.center_nm = Geometry.FloatPoint.make(parameters.center_nm)
        self.parameters = SimpleNamespace(**vars(parameters))


def live_image(dc, size=64):
    """The image of a running scan."""
    item = add_image(dc, image_with((20, 30), size=size), title="Scan")
    item.category = "temporary"
    return item
