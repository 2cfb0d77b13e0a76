"""What a retraining learns from: found structures simulated as the user's microscope sees them, corrected real crops.

The original training set is simulated along from its recipe: without it a network forgets what it knew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from .analysis import FrameAnalysis
from .corrections import Correction, apply_corrections
from .errors import StemdlError
from .frames import Frame
from .imaging_conditions import Measured
from .library_store import Library
from .materials import element, get_material
from .planar import find_faces
from .preprocess import mend, model_shape, resample, standardise, to_model_px
from .recipes import Recipe
from .simulate.dataset import SimulatedFrame, draw_conditions, simulate_frame, training_pair
from .simulate.found import found_template
from .simulate.structures import Specimen, add_template, random_specimen
from .simulate.templates import Template
from .targets import IGNORE, class_map
from .tuning import PRACTICE

Arrays = tuple[NDArray[np.float16], NDArray[np.uint8]]

#: Found structures a square nanometre of a training image.
DENSITY_NM2 = 0.25
#: Sites that the network doubts more than this are neither right nor wrong in a corrected crop.
DOUBTED = 0.5


@dataclass(frozen=True, eq=False)
class Structure:
    """A found structure that can be simulated: a patch for graphene, the kind for a dichalcogenide."""

    class_id: str
    name: str
    material: str
    count: int
    patch: Template | None
    kind: str = ""


def structures(library: Library, which: Sequence[str] = ()) -> tuple[list[Structure], list[str]]:
    """The structures of a library that can be taught, and a line for each that cannot.

    Parameters
    ----------
    library : Library
    which : sequence of str
        Classes by id or name; all that have a name when empty.

    Raises
    ------
    StemdlError
        If none is left.
    """
    chosen = [library.find(w) for w in which] or [c for c in library.shown() if c.name]
    material = get_material(library.material)
    result, notes = [], []
    for head in chosen:
        for c in library.family(head.id):
            name, g = library.label(c.id), c.geometry
            try:
                if material.kind == "mx2":
                    kind = c.found_as[0][0]
                    from .simulate.mx2_defects import parse_kind

                    parse_kind(kind, *material.species)
                    result.append(Structure(c.id, name, material.name, c.count, None, kind))
                    continue
                patch = found_template(name, g.yx_nm, g.species, g.core, turn_rad=g.turn_rad, material=material,
                                       missing=c.missing, bonds=c.bonds)
                result.append(Structure(c.id, name, material.name, c.count, patch))
            except StemdlError as error:
                notes.append(f"{c.id} is left out: {error}")
    if not result:
        hint = "; ".join(notes) or "name classes with 'stemdl library name', or choose some with --class"
        raise StemdlError(f"the library has no structure to teach: {hint}")
    return result, notes


def found_specimen(found: Sequence[Structure], fov_nm: float, rng: np.random.Generator) -> Specimen:
    """A sheet with some of the structures, each equally likely, in random places and orientations."""
    number = max(1, int(rng.poisson(DENSITY_NM2 * fov_nm**2)))
    drawn = [found[int(rng.integers(len(found)))] for _ in range(number)]
    if drawn[0].patch is None:
        kinds: dict[str, float] = {}
        for s in drawn:
            kinds[s.kind] = kinds.get(s.kind, 0.0) + 1.0
        return random_specimen(drawn[0].material, fov_nm, rng, kinds=kinds, density_per_nm2=number / fov_nm**2,
                               pristine_probability=0.0)
    specimen = random_specimen(drawn[0].material, fov_nm, rng, pristine_probability=1.0, boundary_probability=0.0)
    for s in drawn:
        assert s.patch is not None
        for _ in range(4):
            # Also across the border: a defect that is cut is to be recognised, too.
            at = rng.uniform(0.0, fov_nm, 2)
            if (more := add_template(specimen, s.patch, (float(at[0]), float(at[1])), rng=rng)) is not None:
                specimen = more
                break
    return specimen


def found_example(found: Sequence[Structure], recipe: Recipe, measured: Measured | None, seed: int,
                  index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Training image number `index` of the found structures: (image, class map)."""
    rng = np.random.default_rng([seed, 7, index])
    fov = recipe.crop_px * recipe.pixel_size_nm
    ranges = recipe.ranges if measured is None else measured.ranges(recipe.ranges)
    conditions = draw_conditions(rng, ranges)
    side = max(int(round(fov / conditions.pixel_nm)), 24)
    conditions = replace(conditions, pixel_nm=fov / side)
    simulated = simulate_frame(found_specimen(found, fov, rng), conditions, rng, shape=(side, side))
    return training_pair(simulated, classes=recipe.classes, model_pixel_nm=recipe.pixel_size_nm,
                         radius_nm=recipe.radius_nm, vacancy_radius_nm=recipe.vacancy_radius_nm, host=recipe.host)


