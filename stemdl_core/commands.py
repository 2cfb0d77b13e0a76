"""What `stemdl annotate`, `track` and `demo` do."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import Defect, FrameAnalysis
from .calibration import beyond_pixel_size
from .frames import Frame
from .io import read_frame, read_sequence
from .writers import result_folder


def progress_bar(total: int | None, what: str, *, quiet: bool) -> Any:
    """A progress bar on the terminal; nothing where there is none, or with --quiet."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        file=sys.stderr,
        disable=quiet or not sys.stderr.isatty(),
        leave=False,
        delay=0.5,
        dynamic_ncols=True,
    )


def default_folder(source: Path) -> Path:
    """``./<stem>-stemdl``."""
    return Path(f"{source.stem}-stemdl")


def say(quiet: bool, text: str) -> None:
    """Print, unless asked not to."""
    if not quiet:
        print(text)


def check_element(symbol: str | None) -> str | None:
    """A chemical symbol that exists, before anything slow is done."""
    if symbol is not None:
        from .materials import element

        element(symbol)
    return symbol


def annotate(args: Namespace) -> None:
    """One image: results into a folder, a summary on the screen."""
    folder = args.out or default_folder(args.image)
    check_element(args.dopant)
    frame = read_frame(
        args.image, fov_nm=args.fov_nm, pixel_size_nm=args.pixel_size_nm, frame=args.frame, key=args.key
    )
    analysis = annotate_frame(frame, folder, args)
    say(args.quiet, summary(analysis, str(args.image)))
    say(args.quiet, where(folder, args))


def annotate_frame(
    frame: Frame, folder: Path, args: Namespace, *, extra: dict[str, bytes] | None = None
) -> FrameAnalysis:
    """Analyse a frame and write its folder, all of it or nothing."""
    with result_folder(folder) as temporary, progress_bar(4, "loading", quiet=args.quiet) as bar:
        from .pipeline import analyze_frame
        from .weights import load_model

        model = load_model(args.model, device=getattr(args, "device", "cpu"))
        bar.update()
        bar.set_description("finding atoms")
        analysis = analyze_frame(
            frame, model, dopant=getattr(args, "dopant", None), material=getattr(args, "material", None)
        )
        analysis = Namer(args)(analysis)
        bar.update()
        bar.set_description("writing")
        from .results import write_frame_results

        for part in write_frame_results(
            temporary,
            analysis,
            frame,
            report=getattr(args, "report", False),
            hdf5=getattr(args, "hdf5", False),
            cutouts=getattr(args, "cutouts", False),
            graph=getattr(args, "graph", False),
        ):
            if part in ("tables", "overlay.png"):
                bar.update()
        for name, content in (extra or {}).items():
            (temporary / name).write_bytes(content)
    return analysis


def track(args: Namespace) -> None:
    """A movie: results into a folder, a summary on the screen."""
    from dataclasses import replace

    folder = args.out or default_folder(args.movie)
    check_element(args.dopant)
    sequence = read_sequence(
        args.movie,
        fov_nm=args.fov_nm,
        pixel_size_nm=args.pixel_size_nm,
        frame_time_s=args.frame_time_s,
        key=args.key,
    )
    with result_folder(folder) as temporary:
        from .ahead import processors
        from .linking import TrackSettings
        from .movies import kept_when_interrupted, movie_identity, unfinished
        from .pipeline import analyze_frame
        from .results import write_track_results
        from .weights import load_model

        given = {"search_range_nm": args.search_range_nm, "memory_frames": args.memory_frames}
        settings = replace(TrackSettings(), **{k: v for k, v in given.items() if v is not None})
        model = load_model(args.model, device=args.device)
        named = Namer(args)
        identity = movie_identity(
            sequence,
            settings=settings,
            model=model.card,
            dopant=args.dopant,
            material=args.material,
            library=named.names,
        )
        with (
            kept_when_interrupted(unfinished(folder), identity) as journal,
            progress_bar(len(sequence), "frames", quiet=args.quiet) as bar,
        ):
            tracks = write_track_results(
                temporary,
                sequence,
                lambda f: named(analyze_frame(f, model, dopant=args.dopant, material=args.material)),
                settings=settings,
                journal=journal,
                workers=min(processors(), 4) if args.device == "cpu" else 1,
                progress=lambda stage: bar.update(stage == "analyse"),
            )
    say(args.quiet, track_summary(tracks, str(args.movie)))
    say(
        args.quiet,
        f"written to    {folder}/: overlay.gif, timeline.png, trajectories.csv, events.csv, drift.csv, "
        "statistics.json, analysis.jsonl" + (", events.png" if len(tracks.events) else ""),
    )


class Namer:
    """Gives defects the names of the library that was asked for, or of the user's own; else changes nothing.

    ``names`` says which: results that were kept from an interrupted run hold only with the same.
    """

    def __init__(self, args: Namespace) -> None:
        from .library import load_library, users_library

        folder = getattr(args, "library", None)
        self._library = load_library(folder) if folder is not None else users_library()
        self.names: dict[str, str] = {}
        if self._library is not None:
            self.names = {c.id: self._library.label(c.id) for c in self._library.classes if c.name}

    def __call__(self, analysis: FrameAnalysis) -> FrameAnalysis:
        from .library import name_defects

        return analysis if not self.names or self._library is None else name_defects(analysis, self._library)


