"""What `stemdl library`, `conditions` and `explain` do."""

from __future__ import annotations

import io
import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .commands import check_element, progress_bar, say
from .corrections import apply_corrections, by_frame, read_corrections
from .errors import ReadError, StemdlError
from .io import read_frame, read_sequence
from .library import build_library, default_library_folder
from .library_store import FILE, Library, class_atoms, load_library, save_decisions, save_library

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .analysis import FrameAnalysis
    from .frames import Frame, FrameSequence


def library(args: Namespace) -> None:
    """One of the actions on a library."""
    {"build": _build, "list": _list, "show": _show, "name": _name, "merge": _merge, "drop": _drop}[args.action](args)


def analysed(files: list[Path], args: Namespace, *, quiet: bool,
             most: int | None = None) -> Iterator[tuple[str, Frame, FrameAnalysis]]:
    """Every frame of every file with its analysis; frames that cannot be used are passed over."""
    from .pipeline import analyze_frame
    from .weights import load_model

    for file in files:
        if not file.exists():
            raise StemdlError(f"{file}: no such file")
    check_element(args.dopant)
    model = load_model(args.model, device=args.device)
    usable, reason = 0, ""
    for file in files:
        sequence = frames_of(file, fov_nm=args.fov_nm, pixel_size_nm=args.pixel_size_nm, key=args.key)
        count = len(sequence)
        which = np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(int)).tolist()
        with progress_bar(len(which), file.name, quiet=quiet) as bar:
            for k in which:
                bar.update()
                try:
                    frame = sequence[k]
                    analysis = analyze_frame(frame, model, dopant=args.dopant, material=args.material)
                except StemdlError as error:
                    reason = reason or f"{file}: frame {k}: {error}"
                    continue
                usable += 1
                yield str(file), frame, analysis
    if not usable:
        raise StemdlError(reason or "no frames")


def frames_of(file: Path, *, fov_nm: float | None = None, pixel_size_nm: float | None = None,
              key: str | None = None) -> Sequence[Frame] | FrameSequence:
    """The frames of a movie, or the one of an image."""
    try:
        return read_sequence(file, fov_nm=fov_nm, pixel_size_nm=pixel_size_nm, key=key)
    except ReadError:
        # Not a movie; if it is no image either, that is the message to show.
        return [read_frame(file, fov_nm=fov_nm, pixel_size_nm=pixel_size_nm, key=key)]


def _folder(args: Namespace) -> Path:
    return args.library or default_library_folder()


def _build(args: Namespace) -> None:
    from dataclasses import replace

    from .imaging_conditions import MOST_FRAMES, measure_conditions

    folder = args.out or default_library_folder()
    previous = load_library(folder) if (folder / FILE).is_file() else None
    given = [] if args.corrections is None else read_corrections(args.corrections)
    corrected = {(Path(source).name, number): group for (source, number), group in by_frame(given)}
    kept: list[tuple[Frame, FrameAnalysis]] = []

    def items() -> Iterator[tuple[str, Frame, FrameAnalysis]]:
        for item in analysed(args.files, args, quiet=args.quiet, most=args.frames):
            source, frame, analysis = item
            group = corrected.get((Path(source).name, analysis.frame))
            if group is not None:
                analysis = apply_corrections(analysis, group)
            if len(kept) < MOST_FRAMES:
                kept.append((frame, analysis))
            yield source, frame, analysis

    with progress_bar(None, "sorting", quiet=args.quiet) as bar:
        result = build_library(items(), previous=previous, progress=lambda done, total: bar.update(done - bar.n))
    try:
        result = replace(result, conditions=measure_conditions(kept).to_dict())
    except StemdlError as error:
        say(args.quiet, f"note          {error}")
    save_library(folder, result, extra=sheets(result))
    frames = sum(n for _, n in result.sources)
    say(args.quiet, f"{frames} frames, {sum(c.count for c in result.classes)} defects, {len(result.classes)} classes")
    _print_list(result, args.quiet)
    say(args.quiet, f"written to    {folder}/: classes.png, library.json; K1.png, K1.npy, K1.xyz, ...")
    flag = "" if folder == default_library_folder() else f" --library {folder}"
    say(args.quiet, f'name them     stemdl library name K1 "..."{flag}')


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    from .figures import save_figure

    buffer = io.BytesIO()
    save_figure(figure, buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


def sheets(result: Library) -> dict[str, bytes]:
    """The pictures of a library by file name."""
    from .figures.library import contact_sheet, overview

    files = {f"{c.id}.png": png(contact_sheet(result, c)) for c in result.classes}
    return {"classes.png": png(overview(result)), **files}


def _print_list(result: Library, quiet: bool) -> None:
    say(quiet, f"{'class':<7}{'count':>6}  {'novelty':>7}  {'name':<22}what it is")
    for c in result.shown():
        name = result.label(c.id) if c.name else f"({result.label(c.id)})"
        what = c.composition + (f", {c.missing} missing" if c.missing else "")
        what += f", {c.kind}" if c.kind != "single" else ""
        what += f", sub-class of {c.sub_class_of}" if c.sub_class_of else ""
        joined = [a for a in result.merged if result.head(a) == c.id]
        what += f", with {' '.join(joined)}" if joined else ""
        say(quiet, f"{c.id:<7}{result.count(c.id):>6}  {c.novelty:>7.2f}  {name:<22}{what}")


def _list(args: Namespace) -> None:
    result = load_library(_folder(args))
    _print_list(result, False)


def _show(args: Namespace) -> None:
    folder = _folder(args)
    result = load_library(folder)
    c = result.find(args.which)
    say(False, f"{c.id}  {result.label(c.id)}" + ("" if c.name else "  (not named)"))
    say(False, f"found as      {', '.join(f'{n} {name}' for name, n in c.found_as)}; {c.variants} graphs; {c.kind}")
    say(False, f"composition   {c.composition}, {c.missing} missing; novelty {c.novelty:.2f}")
    atoms = class_atoms(c)
    own = set(np.flatnonzero(c.geometry.core).tolist())
    lengths = [(f"{atoms.symbols[a]}-{atoms.symbols[b]}",
                1e3 * float(np.hypot(*(c.geometry.yx_nm[a] - c.geometry.yx_nm[b]))))
               for a, b in c.bonds.tolist() if a in own and b in own]
    if lengths:
        say(False, "bonds         " + ", ".join(f"{pair} {pm:.0f}" for pair, pm in sorted(lengths)[:16]) + " pm")
    for m in c.members[:20]:
        say(False, f"  {m.source}  frame {m.frame}  y {m.y_px:.1f} x {m.x_px:.1f} px  as {m.found_as}  "
                   f"misfit {m.excess:+.1f}")
    if c.count > 20:
        say(False, f"  and {c.count - 20} more, see {folder / FILE}")
    say(False, f"look at       {folder / (c.id + '.png')}")


def _name(args: Namespace) -> None:
    folder = _folder(args)
    result = load_library(folder)
    c = result.find(args.which)
    changed = result.named(args.which, args.name)
    _write(folder, changed, c.id)
    say(args.quiet, f"{c.id} is now {changed.label(c.id)!r}")


def _merge(args: Namespace) -> None:
    folder = _folder(args)
    changed = load_library(folder).joined(args.which)
    head = changed.head(changed.find(args.which[0]).id)
    _write(folder, changed, head)
    say(args.quiet, f"{head} {changed.label(head)!r} now has {changed.count(head)} members")


def _drop(args: Namespace) -> None:
    folder = _folder(args)
    result = load_library(folder)
    _write(folder, result.without(args.which))
    say(args.quiet, f"{result.find(args.which).id} is out of sight")


def _write(folder: Path, changed: Library, *redraw: str) -> None:
    """Decisions into the library, pictures that show them after it."""
    from .figures.library import contact_sheet, overview

    save_decisions(folder, changed)
    pictures = {"classes.png": png(overview(changed))}
    pictures |= {f"{i}.png": png(contact_sheet(changed, changed.find(i))) for i in redraw}
    for name, content in pictures.items():
        temporary = folder / f".{name}.part"
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)