def found_frames(found: Sequence[Structure], measured: Measured | None, *, count: int, seed: int,
                 fov_nm: float = 3.2) -> list[SimulatedFrame]:
    """Test frames of the found structures under the measured conditions, without further disturbances."""
    frames = []
    for k in range(count):
        rng = np.random.default_rng([seed, 8, k])
        ranges = replace(PRACTICE if measured is None else measured.ranges(PRACTICE), nuisance=0.0)
        conditions = draw_conditions(rng, ranges)
        side = int(np.clip(round(fov_nm / conditions.pixel_nm), 96, 768))
        conditions = replace(conditions, pixel_nm=fov_nm / side)
        frames.append(simulate_frame(found_specimen(found, fov_nm, rng), conditions, rng, shape=(side, side)))
    return frames


def simulated_arrays(count: int, example: Callable[[int], tuple[NDArray[np.float32], NDArray[np.uint8]]], *,
                     progress: Callable[[int], None] | None = None) -> Arrays:
    """Stack of so many examples."""
    images, targets = [], []
    for k in range(count):
        image, target = example(k)
        images.append(image.astype(np.float16))
        targets.append(target)
        if progress:
            progress(k + 1)
    return np.stack(images), np.stack(targets)


@dataclass(frozen=True, eq=False)
class Crops:
    """Corrected pieces of real images.

    Attributes
    ----------
    images, targets : (K, crop, crop)
        Network input and class map; `targets.IGNORE` where nothing is claimed.
    origins : tuple of (str, int)
        File and frame of each.
    unused : tuple of str
        What could not be used, a line each.
    supported : tuple of bool
        For every correction of an atom, whether the image bears it out.
    """

    images: NDArray[np.float16]
    targets: NDArray[np.uint8]
    origins: tuple[tuple[str, int], ...]
    unused: tuple[str, ...] = ()
    supported: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def part(self, which: NDArray[np.bool_]) -> Crops:
        """Some of them."""
        origins = tuple(o for o, w in zip(self.origins, which) if w)
        return Crops(self.images[which], self.targets[which], origins)

    def split(self) -> tuple[Crops, Crops]:
        """Those to train on and those held out: every fourth; the same ones where there are fewer than four."""
        if len(self) < 4:
            return self, self
        held = np.arange(len(self)) % 4 == 3
        return self.part(~held), self.part(held)


def corrected_crops(frame: Frame, analysis: FrameAnalysis, corrections: Sequence[Correction],
                    recipe: Recipe) -> Crops:
    """Crops around the corrected atoms of one frame.

    Everything in a crop that was not corrected is what the analysis found, without what it doubts.

    Parameters
    ----------
    frame, analysis
        The image, and what the model made of it.
    corrections : sequence of Correction
        Of this frame.
    recipe : Recipe
        Of the model: classes, scale, radii.
    """
    atoms = [c for c in corrections if c.action != "rename"]
    size, pitch = recipe.crop_px, recipe.pixel_size_nm
    empty = Crops(np.zeros((0, size, size), np.float16), np.zeros((0, size, size), np.uint8), ())
    if not atoms:
        return empty
    done = apply_corrections(analysis, atoms)
    small = model_shape(frame.shape, analysis.pixel_size.nm, pitch)
    image = standardise(resample(mend(frame.image).image, small))
    target = _target(done, atoms, small, frame.shape, recipe)
    touched = np.array([(c.to_y_px, c.to_x_px) if c.action == "move" else c.yx_px for c in atoms], dtype=np.float64)
    places = to_model_px(touched, frame.shape, small)
    low = size // 2
    images, targets = [], []
    padded = np.pad(image, low, mode="reflect" if min(image.shape) > low else "edge")
    claimed = np.pad(target, low, constant_values=IGNORE)
    todo = np.ones(len(places), dtype=bool)
    while todo.any():
        row, column = np.round(places[np.flatnonzero(todo)[0]]).astype(int)
        images.append(padded[row:row + size, column:column + size].astype(np.float16))
        targets.append(claimed[row:row + size, column:column + size])
        todo &= (np.abs(places - (row, column)) > 0.3 * size).any(axis=1)
    source = (frame.source or corrections[0].source, frame.index)
    unused = tuple(w for w in done.warnings if w.startswith("correction "))
    return Crops(np.stack(images), np.stack(targets), (source,) * len(images), unused,
                 tuple(supported(frame, analysis, atoms)))