def demo(args: Namespace) -> None:
    """Simulated silicon-doped graphene, annotated."""
    from .commands_simulate import demo_frame, image_file
    from .writers import strict_json

    folder = args.out or Path("demo-stemdl")
    simulated = demo_frame(args.seed)
    extra = {
        "image.tif": image_file(simulated.frame),
        "truth.json": (strict_json(simulated.truth(), indent=1) + "\n").encode(),
    }
    analysis = annotate_frame(simulated.frame, folder, args, extra=extra)
    truth = Counter(d.name for d in simulated.defects)
    say(args.quiet, summary(analysis, f"simulated image of graphene ({_times(truth)} in it)"))
    say(args.quiet, where(folder, args))
    say(args.quiet, f"look at       {folder / 'overlay.png'}")


def where(folder: Path, args: Namespace) -> str:
    """Where the results are."""
    more = {"graph": "graph.graphml", "hdf5": "analysis.h5", "report": "figures of the defects", "cutouts": "cut-outs"}
    names = ["overlay.png", "analysis.json", "sites.csv", "defects.csv", "structure.xyz",
             *(name for option, name in more.items() if getattr(args, option, False))]
    return f"written to    {folder}/: {', '.join(names)}"


def _times(counter: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counter.most_common()) or "none"


def summary(analysis: FrameAnalysis, source: str) -> str:
    """What was found in one frame, for people."""
    height, width = analysis.shape
    pixel = analysis.pixel_size
    field = f"{width * pixel.nm:.2f} x {height * pixel.nm:.2f} nm"
    lines = [
        source,
        f"image         {width} x {height} px, {field}, {analysis.material}, model {analysis.model}",
        f"pixel size    {pixel_statement(analysis)}",
    ]
    atoms = Counter(analysis.sites.species.tolist())
    at_border = int(np.count_nonzero(analysis.sites.edge))
    lines.append(f"atoms         {_times(atoms)}" + (f" ({at_border} at the border)" if at_border else ""))
    rings = ", ".join(f"{n} of {k}" for k, n in sorted(analysis.rings.items()) if n)
    lines.append(f"rings         {rings or 'none'}")
    lines.append(f"defects       {_times(Counter(d.name for d in analysis.defects))}")
    lines += [f"  {defect_line(d, analysis)}" for d in list(analysis.defects)[:20]]
    if len(analysis.defects) > 20:
        lines.append(f"  and {len(analysis.defects) - 20} more, see defects.csv")
    for element, (fraction, sigma) in analysis.alloy.items():
        lines.append(f"alloy         {element}: {fraction:.3f} ± {sigma:.3f} of its sublattice")
    lines += [f"note          {w}" for w in beyond_pixel_size(analysis.warnings, pixel.source)]
    return "\n".join(lines)


def pixel_statement(analysis: FrameAnalysis) -> str:
    """The pixel size, where it comes from, and how it compares with what was given."""
    pixel = analysis.pixel_size
    text = f"{1e3 * pixel.nm:.4g} pm "
    if pixel.source == "lattice":
        text += "measured on the host lattice"
        if pixel.nominal_nm is None:
            return text + " (the file has no calibration and none was given)"
        return (
            text
            + f" (nominal {1e3 * pixel.nominal_nm:.4g} pm, {100 * (pixel.nm / pixel.nominal_nm - 1):+.1f} %)"
        )
    return text + {"metadata": "from the file", "argument": "as given"}[pixel.source]


def defect_line(defect: Defect, analysis: FrameAnalysis) -> str:
    """One defect on one line: name, place, bond lengths."""
    y, x = analysis.pixel_size.to_nm(defect.center_px)
    text = f"{defect.name:<12}at x {x:.2f}, y {y:.2f} nm"
    if np.isfinite(defect.misorientation_deg):
        text += f"   grains turned by {defect.misorientation_deg:.1f} degrees"
    elif defect.bonds:
        lengths = [f"{b.length_pm:.0f}" for b in defect.bonds]
        text += f"   bonds {' '.join(lengths[:9])}{' ...' if len(lengths) > 9 else ''} pm"
    if defect.missing_atoms:
        text += f"   {defect.missing_atoms} atom{'s' * (defect.missing_atoms > 1)} missing"
    if defect.alternatives:
        text += "   or " + ", ".join(f"{name} ({100 * p:.0f} %)" for name, p in defect.alternatives)
    return text


def track_summary(tracks: Any, source: str) -> str:
    """What happened in a movie, for people."""
    last = {int(i): str(n) for i, n in zip(tracks.track_id, tracks.name)}
    lines = [
        source,
        f"frames        {tracks.frames}" + (f", {len(tracks.faults)} not usable" if tracks.faults else ""),
        f"tracks        {len(last)}: {_times(Counter(last.values()))}",
        f"events        {_times(Counter(e.kind for e in tracks.events))}",
    ]
    for event in list(tracks.events)[:20]:
        change = event.before if event.before == event.after else f"{event.before} -> {event.after}"
        turn = "" if np.isnan(event.angle_deg) else f" by {event.angle_deg:.0f} deg"
        lines.append(
            f"  frame {event.frame:<6} {event.kind:<9} {change.strip(' ->')}{turn}   "
            f"track {' '.join(map(str, event.track_ids))}"
        )
    if len(tracks.events) > 20:
        lines.append(f"  and {len(tracks.events) - 20} more, see events.csv")
    lines += [f"note          frame {number}: {reason}" for number, reason in tracks.faults[:5]]
    return "\n".join(lines)


def swift(args: Namespace) -> None:
    """Nion Swift with the simulated microscope; returns when the user ends it."""
    from .swift_launch import main

    main()
