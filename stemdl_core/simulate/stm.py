"""Scanning tunnelling microscopy of a honeycomb: a picture of the local density of states with exact truth.

The same chain that reads electron microscopy images can be trained on it, for the points in which the two differ are
all in the picture: a current instead of counts, so noise is not Poisson's but drifts from line to line as 1/f; defects
are protrusions (a nitrogen atom, an adatom) or depressions (a vacancy) much wider than an atom; and around each of
them electrons scatter between the two valleys of the band structure and modulate the atoms with the period of a
(sqrt 3 x sqrt 3) R30 superstructure that fades within about a nanometre [1]_ [2]_.

References
----------
.. [1] Rutter et al., Science 2007, 317, 219.
.. [2] Zhao et al., Science 2011, 333, 999.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from ..calibration import PixelSize
from ..errors import StemdlError
from ..frames import Frame
from ..materials import get_material
from ..sites import Sites
from .dataset import DOPANT_CONTRAST, Conditions, SimulatedFrame
from .imaging import Probe, Scan, render
from .structures import Specimen, random_specimen

#: Defects that show in the density of states: foreign atoms as protrusions, missing atoms as depressions.
STM_KINDS: tuple[tuple[str, float], ...] = (("X-C3", 4.0), ("SV", 3.0), ("DV(5-8-5)", 1.0))


@dataclass(frozen=True)
class StmConditions:
    """How an STM image is taken; lengths in nm, heights relative to a host atom's corrugation.

    Attributes
    ----------
    pixel_nm : float
        Pixel size [nm].
    tip_nm : float
        Standard deviation of an atom under the tip [nm]: blunter tips blur the lattice.
    sublattice : float
        Relative difference in height of the two sublattices (a substrate, or stacked layers).
    protrusion, depression : float
        Height of foreign atoms over the sheet, and depth of vacancies below it.
    defect_nm : float
        Standard deviation of a defect's own state [nm].
    scattering, decay_nm : float
        Amplitude of the superstructure beside a defect, and the distance over which it fades [nm].
    white, pink : float
        Standard deviation of the noise of single pixels, and of the 1/f noise along the slow axis.
    tilt : float
        Height difference across the image, relative to the corrugation.
    """

    pixel_nm: float = 0.020
    tip_nm: float = 0.045
    sublattice: float = 0.0
    protrusion: float = 1.5
    depression: float = 1.0
    defect_nm: float = 0.12
    scattering: float = 0.4
    decay_nm: float = 0.8
    white: float = 0.15
    pink: float = 0.15
    tilt: float = 0.0


def draw_stm_conditions(rng: np.random.Generator, *, pixel_nm: tuple[float, float] = (0.008, 0.030)) -> StmConditions:
    """Random conditions over the range of practice."""
    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    return StmConditions(
        pixel_nm=log_uniform(*pixel_nm), tip_nm=rng.uniform(0.035, 0.060),
        sublattice=rng.uniform(-0.25, 0.25) if rng.random() < 0.5 else 0.0,
        protrusion=rng.uniform(0.8, 2.5), depression=rng.uniform(0.6, 1.3), defect_nm=rng.uniform(0.07, 0.18),
        scattering=rng.uniform(0.0, 0.5), decay_nm=rng.uniform(0.4, 1.2),
        white=log_uniform(0.03, 0.4), pink=log_uniform(0.03, 0.4), tilt=rng.normal(0, 1.0))


def simulate_stm(specimen: Specimen, conditions: StmConditions, rng: np.random.Generator, *,
                 shape: tuple[int, int] | None = None) -> SimulatedFrame:
    """Take an STM picture of a honeycomb sheet.

    Parameters
    ----------
    specimen : Specimen
        Graphene with its true defects.
    conditions : StmConditions
        How the picture is taken.
    rng : numpy.random.Generator
        Source of noise.
    shape : (int, int), optional
        (H, W) [px]; by default what covers the specimen's field of view.

    Raises
    ------
    StemdlError
        If the specimen is no honeycomb.
    """
    c, material = conditions, get_material(specimen.material)
    if material.kind != "honeycomb":
        raise StemdlError(f"STM images are simulated of honeycombs such as graphene, not of {material.name}")
    if shape is None:
        shape = (max(round(specimen.shape_nm[0] / c.pixel_nm), 1), max(round(specimen.shape_nm[1] / c.pixel_nm), 1))
    yx = specimen.yx_nm
    symbols = np.array(specimen.atoms.get_chemical_symbols(), dtype="U4")
    foreign = ~np.isin(symbols, material.species)
    holes = np.asarray(specimen.vacancies_nm, dtype=np.float64).reshape(-1, 2)

    height = 1 + c.sublattice * _sublattice(yx, material.bond_nm)
    scatterers = np.concatenate([yx[foreign], holes])
    height = height * (1 + c.scattering * _superstructure(yx, scatterers, material.lattice_nm, c.decay_nm))
    height = np.maximum(height, 0.1)
    # A missing atom takes states from those around it; what the tip sees there is a hollow.
    scan, unit = Scan.regular(shape, c.pixel_nm), 2 * np.pi * c.tip_nm**2
    tip = Probe(c.tip_nm, 2 * c.tip_nm, 0.0)
    image = render(yx, unit * height, scan=scan, probe=tip)
    wide = float(np.hypot(c.tip_nm, c.defect_nm))
    for at, strength in ((yx[foreign], c.protrusion), (holes, -c.depression)):
        if len(at):
            state = Probe(wide, 2 * wide, 0.0)
            image = image + render(at, np.full(len(at), 2 * np.pi * wide**2 * strength), scan=scan, probe=state)
    rows, columns = (np.linspace(-0.5, 0.5, n) for n in shape)
    slope = rng.uniform(0, 2 * np.pi)
    image = image + c.tilt * (np.sin(slope) * rows[:, None] + np.cos(slope) * columns)
    image = image + c.white * rng.standard_normal(shape) + c.pink * _line_noise(shape, rng)
    # Heights and currents come in any unit and with any zero.
    image = (10 ** rng.uniform(-3, 3) * image + rng.uniform(-50, 50)).astype(np.float32)

    apparent = scan.apparent_px(yx, c.tip_nm)
    inside = np.all((apparent > -0.5) & (apparent < np.asarray(shape) - 0.5), axis=1)
    where = np.flatnonzero(inside)
    new_index = np.full(len(yx), -1)
    new_index[where] = np.arange(len(where))
    border = 1.05 * material.bond_nm / c.pixel_nm
    edge = np.any((apparent < border) | (apparent > np.asarray(shape) - 1 - border), axis=1)
    intensity = np.where(foreign, DOPANT_CONTRAST, height)
    sites = Sites.from_columns(y_px=apparent[where, 0], x_px=apparent[where, 1], species=symbols[where],
                               intensity=intensity[where], edge=edge[where])
    kept, centers = [], []
    for defect in specimen.defects:
        ids = new_index[list(defect.site_ids)]
        if len(ids) and (ids >= 0).all():
            kept.append(replace(defect, site_ids=tuple(sorted(int(i) for i in ids))))
            centers.append(scan.apparent_px(np.array([defect.center_nm]), c.tip_nm)[0])
    holes_px = scan.apparent_px(holes, c.tip_nm)
    holes_px = holes_px[((holes_px > -0.5) & (holes_px < np.asarray(shape) - 0.5)).all(axis=1)]
    taken = Conditions(pixel_nm=c.pixel_nm, probe=tip)
    return SimulatedFrame(Frame(image, PixelSize(c.pixel_nm, "metadata", c.pixel_nm), source="simulation"), sites,
                          np.ones(len(sites), bool), np.zeros(shape, np.uint8), holes_px, tuple(kept),
                          np.array(centers).reshape(-1, 2), taken, material.name)


def random_stm(fov_nm: float, rng: np.random.Generator, *, pixel_nm: tuple[float, float] = (0.008, 0.030),
               dopant: str = "N", kinds: Mapping[str, float] | None = None,
               material: str = "graphene") -> SimulatedFrame:
    """A random specimen under random conditions, the field of view being square [nm]."""
    conditions = draw_stm_conditions(rng, pixel_nm=pixel_nm)
    side = max(round(fov_nm / conditions.pixel_nm), 24)
    specimen = random_specimen(material, fov_nm, rng, kinds=dict(kinds or STM_KINDS), dopant=dopant)
    return simulate_stm(specimen, replace(conditions, pixel_nm=fov_nm / side), rng, shape=(side, side))


def _sublattice(yx: NDArray[np.float64], bond_nm: float) -> NDArray[np.float64]:
    """(N,) +1 and -1 on the two sublattices; 0 where the bonds do not tell."""
    sign = np.zeros(len(yx))
    pairs = cKDTree(yx).query_ball_point(yx, 1.3 * bond_nm)
    for first in range(len(yx)):
        if sign[first]:
            continue
        sign[first] = 1.0
        pending = [first]
        while pending:
            k = pending.pop()
            for other in pairs[k]:
                if sign[other] == 0 and other != k:
                    sign[other] = -sign[k]
                    pending.append(other)
    return sign


def _superstructure(yx: NDArray[np.float64], scatterers: NDArray[np.float64], lattice_nm: float,
                    decay_nm: float) -> NDArray[np.float64]:
    """(N,) modulation of the atoms around scatterers, between -1 and 1: period sqrt(3) a, in three directions."""
    if not len(scatterers) or len(yx) < 8:
        return np.zeros(len(yx))
    # Second neighbours lie along the zigzag directions, which are those of the valleys.
    gaps, near = cKDTree(yx).query(yx, k=min(10, len(yx)))
    step = yx[near] - yx[:, None]
    second = np.abs(gaps - lattice_nm) < 0.1 * lattice_nm
    angles = np.arctan2(step[..., 0], step[..., 1])[second]
    turn = float(np.angle(np.exp(6j * angles).sum())) / 6 if len(angles) else 0.0
    valley = 4 * np.pi / (3 * lattice_nm)
    total = np.zeros(len(yx))
    for at in scatterers:
        away = yx - at
        waves = sum(np.cos(valley * (np.sin(turn + k * np.pi / 3) * away[:, 0] + np.cos(turn + k * np.pi / 3)
                                     * away[:, 1])) for k in range(3))
        total += np.exp(-np.hypot(*away.T) / decay_nm) * waves / 3
    return np.clip(total, -1, 1)


def _line_noise(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """(H, W) noise of unit standard deviation that falls off as 1/f in time, the lines following one another."""
    count = shape[0] * shape[1]
    frequency = np.fft.rfftfreq(count, 1.0)
    # A feedback loop has taken out what is slower than a few lines.
    weight = 1 / np.sqrt(np.maximum(frequency, 0.5 / shape[1]))
    weight[0] = 0
    spectrum = weight * (rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency)))
    noise = np.fft.irfft(spectrum, n=count).reshape(shape)
    noise = noise - gaussian_filter(noise, (0.25 * shape[0], 0.25 * shape[1]))
    return noise / max(float(noise.std()), 1e-12)