def supported(frame: Frame, analysis: FrameAnalysis, corrections: Sequence[Correction]) -> list[bool]:
    """For every correction of an atom, whether the image bears it out.

    The level at its place (host column 1, middle of a ring 0) has to be that of what it claims: a silicon atom as dark
    as carbon, or an atom deleted where a column shines, is a slip or worse.

    Parameters
    ----------
    frame, analysis
        The image, and what the model made of it.
    corrections : sequence of Correction
        Of this frame; renamings are left out.
    """
    host = get_material(analysis.material)
    sites, bonds = analysis.sites, analysis.bonds
    faces = find_faces(analysis.pixel_size.to_nm(sites.yx_px), bonds.a, bonds.b)
    rings = [faces.nodes(int(f)) for f in np.flatnonzero((faces.size == 6) & (faces.area > 0))]
    middles = np.array([sites.yx_px[r].mean(axis=0) for r in rings]).reshape(-1, 2)
    columns = sites.yx_px[np.isin(sites.species, host.species) & ~sites.edge]
    image = gaussian_filter(mend(frame.image).image.astype(np.float64), min(0.022 / analysis.pixel_size.nm, 8.0))

    def raw(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(map_coordinates(image, points.reshape(-1, 2).T, order=1, mode="nearest"))

    def level(yx: tuple[float, float]) -> float:
        reach = 1.0 / analysis.pixel_size.nm
        near_c = columns[np.hypot(*(columns - yx).T) < reach] if len(columns) else columns
        near_m = middles[np.hypot(*(middles - yx).T) < reach] if len(middles) else middles
        if len(near_c) < 4 or len(near_m) < 2:
            return float("nan")
        dark = float(np.median(raw(near_m)))
        return (float(raw(np.array(yx))[0]) - dark) / max(float(np.median(raw(near_c))) - dark, 1e-9)

    def heavy(symbol: str) -> bool:
        return element(symbol) > 1.5 * max(element(s) for s in host.species)

    result = []
    for c in corrections:
        if c.action == "rename":
            continue
        here = level(c.yx_px)
        if np.isnan(here) or host.kind == "mx2":
            result.append(True)  # too little around to judge by, or columns of very different brightness
        elif c.action in ("add", "species"):
            result.append(here > 1.4 if heavy(c.species) else 0.35 < here < 2.4)
        elif c.action == "delete":
            result.append(here < 0.65)
        else:
            assert c.to_y_px is not None
            assert c.to_x_px is not None
            result.append(level((c.to_y_px, c.to_x_px)) > here - 0.15)
    return result


def _target(done: FrameAnalysis, atoms: Sequence[Correction], small: tuple[int, int], shape: tuple[int, int],
            recipe: Recipe) -> NDArray[np.uint8]:
    number: Mapping[str, int] = {name: k for k, name in enumerate(recipe.classes)}
    sites, pitch = done.sites, recipe.pixel_size_nm
    foreign = ~np.isin(sites.species, recipe.host) & ~np.isin(sites.species, ("N", "B", "O"))
    labels = np.where(foreign & ("dopant" in number), number.get("dopant", 1), number.get("lattice", 1))
    positions = to_model_px(sites.yx_px, shape, small)
    radius = np.full(len(sites), recipe.radius_nm / pitch)
    bond_px = get_material(done.material).bond_nm / done.pixel_size.nm
    gone = np.array([c.yx_px for c in atoms if c.action == "delete"], dtype=np.float64).reshape(-1, 2)
    if len(gone) and len(sites):
        distance = np.min(np.hypot(*(gone[:, None] - sites.yx_px[None]).transpose(2, 0, 1)), axis=1)
        gone = gone[distance > 0.6 * bond_px]
    if len(gone) and "vacancy" in number:
        positions = np.concatenate([positions, to_model_px(gone, shape, small)])
        labels = np.concatenate([labels, np.full(len(gone), number["vacancy"])])
        radius = np.concatenate([radius, np.full(len(gone), recipe.vacancy_radius_nm / pitch)])
    target = class_map(positions, labels, shape=small, radius_px=radius)
    rows, columns = np.indices(small)

    def ignore(points: NDArray[np.float64], reach_px: float) -> None:
        for y, x in to_model_px(points.reshape(-1, 2), shape, small):
            target[(rows - y) ** 2 + (columns - x) ** 2 < reach_px**2] = IGNORE

    ignore(sites.yx_px[sites.score < DOUBTED], 2.0 * recipe.radius_nm / pitch)
    # Where atoms are missing the network has a class of its own, of which a person who corrects atoms says nothing.
    holes = [d.center_px for d in done.defects if d.missing_atoms
             and (len(gone) == 0 or np.min(np.hypot(*(gone - d.center_px).T)) > 1.5 * bond_px)]
    if "vacancy" in number:
        ignore(np.array(holes, dtype=np.float64), 0.16 / pitch)
    if done.mask is not None and done.mask.any() and done.mask.shape == small:
        target[done.mask] = IGNORE
    return target


def join(crops: Sequence[Crops], recipe: Recipe) -> Crops:
    """Several sets of crops as one."""
    size = recipe.crop_px
    if not crops:
        return Crops(np.zeros((0, size, size), np.float16), np.zeros((0, size, size), np.uint8), ())
    return Crops(np.concatenate([c.images for c in crops]), np.concatenate([c.targets for c in crops]),
                 tuple(o for c in crops for o in c.origins), tuple(u for c in crops for u in c.unused),
                 tuple(s for c in crops for s in c.supported))
