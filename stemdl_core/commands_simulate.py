"""What `stemdl simulate` does, and the image of `stemdl demo`."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import StemdlError
from .frames import Frame
from .materials import element, get_material
from .simulate.dataset import Conditions, SimulatedFrame, draw_conditions, simulate_frame
from .simulate.degrade import Detector
from .simulate.structures import Specimen, add_defect, graphene, mx2, random_specimen
from .writers import result_folder, strict_json

#: Larger simulations are refused: they would take minutes and gigabytes.
_LARGEST_FIELD_NM, _LARGEST_SIDE_PX = 60.0, 4096


def simulate(args: Namespace) -> None:
    """An image with its truth, in a folder."""
    from .commands import progress_bar, say

    folder = args.out or Path("simulated-stemdl")
    get_material(args.material)
    if args.dopant is not None:
        element(args.dopant)
    if args.defects and args.density:
        raise StemdlError("give either --defects or --density, not both")
    if args.movie and (args.defects or args.density or args.nuisance or args.material != "graphene"):
        raise StemdlError(
            "--movie shows silicon in graphene: give it without --material, --defects, --density "
            "and --nuisance"
        )
    if args.fov_nm > _LARGEST_FIELD_NM or args.size_px > _LARGEST_SIDE_PX:
        raise StemdlError(f"at most {_LARGEST_FIELD_NM:g} nm and {_LARGEST_SIDE_PX} px a side are simulated")
    if args.movie:
        _movie(args, folder)
        return
    rng = np.random.default_rng(args.seed)
    with result_folder(folder) as temporary, progress_bar(None, "simulating", quiet=args.quiet):
        specimen = _specimen(args, rng)
        pixel_nm = args.fov_nm / args.size_px
        if args.nuisance:
            drawn = draw_conditions(rng)
            conditions = replace(
                drawn, pixel_nm=pixel_nm, detector=replace(drawn.detector, dose_e_per_atom=args.dose)
            )
        else:
            conditions = Conditions(pixel_nm=pixel_nm, detector=Detector(dose_e_per_atom=args.dose))
        simulated = simulate_frame(specimen, conditions, rng, shape=(args.size_px, args.size_px))
        write_simulated(temporary, simulated, specimen)
    names = ", ".join(d.name for d in simulated.defects) or "none"
    species, numbers = np.unique(simulated.sites.species, return_counts=True)
    say(
        args.quiet,
        f"simulated     {args.material}, {args.size_px} x {args.size_px} px, {1e3 * pixel_nm:.4g} pm/px",
    )
    say(args.quiet, f"atoms         {', '.join(f'{n} {s}' for s, n in zip(species, numbers))}")
    say(args.quiet, f"defects       {names}")
    say(args.quiet, f"written to    {folder}/: image.tif, truth.json, truth.xyz")


def _specimen(args: Namespace, rng: np.random.Generator) -> Specimen:
    honeycomb = get_material(args.material).kind == "honeycomb"
    dopant = args.dopant or get_material(args.material).dopant
    if args.density:
        return random_specimen(
            args.material,
            args.fov_nm,
            rng,
            density_per_nm2=args.density,
            dopant=dopant,
            pristine_probability=0.0,
            boundary_probability=0.0,
        )
    if honeycomb:
        specimen = graphene(fov_nm=args.fov_nm, rotation_deg=args.rotation_deg)
    else:
        specimen = mx2(material=args.material, fov_nm=args.fov_nm, rotation_deg=args.rotation_deg)
    kinds = [kind.strip() for kind in (args.defects or "").split(",") if kind.strip()]
    return place(specimen, kinds, args.fov_nm, rng, dopant)


def place(
    specimen: Specimen, kinds: list[str], fov_nm: float, rng: np.random.Generator, dopant: str
) -> Specimen:
    """Put one defect of each kind somewhere into the inner part of the field, apart from each other."""
    margin = min(0.5, 0.25 * fov_nm)
    for kind in kinds:
        for attempt in range(40):
            at = tuple(rng.uniform(margin, fov_nm - margin, 2).tolist())
            try:
                specimen = add_defect(specimen, kind, at, rng=rng, dopant=dopant)
                break
            except StemdlError as error:
                if "no room" not in str(error):
                    raise
                if attempt == 39:
                    raise StemdlError(
                        f"no room for {kind} in a field of {fov_nm:g} nm: enlarge --fov-nm"
                    ) from None
    return specimen


def write_simulated(folder: Path, simulated: SimulatedFrame, specimen: Specimen) -> None:
    """``image.tif``, ``truth.json`` and ``truth.xyz``."""
    import ase.io

    (folder / "image.tif").write_bytes(image_file(simulated.frame))
    (folder / "truth.json").write_text(strict_json(simulated.truth(), indent=1) + "\n", encoding="utf-8")
    ase.io.write(folder / "truth.xyz", specimen.atoms, format="extxyz")


def image_file(frame: Frame) -> bytes:
    """A TIFF as ImageJ reads it, with the pixel size in nm."""
    import tifffile

    buffer = io.BytesIO()
    if frame.pixel_size is None:
        tifffile.imwrite(buffer, frame.image, imagej=True)
    else:
        resolution = 1 / frame.pixel_size.nm
        tifffile.imwrite(
            buffer, frame.image, imagej=True, resolution=(resolution, resolution), metadata={"unit": "nm"}
        )
    return buffer.getvalue()


def _movie(args: Namespace, folder: Path) -> None:
    """A movie with its true trajectories, events and drift."""
    import tifffile

    from .commands import progress_bar, say
    from .simulate.movie import MovieConditions, simulate_movie
    from .writers import write_csv

    conditions = MovieConditions().conditions
    taken = replace(
        MovieConditions(),
        fov_nm=args.fov_nm,
        size_px=args.size_px,
        rotation_deg=args.rotation_deg,
        conditions=replace(conditions, detector=replace(conditions.detector, dose_e_per_atom=args.dose)),
    )
    movie = simulate_movie(args.movie, frames=args.frames, rng=np.random.default_rng(args.seed), taken=taken)
    resolution = 1 / movie.pixel_nm
    with result_folder(folder) as temporary, progress_bar(len(movie), "frames", quiet=args.quiet) as bar:

        def frames() -> Iterator[NDArray[np.float32]]:
            for index in range(len(movie)):
                yield movie.image(index)
                bar.update()

        tifffile.imwrite(
            temporary / "movie.tif",
            frames(),
            shape=(len(movie), taken.size_px, taken.size_px),
            dtype=np.float32,
            imagej=True,
            resolution=(resolution, resolution),
            metadata={"unit": "nm", "finterval": taken.frame_time_s, "axes": "TYX"},
        )
        write_csv(temporary / "true-trajectories.csv", movie.trajectories())
        write_csv(temporary / "true-events.csv", movie.event_table())
        write_csv(temporary / "true-drift.csv", movie.drift_table())
    say(
        args.quiet,
        f"simulated     {len(movie)} frames of {taken.size_px} x {taken.size_px} px, "
        f"{1e3 * movie.pixel_nm:.4g} pm/px, {taken.frame_time_s:g} s a frame",
    )
    say(args.quiet, f"events        {len(movie.events)}")
    say(
        args.quiet,
        f"written to    {folder}/: movie.tif, true-trajectories.csv, true-events.csv, true-drift.csv",
    )


def demo_frame(seed: int) -> SimulatedFrame:
    """A small field of graphene with a 3-fold and a 4-fold silicon, a trimer and a vacancy."""
    rng = np.random.default_rng(seed)
    specimen = graphene(fov_nm=4.0, rotation_deg=float(rng.uniform(0, 60)))
    quarters = [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (3.0, 3.0)]
    for kind, center in zip(("Si-C3", "Si-C4", "Si3C6", "SV"), quarters):
        at = tuple((np.array(center) + rng.uniform(-0.25, 0.25, 2)).tolist())
        specimen = add_defect(specimen, kind, at, rng=rng)
    conditions = Conditions(pixel_nm=4.0 / 400, detector=Detector(dose_e_per_atom=400.0), thermal_nm=0.002)
    return simulate_frame(specimen, conditions, rng, shape=(400, 400))
