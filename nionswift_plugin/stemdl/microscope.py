"""A simulated microscope with atoms: silicon-doped graphene that drifts and changes under the beam.

It is a scan device for Nion's own simulated instrument (usim), so that everything Swift can do with a scan
works with it: field of view, position, rotation, size, pixel time and sub-scans are honoured. The truth is
known for every frame.
"""

from __future__ import annotations

import gettext
import threading
import time
import typing
from dataclasses import dataclass

import numpy

if typing.TYPE_CHECKING:
    from collections.abc import Callable

_ = gettext.gettext

DEVICE_ID = "stemdl_scan_device"
#: Bond length of graphene, and the projected silicon-carbon distance of the 3-fold (buckled) silicon [nm].
_CC_NM, _SIC_NM = 0.142, 0.160
#: 100 pA in electrons per microsecond.
_BEAM_E_PER_US = 624.0
#: Electrons that one carbon atom scatters to the annular detector, per electron and nm^2 [nm^2].
_CARBON_NM2 = 2.5e-5
#: A silicon changes places with a neighbour once in this dose on average [electrons/nm^2]; the mechanism
#: and the order of magnitude are those of Susi et al., Phys. Rev. Lett. 113, 115501 (2014).
HOP_DOSE_E_PER_NM2 = 6e8


@dataclass(frozen=True)
class Truth:
    """What was in the field of view of one scan.

    Parameters
    ----------
    y_px, x_px : (N,) float64
        Positions in the scan's own pixels.
    species : (N,) str
        Chemical symbols.
    """

    y_px: numpy.ndarray
    x_px: numpy.ndarray
    species: numpy.ndarray


