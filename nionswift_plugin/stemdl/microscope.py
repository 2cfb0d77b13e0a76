"""A simulated microscope with atoms: a sheet of graphene or MoSe2 that drifts and changes under the beam.

It is a scan device for Nion's own simulated instrument (usim), so that everything Swift can do with a scan
works with it: field of view, position, rotation, size, pixel time and sub-scans are honoured. The truth is
known for every frame.
"""

from __future__ import annotations

import gettext
import os
import time
import typing
from dataclasses import dataclass

import numpy

from .specimens import HOP_DOSE_E_PER_NM2 as HOP_DOSE_E_PER_NM2
from .specimens import SWITCH_DOSE_E_PER_NM2 as SWITCH_DOSE_E_PER_NM2
from .specimens import Dichalcogenide, Specimen

if typing.TYPE_CHECKING:
    from .specimens import Sample

_ = gettext.gettext

DEVICE_ID = "stemdl_scan_device"
#: What has been scanned is shown this often [s].
PIECE_S = 0.1
#: 100 pA in electrons per microsecond.
_BEAM_E_PER_US = 624.0
#: Electrons that one carbon atom scatters to the annular detector, per electron and nm^2 [nm^2].
_CARBON_NM2 = 2.5e-5
#: Environment variable that chooses the specimen of ``stemdl swift``.
SPECIMEN_VARIABLE = "STEMDL_SPECIMEN"


@dataclass(frozen=True)
class Truth:
    """What was in the field of view of one scan.

    Parameters
    ----------
    y_px, x_px : (N,) float64
        Positions in the scan's own pixels.
    species : (N,) str
        Chemical symbols.
    defects : tuple of (str, float, float)
        Name and position (y, x) [px] of every defect in view.
    """

    y_px: numpy.ndarray
    x_px: numpy.ndarray
    species: numpy.ndarray
    defects: tuple[tuple[str, float, float], ...] = ()


class Generator:
    """Turns scan parameters into images of a specimen, as the scan device of nion.device_kit asks for them.

    Parameters
    ----------
    specimen : Sample
        What lies under the beam.
    rng : numpy.random.Generator
        Source of the noise.
    """

    def __init__(self, specimen: Sample, rng: numpy.random.Generator) -> None:
        self.specimen = specimen
        #: The truth of the newest scan.
        self.truth: Truth | None = None
        self.__rng = rng

    def generate_scan_data(self, instrument: typing.Any, scan_frame_parameters: typing.Any) -> numpy.ndarray:
        """(H, W) float32 image of what a scan with these parameters sees."""
        from stemdl_core.simulate.degrade import Detector, expose
        from stemdl_core.simulate.imaging import Probe, Scan, column_intensity, render

        parameters = scan_frame_parameters
        height, width = (int(n) for n in parameters.size)
        step = float(parameters.fov_nm) / height
        turn = float(parameters.rotation_rad)
        center = numpy.array([float(v) for v in parameters.center_nm])
        rotation = numpy.array([[numpy.cos(turn), numpy.sin(turn)], [-numpy.sin(turn), numpy.cos(turn)]])

        def to_px(yx_nm: numpy.ndarray) -> numpy.ndarray:
            middle = (numpy.array([height, width]) - 1) / 2
            return (yx_nm - center) @ rotation / step + middle

        def inside(yx_nm: numpy.ndarray) -> numpy.ndarray:
            yx = to_px(yx_nm)
            return ((yx > -0.5) & (yx < (height - 0.5, width - 0.5))).all(axis=1)

        defects = [(name, *to_px(place[None])[0]) for name, place in self.specimen.defects()]
        yx_nm, species = self.specimen.atoms()
        dirt = self.specimen.dirt()
        px = to_px(numpy.concatenate([yx_nm, dirt]))
        species = numpy.concatenate([species, numpy.full(len(dirt), "C")])
        clean = numpy.arange(len(px)) < len(yx_nm)
        near = ((px > -1.0 / step) & (px < (height + 1.0 / step, width + 1.0 / step))).all(axis=1)
        px, species, clean = px[near], species[near], clean[near]
        number = {"C": 6, "Si": 14, "Se": 34, "Mo": 42, "W": 74}
        weight = column_intensity([number[s] for s in species.tolist()])
        density = render(
            px * step, weight, scan=Scan.regular((height, width), step, (0.0, 0.0)), probe=Probe()
        )
        dose = _BEAM_E_PER_US * float(parameters.pixel_time_us) / step**2
        detector = Detector(dose_e_per_atom=dose * _CARBON_NM2, background_e_per_px=0.5, gain=10.0)
        image = expose(density, pixel_nm=step, detector=detector, rng=self.__rng)
        seen = clean & ((px > -0.5) & (px < (height - 0.5, width - 0.5))).all(axis=1)
        in_view = tuple(
            (name, float(y), float(x)) for name, y, x in defects
            if -0.5 < y < height - 0.5 and -0.5 < x < width - 0.5
        )  # fmt: skip
        self.truth = Truth(px[seen, 0], px[seen, 1], species[seen], in_view)
        self.specimen.expose(dose, inside)
        return image


