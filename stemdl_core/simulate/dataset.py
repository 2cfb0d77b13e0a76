"""Simulated frames with exact truth, and the training set made of them.

Conditions are drawn at random over the ranges a microscopist meets; every distortion that moves an atom in the
image moves its truth by the same amount, and what hides the lattice (contamination, holes, second layers) is
part of the truth as a region in which nothing is to be found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

from ..calibration import PixelSize
from ..frames import Frame
from ..materials import get_material
from ..preprocess import mend, model_shape, resample, standardise, to_model_px
from ..sites import Sites
from ..targets import IGNORE, class_map
from . import degrade
from .conditions import Conditions, Ranges, draw_conditions
from .imaging import Scan, column_intensity, render
from .structures import Specimen, TrueDefect

__all__ = ["Conditions", "Ranges", "SimulatedFrame", "draw_conditions", "simulate_frame", "training_pair"]

#: A contaminating layer hides the lattice where its mean intensity exceeds that of the host sheet, or where its
#: speckle exceeds this part of a host column's peak; below `VISIBLE_BELOW` times these limits the lattice counts
#: as visible, and in between the truth is undefined.
HIDDEN_EXCESS, HIDDEN_SPECKLE, VISIBLE_BELOW = 1.2, 0.40, 0.5
#: Distance from the nearest atom beyond which a place counts as vacuum [nm]: a hexavacancy's centre is nearer.
VACUUM_NM = 0.46
#: Foreign atoms this much brighter than the host are of the network's class 'dopant', whatever n and gain; nitrogen
#: and oxygen in graphene are below it and count as lattice, to be told by their measured intensity.
DOPANT_CONTRAST = 1.8


@dataclass(frozen=True)
class SimulatedFrame:
    """A simulated image and its truth.

    Attributes
    ----------
    frame : Frame
        The image with its nominal pixel size.
    sites : Sites
        True columns inside the image, in apparent (distorted) pixel positions; `intensity` is relative to the
        host; `edge` marks columns closer than one bond to the border.
    visible : (N,) bool
        Whether the column is outside contamination, second layers and the undefined zone around them.
    hidden : (H, W) uint8
        1 where nothing is to be found (contamination, vacuum, second layer), 2 where the truth is undefined.
    vacancies_px : (K, 2) float64
        Apparent positions of missing columns.
    defects : tuple of TrueDefect
        Defects whose centre is in a visible part of the image; `site_ids` refer to `sites`.
    centers_px : (D, 2) float64
        Their centres in apparent pixels.
    conditions : Conditions
        How the frame was taken.
    material : str
        The host.
    removed_px : (R, 2) float64
        Columns that a hole in the sheet has taken: beside them the structure is no longer that of the specimen.
    """

    frame: Frame
    sites: Sites
    visible: NDArray[np.bool_]
    hidden: NDArray[np.uint8]
    vacancies_px: NDArray[np.float64]
    defects: tuple[TrueDefect, ...]
    centers_px: NDArray[np.float64]
    conditions: Conditions
    material: str = "graphene"
    removed_px: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    def truth(self) -> dict[str, object]:
        """The truth as plain data, for JSON."""
        return {
            "schema": 1, "material": self.material,
            "pixel_size_nm": self.conditions.pixel_nm,
            "conditions": asdict(self.conditions),
            "sites": [{"y_px": float(y), "x_px": float(x), "species": str(s), "visible": bool(v)} for y, x, s, v in
                      zip(self.sites.y_px, self.sites.x_px, self.sites.species, self.visible)],
            "vacancies_px": self.vacancies_px.tolist(),
            "defects": [{"name": d.name, "composition": dict(d.composition), "center_px": c.tolist(),
                         "site_ids": [int(i) for i in d.site_ids], "missing_atoms": d.missing_atoms}
                        for d, c in zip(self.defects, self.centers_px)],
        }


def simulate_frame(specimen: Specimen, conditions: Conditions, rng: np.random.Generator, *,
                   shape: tuple[int, int] | None = None, truth_moves: bool = True) -> SimulatedFrame:
    """Take a picture of a specimen.

    Parameters
    ----------
    specimen : Specimen
        Structure with its true defects.
    conditions : Conditions
        How the frame is taken.
    rng : numpy.random.Generator
        Source of noise and of the random parts of the disturbances.
    shape : (int, int), optional
        (H, W) [px]; by default what covers the specimen's field of view.
    truth_moves : bool
        Whether jitter and drift of the scan move the truth with the pixels. Without it the truth is where the columns
        would be in an undisturbed scan: only for showing what that costs.
    """
    c = conditions
    fov = np.broadcast_to(np.asarray(specimen.fov_nm, dtype=np.float64), (2,))
    if shape is None:
        shape = (max(int(round(fov[0] / c.pixel_nm)), 1), max(int(round(fov[1] / c.pixel_nm)), 1))
    material = get_material(specimen.material)
    fov_nm = (shape[0] * c.pixel_nm, shape[1] * c.pixel_nm)

    yx = specimen.atoms.get_positions()[:, [1, 0]] / 10.0
    numbers = specimen.atoms.get_atomic_numbers()
    symbols = np.array(specimen.atoms.get_chemical_symbols(), dtype="U4")
    warp = _warp(c, fov_nm, rng)
    yx = warp(yx)
    vacancies = warp(np.asarray(specimen.vacancies_nm, dtype=np.float64).reshape(-1, 2))
    centers = warp(np.array([d.center_nm for d in specimen.defects], dtype=np.float64).reshape(-1, 2))
    yx = yx + rng.normal(0, c.thermal_nm, yx.shape) if c.thermal_nm > 0 else yx
    columns, members = _columns(yx, numbers, symbols)
    atom_intensity = column_intensity(numbers, c.exponent)
    host_intensity = max(column_intensity([material.atomic_number(s) for s in material.species], c.exponent))
    heavy = (atom_intensity > DOPANT_CONTRAST * host_intensity) & ~np.isin(symbols, material.species)
    atom_intensity = np.where(heavy, np.maximum(atom_intensity * c.dopant_gain, DOPANT_CONTRAST * host_intensity),
                              atom_intensity)
    for m in members:
        if len(m) == 2:
            atom_intensity[m] *= 2.0**c.pair_coherence
    cell = _cell_intensity(material.name, c)
    # The column that the dose is counted for: the weaker full host column.
    reference = min(cell)
    atom_intensity = atom_intensity / reference
    area = np.sqrt(3.0) / 2.0 * material.lattice_nm**2
    per_cell = 2.0 if material.kind == "honeycomb" else float(sum(cell) / reference)
    host_density = per_cell / area

    # What hides the lattice.
    hidden_fields: list[tuple[NDArray[np.float64], float]] = []
    extra_yx: list[NDArray[np.float64]] = []
    extra_intensity: list[NDArray[np.float64]] = []
    removed = np.zeros(len(yx), dtype=bool)
    if c.contamination > 0:
        thickness, pitch = degrade.blobs(fov_nm, coverage=c.contamination, scale_nm=rng.uniform(0.45, 1.5), rng=rng)
        thickness = thickness * (c.contamination_strength / max(float(thickness[thickness > 0].mean()), 1e-9))
        atoms_per_nm2 = 60.0
        layer = degrade.amorphous_atoms(thickness, pitch, atoms_per_nm2=atoms_per_nm2, rng=rng)
        layer = layer + rng.normal(0, c.contamination_smear_nm, layer.shape)
        extra_yx.append(layer)
        extra_intensity.append(np.full(len(layer), host_density / atoms_per_nm2))
        # Speckle of a layer of randomly placed atoms (shot noise of positions), by the peak of a host column.
        blur = c.probe.sigma_nm**2 + c.contamination_smear_nm**2
        speckle = (host_density / atoms_per_nm2) * np.sqrt(atoms_per_nm2 / (4 * np.pi * blur))
        speckle = speckle * 2 * np.pi * c.probe.sigma_nm**2
        hiding = np.maximum(thickness / HIDDEN_EXCESS, np.sqrt(thickness) * speckle / HIDDEN_SPECKLE)
        hidden_fields.append((hiding, pitch))
    if c.second_layer > 0:
        field_, pitch = degrade.blobs(fov_nm, coverage=c.second_layer, scale_nm=rng.uniform(0.5, 1.5), rng=rng)
        angle = rng.uniform(0, np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.asarray(fov_nm) / 2
        layer = (yx - middle) @ turn.T + middle + rng.uniform(-0.2, 0.2, 2)
        there = degrade.sample_field(field_, pitch, layer) > 0
        extra_yx.append(layer[there])
        extra_intensity.append(atom_intensity[there])
        hidden_fields.append((np.clip(40 * field_, 0.0, 9.0), pitch))
    if c.vacuum > 0:
        field_, pitch = degrade.blobs(fov_nm, coverage=c.vacuum, scale_nm=rng.uniform(0.45, 1.2), rng=rng)
        removed = degrade.sample_field(field_, pitch, yx) > 0

    disturbed = degrade.disturbed_scan(shape, c.pixel_nm, rng=rng, jitter_nm=c.jitter_nm, flyback_nm=c.flyback_nm,
                                       drift_nm=c.drift_nm)
    all_yx = np.concatenate([yx[~removed], *extra_yx])
    all_intensity = np.concatenate([atom_intensity[~removed], *extra_intensity])
    density = render(all_yx, all_intensity, scan=disturbed, probe=c.probe)
    if c.gradient:
        slope = rng.uniform(0, 2 * np.pi)
        rows, cols = np.linspace(-0.5, 0.5, shape[0])[:, None], np.linspace(-0.5, 0.5, shape[1])[None, :]
        density = density * (1 + c.gradient * (np.sin(slope) * rows + np.cos(slope) * cols))
    if c.line_noise:
        density = np.clip(density + c.line_noise * density.mean() * rng.standard_normal((shape[0], 1)), 0, None)
    image = degrade.expose(density, pixel_nm=c.pixel_nm, detector=c.detector, rng=rng)
    if c.smoothing_px:
        image = gaussian_filter(image, c.smoothing_px, mode="nearest")
    if c.hot_pixels or c.dead_lines:
        image = degrade.bad_pixels(image, hot=c.hot_pixels, dead_lines=c.dead_lines, rng=rng)

    # Truth, in the distorted image.
    seen = disturbed if truth_moves else Scan.regular(disturbed.shape, c.pixel_nm)
    kept = np.array([not removed[m].all() for m in members]) if removed.any() else np.ones(len(members), bool)
    apparent = seen.apparent_px(columns, c.probe.sigma_nm)
    inside = ((apparent > -0.5) & (apparent < np.asarray(shape) - 0.5)).all(axis=1) & kept
    hidden = _hidden(shape, c.pixel_nm, hidden_fields, seen, columns[kept])
    species = np.array([_column_species(symbols[m], material.species) for m in members], dtype="U4")
    intensity = np.array([atom_intensity[m].sum() for m in members])
    where = np.flatnonzero(inside)
    new_index = np.full(len(members), -1)
    new_index[where] = np.arange(len(where))
    border = 1.05 * material.bond_nm / c.pixel_nm
    edge = np.any((apparent < border) | (apparent > np.asarray(shape) - 1 - border), axis=1)
    sites = Sites.from_columns(y_px=apparent[where, 0], x_px=apparent[where, 1], species=species[where],
                               intensity=intensity[where], edge=edge[where])
    cell = np.clip(np.round(sites.yx_px).astype(int), 0, np.asarray(shape) - 1)
    visible = hidden[cell[:, 0], cell[:, 1]] == 0 if len(sites) else np.zeros(0, bool)
    column_of_atom = np.empty(len(yx), dtype=int)
    for k, m in enumerate(members):
        column_of_atom[m] = k
    defects, centers_px = _true_defects(specimen.defects, centers, seen, c, column_of_atom, new_index, hidden,
                                        sites.yx_px, visible)
    vacancies_px = seen.apparent_px(vacancies, c.probe.sigma_nm)
    inside_v = ((vacancies_px > -0.5) & (vacancies_px < np.asarray(shape) - 0.5)).all(axis=1)
    frame = Frame(image, PixelSize(c.pixel_nm, "metadata", c.pixel_nm), source="simulation")
    return SimulatedFrame(frame, sites, visible, hidden, vacancies_px[inside_v], defects, centers_px, c, material.name,
                          apparent[~kept])


def _warp(c: Conditions, fov_nm: tuple[float, float], rng: np.random.Generator):
    """Deformation of the specimen about the middle of the field: strain and smooth ripples."""
    middle = np.asarray(fov_nm) / 2
    matrix = np.asarray(c.strain)
    waves = [(rng.normal(size=2), rng.uniform(1.5, 5.0), rng.uniform(0, 2 * np.pi), rng.normal(size=2))
             for _ in range(3)] if c.ripple_nm > 0 else []

    def warp(yx: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = (yx - middle) @ matrix.T + middle
        for direction, wavelength, phase, push in waves:
            k = 2 * np.pi / wavelength * direction / np.linalg.norm(direction)
            moved = moved + (c.ripple_nm / 3) * np.sin(yx @ k + phase)[:, None] * push
        return moved

    return warp


def _columns(yx: NDArray[np.float64], numbers: NDArray[np.int64],
             symbols: NDArray[np.str_]) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Group atoms that share a column (closer than 40 pm in projection): positions and member lists."""
    pairs = cKDTree(yx).query_pairs(0.04, output_type="ndarray") if len(yx) else np.empty((0, 2), int)
    partner = np.full(len(yx), -1)
    partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    members = [np.array([i]) if partner[i] < 0 else np.array([i, partner[i]])
               for i in range(len(yx)) if partner[i] < 0 or partner[i] > i]
    centers = np.array([yx[m].mean(axis=0) for m in members]).reshape(-1, 2)
    return centers, members


