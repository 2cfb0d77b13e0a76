"""What `stemdl models`, `train` and `bench` do."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import progress_bar, say
from .errors import ModelError, StemdlError
from .weights import list_models, model_folder, read_card
from .writers import result_folder

if TYPE_CHECKING:
    from .recipes import Recipe


def models(args: Namespace) -> None:
    """The installed models, or the card of one."""
    if args.name is not None:
        card = read_card(model_folder(args.name))
        say(args.quiet, json.dumps(asdict(card), indent=1))
        return
    if args.versions:
        from .commands_retrain import show_versions

        show_versions(args)
        return
    found = list_models()
    if not found:
        raise ModelError(
            "no models are installed: reinstall stemdl, or train one with 'stemdl train graphene'"
        )
    for name, folder in found.items():
        card = read_card(folder)
        dopant = f", dopant {card.dopant}" if card.dopant else ""
        say(
            args.quiet,
            f"{name:<18}{', '.join(card.materials)}{dopant}; {card.architecture}, classes "
            f"{' '.join(card.classes)}; {1e3 * card.pixel_size_nm:g} pm/px; {folder}",
        )


def train(args: Namespace) -> None:
    """A new model, epoch by epoch; a run that is stopped continues with --resume."""
    from .figures_training import save_training_curves
    from .train import EpochLog
    from .train import train as run
    from .tuning import finish_model

    recipe = _recipe(args)
    folder = args.out or Path(f"{recipe.name}-model")
    if not args.resume and (folder / "model.json").exists():
        raise ModelError(
            f"{folder} already holds a model: continue it with --resume, or choose another with --out"
        )
    start_from = None if args.start_from is None else model_folder(args.start_from)
    if not folder.exists():
        with result_folder(folder):
            pass  # shows at once whether it can be written
    total = recipe.n_train + recipe.n_validation
    history: list[EpochLog] = []
    with progress_bar(total, "simulating", quiet=args.quiet) as bar:

        def progress(stage: str, done: int, of: int) -> None:
            if bar.total != of:
                bar.reset(of)
                bar.set_description({"simulate": "simulating", "train": "training"}.get(stage, stage))
            bar.update(done - bar.n)

        for log in run(
            recipe,
            folder,
            resume=args.resume,
            device=args.device,
            start_from=start_from,
            workers=args.workers,
            progress=progress,
        ):
            history.append(log)
            if not args.quiet:
                bar.write(
                    f"epoch {log.epoch + 1:3d}   loss {log.train_loss:.4f} / {log.validation_loss:.4f}   "
                    f"accuracy {100 * log.train_accuracy:.2f} / {100 * log.validation_accuracy:.2f} %   "
                    f"{log.seconds:.0f} s{'   best' if log.best else ''}"
                )
            save_training_curves(history, folder / "curves.png", title=recipe.name)
    frames = max(4, min(160, recipe.n_validation))
    try:
        with progress_bar(frames, "tuning", quiet=args.quiet) as bar:
            card = finish_model(
                folder, count=frames, device="cpu", progress=lambda done: bar.update(done - bar.n)
            )
        say(args.quiet, f"site F1       {card.scores['tuning']['f1']:.4f} on {frames} simulated frames")
    except ModelError as error:
        say(args.quiet, f"note          thresholds could not be tuned: {error}")
    say(args.quiet, f"written to    {folder}/: model.safetensors, model.json, log.json, curves.png")
    say(args.quiet, f"use it with   stemdl annotate IMAGE --model {folder}")


def _recipe(args: Namespace) -> Recipe:
    from .recipes import RECIPES, Recipe

    if args.recipe in RECIPES:
        recipe = RECIPES[args.recipe]
    elif Path(args.recipe).suffix == ".json":
        try:
            data = json.loads(Path(args.recipe).read_text(encoding="utf-8"))
            recipe = Recipe.from_dict(data)
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, StemdlError):
                raise
            raise ModelError(f"recipe {args.recipe} cannot be read: {error}") from None
    else:
        raise ModelError(f"unknown recipe {args.recipe!r}: give a JSON file or one of {', '.join(RECIPES)}")
    given = {
        "architecture": args.architecture,
        "epochs": args.epochs,
        "n_train": args.frames,
        "seed": args.seed,
    }
    changes = {k: v for k, v in given.items() if v is not None}
    if args.imaging not in (None, recipe.imaging):
        # Nitrogen is what a tunnelling microscope sees best; nothing in its pictures is masked or of Z-contrast.
        changes |= {"imaging": args.imaging, "name": f"{recipe.name}-{args.imaging}", "dopant": "N", "kinds": ()}
    if "architecture" in changes and changes["architecture"] != recipe.architecture:
        changes["filters"] = ()  # the architecture's own
    if "n_train" in changes:
        changes["n_validation"] = max(min(recipe.n_validation, changes["n_train"] // 4), 1)
    return replace(recipe, **changes)


def bench(args: Namespace) -> None:
    """A table of measured numbers, printed as Markdown and written as CSV."""
    from . import bench as tables

    if args.accuracy:
        if args.table not in (None, "accuracy"):
            raise StemdlError(f"give either --accuracy or the table {args.table!r}")
        args.table = "accuracy"
    if args.table is None:
        raise StemdlError("name a table: ablation, accuracy, architectures, chemistry, defects, dose, movies or speed")
    if args.table == "accuracy":
        _bench_accuracy(args)
        return
    installed = list_models()
    if args.table == "architectures":
        names = args.model or [n for n in ("graphene", "graphene-paper") if n in installed]
        frames = args.frames or 60
        with progress_bar(2 * frames * len(names), "frames", quiet=args.quiet) as bar:
            table = tables.architectures(names, frames=frames, progress=lambda done: bar.update(done - bar.n))
    elif args.table == "dose":
        frames = args.frames or 20
        with progress_bar(frames * len(tables.DOSES), "frames", quiet=args.quiet) as bar:
            table = tables.accuracy_by_dose(
                (args.model or ["graphene"])[0],
                frames_per_dose=frames,
                progress=lambda done: bar.update(done - bar.n),
            )
    elif args.table == "ablation":
        from .bench_ablation import SMALL, ablation, variants

        with progress_bar(SMALL.epochs * len(variants(SMALL)), "epochs", quiet=args.quiet) as bar:
            table = ablation(frames=args.frames or 24, folder=args.keep, progress=lambda done: bar.update(done - bar.n))
    elif args.table == "chemistry":
        from .bench_chemistry import PUBLISHED, geometry

        frames = args.frames or 6
        with progress_bar(frames * len(PUBLISHED), "frames", quiet=args.quiet) as bar:
            table = geometry((args.model or ["graphene"])[0], frames=frames,
                             progress=lambda done: bar.update(done - bar.n))
    elif args.table == "defects":
        from .bench_defects import defects, number_of_frames

        names = args.model or [n for n in ("graphene", "mx2") if n in installed]
        frames = args.frames or 100
        with progress_bar(number_of_frames(names, frames), "frames", quiet=args.quiet) as bar:
            table = defects(names, frames=frames, progress=lambda done: bar.update(done - bar.n))
    elif args.table == "movies":
        from .bench_movies import MOVIE_DOSES, SCENARIOS, movies

        frames, circumstances = args.frames or 72, args.circumstance or ["usual"]
        total = frames * len(MOVIE_DOSES) * len(SCENARIOS) * args.movies * len(circumstances)
        with progress_bar(total, "frames", quiet=args.quiet) as bar:
            table = movies(
                (args.model or ["graphene"])[0],
                circumstances=circumstances,
                seeds=args.movies,
                frames=frames,
                oracle=args.oracle,
                progress=lambda done: bar.update(done - bar.n),
            )
    else:
        with progress_bar(None, "steps", quiet=args.quiet) as bar:
            table = tables.speed(
                (args.model or ["graphene"])[0], progress=lambda done: bar.update(done - bar.n)
            )
    say(args.quiet, tables.to_markdown(table))
    if args.out is not None:
        with result_folder(args.out) as temporary:
            tables.write_table(table, temporary / f"{args.table}.csv")
        say(args.quiet, f"written to    {args.out / (args.table + '.csv')}")


def _bench_accuracy(args: Namespace) -> None:
    """All accuracy tables, one Markdown file with them, and their pictures."""
    from . import bench as tables
    from .bench_accuracy import accuracy_rows, accuracy_tables, position_rows, positions

    names = args.model or [n for n in ("graphene", "mx2") if n in list_models()]
    folder = args.out or Path("accuracy")
    # Seen at once whether it can be written, and not after an hour.
    with result_folder(folder) as temporary:
        rows = accuracy_rows(names)
        with progress_bar(rows + position_rows(), "rows", quiet=args.quiet) as bar:
            measured, judged = accuracy_tables(
                names, frames=args.frames or 20, progress=lambda done: bar.update(done - bar.n)
            )
            measured["positions"] = positions(
                names[0], frames=args.frames or 4, progress=lambda done: bar.update(rows + done - bar.n)
            )
        text = []
        for name, table in measured.items():
            tables.write_table(table, temporary / f"{name}.csv")
            text.append(f"## {name}\n\n{tables.to_markdown(table)}\n")
        (temporary / "accuracy.md").write_text("\n".join(text), encoding="utf-8")
        from .figures.accuracy import positions_over_bound, reliability, sites_by_dose

        error = tables.expected_calibration_error(judged)
        reliability(judged, error=error).savefig(temporary / "reliability.png")
        sites_by_dose(measured["dose"]).savefig(temporary / "dose.png")
        positions_over_bound(measured["positions"]).savefig(temporary / "positions.png")
    say(args.quiet, "\n".join(text))
    say(args.quiet, f"written to    {folder}/: accuracy.md, CSV files, reliability.png, dose.png, positions.png")