def conditions(args: Namespace) -> None:
    """Imaging conditions of some files."""
    from .imaging_conditions import MOST_FRAMES, measure_conditions

    items = [(frame, analysis) for _, frame, analysis in analysed(args.files, args, quiet=args.quiet,
                                                                  most=MOST_FRAMES)]
    measured = measure_conditions(items)
    if args.json:
        print(json.dumps(measured.to_dict(), indent=1))
        return
    dose = measured.dose_e_per_atom
    known = "not known: the noise shows no single electrons" if not np.isfinite(dose[1]) else \
        f"{dose[1]:.0f} detected electrons a host atom ({dose[0]:.0f} to {dose[2]:.0f})"
    say(args.quiet, f"frames        {measured.frames}\n"
                    f"pixel size    {1e3 * measured.pixel_nm[1]:.3g} pm\n"
                    f"probe         {2355 * measured.sigma_nm[1]:.0f} pm full width at half maximum, ellipticity "
                    f"{measured.ellipticity:.2f}; {100 * measured.tail_fraction:.0f} % in a tail of "
                    f"{2355 * measured.tail_sigma_nm:.0f} pm\n"
                    f"dose          {known}\n"
                    f"background    {measured.background_e_per_px:.3g} electrons a pixel\n"
                    f"line jitter   {1e3 * measured.jitter_nm:.2g} pm\n"
                    f"misfit        {measured.misfit:.2f} (1: the noise is that of counts)")


def explain(args: Namespace) -> None:
    """A picture of what the network looks at."""
    from .commands import default_folder
    from .explain import explain as run
    from .figures.explain import explanation
    from .weights import load_model
    from .writers import result_folder, strict_json

    folder = args.out or Path(str(default_folder(args.image)).replace("-stemdl", "-explain"))
    frame = read_frame(args.image, fov_nm=args.fov_nm, pixel_size_nm=args.pixel_size_nm, frame=args.frame, key=args.key)
    check_element(args.dopant)
    model = load_model(args.model, device=args.device)
    with result_folder(folder) as temporary, progress_bar(None, "occluding", quiet=args.quiet) as bar:
        result = run(frame, model, args.at, dopant=args.dopant, material=args.material,
                     progress=lambda done, total: bar.update(done - bar.n))
        (temporary / "explain.png").write_bytes(png(explanation(frame, result)))
        np.save(temporary / "occlusion.npy", result.occlusion)
        np.save(temporary / "saliency.npy", result.saliency)
        (temporary / "explain.json").write_text(strict_json(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    say(args.quiet, f"{result.title}: half of what decides lies within {1e3 * result.half_radius_nm:.0f} pm")
    say(args.quiet, f"written to    {folder}/: explain.png, occlusion.npy, saliency.npy, explain.json")
