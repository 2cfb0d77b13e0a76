"""What `stemdl retrain` and `stemdl models --versions` do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from ._paths import user_models_folder
from .analysis import FrameAnalysis
from .commands import progress_bar, say
from .corrections import Correction, read_corrections
from .errors import StemdlError
from .frames import Frame
from .library import default_library_folder
from .library_store import FILE, load_library
from .weights import list_models, model_folder, read_card
from .writers import strict_json

_STAGES = {"simulate": "simulating", "train": "training", "compare": "comparing"}


def retrain(args: Namespace) -> None:
    """A new version of a model from what was found and corrected, if it is better."""
    from .retrain import Settings, next_version
    from .retrain import retrain as run

    parent = model_folder(args.model)
    card = read_card(parent)
    folder = args.out or user_models_folder() / next_version(card.name, list_models())
    corrections = [] if args.corrections is None else read_corrections(args.corrections)
    place = args.library or default_library_folder()
    library = load_library(place) if args.library is not None or (place / FILE).is_file() else None
    if library is None and not corrections:
        raise StemdlError("give a library with --library, corrections with --corrections, or both")
    frame_of = image_finder(args.images, args.corrections, parent) if corrections else None
    settings = Settings(frames=max(args.frames, 8), minutes=args.minutes, margin=args.margin,
                        test_frames=args.test_frames, seed=args.seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar(1, "simulating", quiet=args.quiet) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            if bar.total != total or bar.desc.rstrip(": ") != _STAGES[stage]:
                bar.reset(total)
                bar.set_description(_STAGES[stage])
            bar.update(done - bar.n)

        outcome = run(parent, folder, library=library, which=args.classes or (), corrections=corrections,
                      frame_of=frame_of, settings=settings, progress=progress)
    assert outcome is not None
    for note in outcome.notes:
        say(args.quiet, f"note          {note}")
    say(args.quiet, outcome.verdict.text())
    if outcome.folder is None:
        report = folder.with_name(f"{folder.name}-rejected.json")
        data = {"schema": 1, "parent": card.name, "reason": outcome.verdict.reason, "comparison": outcome.verdict.rows}
        report.write_text(strict_json(data, indent=1) + "\n", encoding="utf-8")
        say(args.quiet, f"not kept      {outcome.verdict.reason}; {card.name} stays as it is; table in {report}")
        return
    say(args.quiet, f"kept          {outcome.verdict.reason}")
    name = folder.name if folder.name in list_models() else str(folder)
    say(args.quiet, f"written to    {folder}/: model.safetensors, model.json")
    say(args.quiet, f"use it with   stemdl annotate IMAGE --model {name}")


def image_finder(images: Sequence[Path], beside: Path | None,
                 parent: Path) -> Callable[[str, int], tuple[Frame, FrameAnalysis]]:
    """How the image of a correction is found: by its path, among `images` by name, or beside the corrections."""
    from .commands_library import frames_of
    from .pipeline import analyze_frame
    from .weights import load_model

    model = load_model(parent)
    files = {p.name: p for p in images}
    opened: dict[Path, object] = {}

    def find(source: str, number: int) -> tuple[Frame, FrameAnalysis]:
        name = Path(source).name
        here = None if beside is None else beside.parent / name
        for path in (files.get(name), Path(source), here, images[0] if len(images) == 1 and not source else None):
            if path is not None and path.is_file():
                break
        else:
            raise StemdlError(f"the image {source!r} of the corrections is not there: name it with --images")
        if path not in opened:
            opened.clear()
            opened[path] = frames_of(path)
        sequence = opened[path]
        if number >= len(sequence):  # type: ignore[arg-type]
            raise StemdlError(f"{path} has no frame {number}, which the corrections name")
        frame = sequence[number]  # type: ignore[index]
        return frame, analyze_frame(frame, model)

    return find


def corrected_sources(corrections: Sequence[Correction]) -> list[str]:
    """Files that corrections refer to, each once."""
    return list(dict.fromkeys(c.source for c in corrections))


def show_versions(args: Namespace) -> None:
    """Every installed model and what its retrained versions came from."""
    found = list_models()
    for name, folder in found.items():
        card = read_card(folder)
        record = card.scores.get("retrained")
        if record is None:
            origin = f"trained from {card.parent}" if card.parent else "trained from scratch"
            say(args.quiet, f"{name:<18}version {card.version}, {origin}; {folder}")
            continue
        taught = ", ".join(s["name"] for s in record["structures"]) or "no structures"
        by = f" by {', '.join(record['corrected_by'])}" if record["corrected_by"] else ""
        say(args.quiet, f"{name:<18}version {card.version}, from {record['parent']}; {taught}; "
                        f"{record['corrections']} corrections{by}; {folder}")
        for row in record["comparison"]:
            if row["part"] != "detail" and row["before"] is not None:
                say(args.quiet, f"  {row['measure']:<32}{row['before']:.4f} -> {row['after']:.4f}")