def scan_module(instrument: typing.Any, generator: Generator) -> typing.Any:
    """The scan device for an instrument of usim, with settings that show atoms."""
    from nion.device_kit import ScanDevice
    from nion.instrumentation import scan_base
    from nion.usim_device import ScanDevice as UsimScanDevice

    class Device(ScanDevice.Device):
        """Hands a frame on in pieces ten times a second, not two hundred.

        Swift updates its display for every piece, which on a small computer takes what the analysis needs.
        """

        def read_partial(self, frame_number: int | None, pixels_to_skip: int) -> typing.Any:
            frame = getattr(self, "_Device__frame", None)
            if frame is not None and frame.scan_data is not None:
                height, width = frame.scan_data[0].shape
                frame_s = height * width * frame.frame_parameters.pixel_time_us * 1e-6
                time.sleep(min(max(frame.start_time + frame_s - time.perf_counter(), 0.0), PIECE_S))
            return super().read_partial(frame_number, pixels_to_skip)

    class Module(scan_base.ScanModule):
        def __init__(self) -> None:
            self.stem_controller_id = instrument.instrument_id
            self.device = Device(
                DEVICE_ID,
                _("stemdl simulated microscope"),
                instrument,
                UsimScanDevice.ScanBoxSimulator(generator),
            )
            # Above usim's own scan (20): this is the one that is offered first.
            setattr(self.device, "priority", 30)  # noqa: B010
            modes = (
                scan_base.ScanSettingsMode(_("Fast"), "fast", _parameters(256, 1.0, 4.0)),
                scan_base.ScanSettingsMode(_("Slow"), "slow", _parameters(512, 1.0, 4.0)),
                scan_base.ScanSettingsMode(_("Record"), "record", _parameters(1024, 1.0, 8.0)),
            )
            self.settings = scan_base.ScanSettings(
                DEVICE_ID, modes, lambda d: ScanDevice.ScanFrameParameters(d), 0, 2
            )

    def _parameters(size: int, pixel_time_us: float, fov_nm: float) -> typing.Any:
        return ScanDevice.ScanFrameParameters(
            pixel_size=(size, size), pixel_time_us=pixel_time_us, fov_nm=fov_nm
        )

    return Module()


def specimen(name: str, rng: numpy.random.Generator, **options: typing.Any) -> Sample:
    """A specimen by name: 'graphene' (with silicon) or 'MoSe2' (with tungsten and vacancies)."""
    kinds = {"graphene": Specimen, "mose2": Dichalcogenide}
    if name.lower() not in kinds:
        raise ValueError(f"unknown specimen {name!r}: choose graphene or MoSe2")
    return typing.cast("Sample", kinds[name.lower()](rng=rng, **options))


def connect(seed: int = 0, name: str | None = None) -> Generator | None:
    """Add the simulated microscope to a running Swift; None where usim is not installed.

    Called before the first window opens, after the plug-ins have been loaded. The specimen is `name`, by
    default what the environment variable ``STEMDL_SPECIMEN`` says, otherwise graphene.
    """
    from nion.utils import Registry

    instrument = Registry.get_component("stem_controller")
    if instrument is None or getattr(instrument, "instrument_id", "") != "usim_stem_controller":
        return None
    rng = numpy.random.default_rng(seed)
    name = name or os.environ.get(SPECIMEN_VARIABLE) or "graphene"
    generator = Generator(specimen(name, rng, dirt=0.02), rng)
    Registry.register_component(scan_module(instrument, generator), {"scan_module"})
    return generator