def _column_species(symbols: NDArray[np.str_], host: tuple[str, ...]) -> str:
    """Name of a column: its foreign atom where it has one, else its host species."""
    foreign = [s for s in symbols if s not in host]
    return str(foreign[0] if foreign else symbols[0])


def _cell_intensity(material: str, c: Conditions) -> tuple[float, ...]:
    """Intensities of the full host columns of a cell."""
    m = get_material(material)
    each = column_intensity([m.atomic_number(s) for s in m.species], c.exponent)
    return tuple(each * np.array([1.0] if m.kind == "honeycomb" else [1.0, 2.0 ** (1 + c.pair_coherence)]))


def _hidden(shape: tuple[int, int], pixel_nm: float, fields: list[tuple[NDArray[np.float64], float]], scan: Scan,
            columns: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(H, W) uint8: 0 visible, 1 nothing to be found, 2 undefined."""
    hidden = np.zeros(shape, dtype=np.uint8)
    y = scan.line_y_nm[:, None] * np.ones(shape[1])
    x = scan.origin_nm[1] + pixel_nm * np.arange(shape[1])[None, :] + scan.line_dx_nm[:, None]
    grid = np.stack([y, x], axis=-1).reshape(-1, 2)
    for field_, pitch in fields:
        value = degrade.sample_field(field_, pitch, grid).reshape(shape)
        hidden[(value > VISIBLE_BELOW) & (hidden != 1)] = 2
        hidden[value > 1.0] = 1
    # Vacuum: farther from every atom than any point inside a vacancy is.
    pitch = 0.02
    size = tuple(int(np.ceil(n * pixel_nm / pitch)) + 80 for n in shape)
    occupied = np.ones(size, dtype=bool)
    cell = np.floor((columns + 40 * pitch) / pitch).astype(int)
    ok = ((cell >= 0) & (cell < np.asarray(size))).all(axis=1)
    occupied[cell[ok, 0], cell[ok, 1]] = False
    distance = distance_transform_edt(occupied) * pitch if ok.any() else np.full(size, 9.0)
    away = degrade.sample_field(distance, pitch, grid + 40 * pitch).reshape(shape)
    hidden[(away > VACUUM_NM - 0.10) & (hidden == 0)] = 2
    hidden[away > VACUUM_NM] = 1
    return hidden


def _true_defects(defects: tuple[TrueDefect, ...], centers: NDArray[np.float64], scan: Scan, c: Conditions,
                  column_of_atom: NDArray[np.int64], new_index: NDArray[np.int64],
                  hidden: NDArray[np.uint8], yx_px: NDArray[np.float64],
                  visible: NDArray[np.bool_]) -> tuple[tuple[TrueDefect, ...], NDArray[np.float64]]:
    """Defects that lie wholly in the visible part of the image, renumbered to the frame's sites.

    Of a boundary, which crosses the whole image, it is the part that can be seen.
    """
    kept, places = [], []
    centers_px = scan.apparent_px(centers, c.probe.sigma_nm)
    for defect, center in zip(defects, centers_px):
        ids = sorted({int(new_index[column_of_atom[i]]) for i in defect.site_ids})
        if defect.name.startswith("GB"):
            ids = [i for i in ids if i >= 0 and visible[i]]
            if ids:
                kept.append(replace(defect, site_ids=tuple(ids)))
                places.append(yx_px[ids].mean(axis=0))
            continue
        row, column = np.round(center).astype(int)
        inside = 0 <= row < hidden.shape[0] and 0 <= column < hidden.shape[1]
        if (ids and ids[0] < 0) or not inside or hidden[row, column] == 1:
            continue
        kept.append(replace(defect, site_ids=tuple(ids)))
        places.append(center)
    return tuple(kept), np.array(places, dtype=np.float64).reshape(-1, 2)


def training_pair(simulated: SimulatedFrame, *, classes: tuple[str, ...], model_pixel_nm: float, radius_nm: float,
                  vacancy_radius_nm: float, host: tuple[str, ...]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Network input and class map of one simulated frame.

    Parameters
    ----------
    simulated : SimulatedFrame
        Image and truth.
    classes : tuple of str
        Names of the classes, the first being 'background'; of 'lattice', 'dopant', 'vacancy', 'masked'.
    model_pixel_nm : float
        Pixel size of the network's input [nm].
    radius_nm, vacancy_radius_nm : float
        Radius of the discs that stand for atoms and for missing atoms [nm].
    host : tuple of str
        Species of the lattice class.

    Returns
    -------
    image : (h, w) float32
    target : (h, w) uint8
        `targets.IGNORE` where the truth is undefined.
    """
    image = mend(simulated.frame.image).image
    small = model_shape(image.shape, simulated.conditions.pixel_nm, model_pixel_nm)
    network_input = standardise(resample(image, small))
    number = {name: k for k, name in enumerate(classes)}
    sites = simulated.sites
    # The network tells dopants by brightness alone: light foreign atoms count as lattice.
    foreign = ~np.isin(sites.species, host) & (sites.intensity > 0.97 * DOPANT_CONTRAST)
    labels = np.where(foreign & ("dopant" in number), number.get("dopant", 1), 1)
    positions = to_model_px(sites.yx_px, image.shape, small)
    radius = np.full(len(sites), radius_nm / model_pixel_nm)
    keep = np.ones(len(sites), bool)
    if len(simulated.vacancies_px) and "vacancy" in number:
        positions = np.concatenate([positions, to_model_px(simulated.vacancies_px, image.shape, small)])
        labels = np.concatenate([labels, np.full(len(simulated.vacancies_px), number["vacancy"])])
        radius = np.concatenate([radius, np.full(len(simulated.vacancies_px), vacancy_radius_nm / model_pixel_nm)])
        keep = np.ones(len(positions), bool)
    target = class_map(positions[keep], labels[keep], shape=small, radius_px=radius[keep])
    rows = np.clip(((np.arange(small[0]) + 0.5) * image.shape[0] / small[0]).astype(int), 0, image.shape[0] - 1)
    cols = np.clip(((np.arange(small[1]) + 0.5) * image.shape[1] / small[1]).astype(int), 0, image.shape[1] - 1)
    hidden = simulated.hidden[np.ix_(rows, cols)]
    target[hidden == 1] = number.get("masked", 0)
    target[hidden == 2] = IGNORE
    return network_input, target