class Specimen:
    """A sheet of graphene with silicon on some of its sites.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything random: which sites hold silicon, hops, noise.
    size_nm : float
        Side of the square sheet, whose centre is at the origin of the scan's coordinates [nm].
    silicon : int
        Number of silicon atoms; the first is near the centre.
    rotation_deg : float
        Rotation of the lattice.
    drift_nm_per_s : (float, float)
        Velocity of the sheet (y, x).
    clock : callable
        Time [s].
    """

    def __init__(
        self,
        *,
        rng: numpy.random.Generator,
        size_nm: float = 24.0,
        silicon: int = 40,
        rotation_deg: float = 13.0,
        drift_nm_per_s: tuple[float, float] = (0.004, -0.003),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.__rng = rng
        self.__clock = clock
        self.__start_s = clock()
        self.__drift = numpy.asarray(drift_nm_per_s, dtype=float)
        self.__lock = threading.Lock()
        self.__sites, self.__neighbours = _sheet(size_nm, rotation_deg)
        inside = numpy.flatnonzero((self.__neighbours >= 0).all(axis=1))
        self.__silicon = self.__place(inside, silicon)

    def __place(self, candidates: numpy.ndarray, count: int) -> list[int]:
        """Sites for silicon, at least 1.2 nm apart."""
        distance = numpy.hypot(*self.__sites[candidates].T)
        chosen = [int(candidates[distance.argmin()])]
        for site in self.__rng.permutation(candidates):
            if len(chosen) >= count:
                break
            if numpy.hypot(*(self.__sites[chosen] - self.__sites[site]).T).min() > 1.2:
                chosen.append(int(site))
        return chosen[:count]

    def atoms(self) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(N, 2) positions (y, x) [nm] where they are now, and (N,) symbols."""
        with self.__lock:
            silicon = list(self.__silicon)
        yx = self.__sites.copy()
        species = numpy.full(len(yx), "C", dtype="U2")
        species[silicon] = "Si"
        for site in silicon:
            # The neighbours make room for the larger atom.
            for neighbour in self.__neighbours[site]:
                outward = yx[neighbour] - yx[site]
                yx[neighbour] = yx[site] + outward * (_SIC_NM / _CC_NM)
        return yx + self.__drift * (self.__clock() - self.__start_s), species

    def expose(self, dose_e_per_nm2: float, inside: Callable[[numpy.ndarray], numpy.ndarray]) -> None:
        """Let the beam act: each silicon in the scanned area may change places with one of its neighbours."""
        with self.__lock:
            now = self.__sites[self.__silicon] + self.__drift * (self.__clock() - self.__start_s)
            hops = inside(now) & (
                self.__rng.random(len(now)) < 1 - numpy.exp(-dose_e_per_nm2 / HOP_DOSE_E_PER_NM2)
            )
            for i in numpy.flatnonzero(hops):
                target = int(self.__rng.choice(self.__neighbours[self.__silicon[i]]))
                others = self.__silicon[:i] + self.__silicon[i + 1 :]
                apart = numpy.hypot(*(self.__sites[others] - self.__sites[target]).T).min(initial=9.9)
                if (self.__neighbours[target] >= 0).all() and apart > 0.6:
                    self.__silicon[i] = target


def _sheet(size_nm: float, rotation_deg: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Sites (N, 2) of a graphene sheet [nm], and (N, 3) their neighbours (-1 beyond the rim)."""
    a = 3**0.5 * _CC_NM
    count = int(size_nm / a * 1.6) + 2
    i, j = (g.ravel() for g in numpy.meshgrid(*[numpy.arange(-count, count + 1)] * 2))
    first, second = numpy.array([0.0, a]), numpy.array([a * 3**0.5 / 2, a / 2])
    cell = i[:, None] * first + j[:, None] * second
    basis = (first + second) / 3
    yx = numpy.concatenate([cell, cell + basis])
    number = numpy.full((2, 2 * count + 1, 2 * count + 1), -1)
    turn = numpy.deg2rad(rotation_deg)
    rotated = yx @ numpy.array([[numpy.cos(turn), numpy.sin(turn)], [-numpy.sin(turn), numpy.cos(turn)]])
    keep = (numpy.abs(rotated) < size_nm / 2).all(axis=1)
    lattice = numpy.repeat([0, 1], len(cell))
    row, column = numpy.tile(i, 2) + count, numpy.tile(j, 2) + count
    number[lattice[keep], row[keep], column[keep]] = numpy.arange(keep.sum())
    # A site of lattice 0 at cell (i, j) is bonded to those of lattice 1 at (i, j), (i-1, j) and (i, j-1),
    # and vice versa.
    sign = numpy.where(lattice == 0, -1, 1)
    neighbours = []
    for di, dj in ((0, 0), (1, 0), (0, 1)):
        r = numpy.clip(row + sign * di, 0, 2 * count)
        c = numpy.clip(column + sign * dj, 0, 2 * count)
        neighbours.append(number[1 - lattice, r, c])
    return rotated[keep], numpy.stack(neighbours, axis=1)[keep]


class Generator:
    """Turns scan parameters into images of a specimen, as the scan device of nion.device_kit asks for them.

    Parameters
    ----------
    specimen : Specimen
        What lies under the beam.
    rng : numpy.random.Generator
        Source of the noise.
    """

    def __init__(self, specimen: Specimen, rng: numpy.random.Generator) -> None:
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
        rotation = numpy.array([[numpy.cos(turn), -numpy.sin(turn)], [numpy.sin(turn), numpy.cos(turn)]])

        def to_px(yx_nm: numpy.ndarray) -> numpy.ndarray:
            middle = (numpy.array([height, width]) - 1) / 2
            return (yx_nm - center) @ rotation / step + middle

        def inside(yx_nm: numpy.ndarray) -> numpy.ndarray:
            yx = to_px(yx_nm)
            return ((yx > -0.5) & (yx < (height - 0.5, width - 0.5))).all(axis=1)

        yx_nm, species = self.specimen.atoms()
        px = to_px(yx_nm)
        near = ((px > -1.0 / step) & (px < (height + 1.0 / step, width + 1.0 / step))).all(axis=1)
        px, species = px[near], species[near]
        weight = column_intensity(numpy.where(species == "Si", 14, 6))
        density = render(
            px * step, weight, scan=Scan.regular((height, width), step, (0.0, 0.0)), probe=Probe()
        )
        dose = _BEAM_E_PER_US * float(parameters.pixel_time_us) / step**2
        detector = Detector(dose_e_per_atom=dose * _CARBON_NM2, background_e_per_px=0.5, gain=10.0)
        image = expose(density, pixel_nm=step, detector=detector, rng=self.__rng)
        seen = ((px > -0.5) & (px < (height - 0.5, width - 0.5))).all(axis=1)
        self.truth = Truth(px[seen, 0], px[seen, 1], species[seen])
        self.specimen.expose(dose, inside)
        return image


def scan_module(instrument: typing.Any, generator: Generator) -> typing.Any:
    """The scan device for an instrument of usim, with settings that show atoms."""
    from nion.device_kit import ScanDevice
    from nion.instrumentation import scan_base
    from nion.usim_device import ScanDevice as UsimScanDevice

    class Module(scan_base.ScanModule):
        def __init__(self) -> None:
            self.stem_controller_id = instrument.instrument_id
            self.device = ScanDevice.Device(
                DEVICE_ID,
                _("stemdl simulated graphene"),
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


def connect(seed: int = 0) -> Generator | None:
    """Add the simulated microscope to a running Swift; None where usim is not installed.

    Called before the first window opens, after the plug-ins have been loaded.
    """
    from nion.utils import Registry

    instrument = Registry.get_component("stem_controller")
    if instrument is None or getattr(instrument, "instrument_id", "") != "usim_stem_controller":
        return None
    rng = numpy.random.default_rng(seed)
    generator = Generator(Specimen(rng=rng), rng)
    Registry.register_component(scan_module(instrument, generator), {"scan_module"})
    return generator
