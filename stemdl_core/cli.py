"""The `stemdl` command: arguments, errors and exit codes; what it does is in `commands` and the library."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ._version import __version__
from .cli_library import HOMES, PARSERS, add_library_option
from .errors import StemdlError

BAD_INPUT, INTERRUPTED, BROKEN = 2, 130, 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def positive(text: str) -> float:
    """A positive finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def count(text: str) -> int:
    """A whole number of at least one."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text!r}")
    return value


def whole(text: str) -> int:
    """A whole number of at least zero."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, not {text!r}")
    return value


def _example(*lines: str) -> str:
    return "example:\n" + "\n".join(f"  {line}" for line in lines)


def build_parser() -> Parser:
    """The parser with all its commands."""
    parser = Parser(
        prog="stemdl",
        description="Atoms, chemical defects and their transformations from atomically resolved STEM images.",
        epilog=_example("stemdl demo", "stemdl annotate graphene.dm4", "stemdl track movie.npy --fov-nm 4"),
    )
    parser.add_argument("--version", action="version", version=f"stemdl {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_annotate, _track, *PARSERS, _simulate, _train, _models, _bench, _demo, _swift):
        add(commands)
    return parser


def _command(commands: Any, name: str, summary: str, *example: str) -> Parser:
    parser = commands.add_parser(name, help=summary, description=summary, epilog=_example(*example))
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _calibration(parser: Parser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--fov-nm", type=positive, metavar="F", help="width of the image [nm]")
    group.add_argument("--pixel-size-nm", type=positive, metavar="P", help="pixel size [nm]")
    parser.add_argument("--key", metavar="NAME", help="which array or image, in files that hold several")


def _model(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        default="graphene",
        metavar="NAME|DIR",
        help="an installed model or a folder with one (default: graphene)",
    )
    parser.add_argument(
        "--dopant", metavar="EL", help="element of the bright foreign atoms (default: the model's)"
    )
    parser.add_argument(
        "--material", metavar="NAME", help="host material, for models of several (default: the model's first)"
    )
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda", "mps", "auto"), help="default: cpu"
    )


def _out(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder for the results (default: {default})"
    )


def _annotate(commands: Any) -> None:
    parser = _command(
        commands,
        "annotate",
        "Find and name every atom and defect of one image.",
        "stemdl annotate graphene.dm4",
        "stemdl annotate frames.npy --frame 1 --fov-nm 2 --out si-trimer",
    )
    parser.add_argument(
        "image",
        type=Path,
        metavar="IMAGE",
        help=".npy .npz .tif .png .dm3 .dm4 .emd .h5 .hdf5 .ndata .ndata1 .nhdf",
    )
    _calibration(parser)
    parser.add_argument("--frame", type=whole, metavar="N", help="which frame of a sequence, from 0")
    _model(parser)
    add_library_option(parser)
    _out(parser, "./<stem>-stemdl")
    parser.add_argument(
        "--report", action="store_true", help="also one figure a defect, with bonds and angles"
    )
    parser.add_argument("--hdf5", action="store_true", help="also analysis.h5 with image and tables")
    parser.add_argument(
        "--cutouts", action="store_true", help="also POSCAR and CIF of each defect with its surroundings"
    )
    parser.add_argument("--graph", action="store_true", help="also graph.graphml: atoms, bonds and vacancies")


def _track(commands: Any) -> None:
    parser = _command(
        commands,
        "track",
        "Follow the defects of a movie and report their transformations.",
        "stemdl track movie.dm4",
        "stemdl track movie.npy --fov-nm 4 --frame-time-s 0.5",
    )
    parser.add_argument("movie", type=Path, metavar="MOVIE", help="a (T, H, W) array or a series of images")
    _calibration(parser)
    parser.add_argument("--frame-time-s", type=positive, metavar="T", help="time from frame to frame [s]")
    _model(parser)
    add_library_option(parser)
    parser.add_argument(
        "--search-range-nm",
        type=positive,
        metavar="R",
        help="a defect does not move farther than this between frames [nm] (default: 0.5)",
    )
    parser.add_argument(
        "--memory-frames", type=whole, metavar="N", help="frames a defect may be missing (default: 5)"
    )
    _out(parser, "./<stem>-stemdl")


def _simulate(commands: Any) -> None:
    parser = _command(
        commands,
        "simulate",
        "Simulate an image with exact truth.",
        "stemdl simulate --defects Si-C3,SV --fov-nm 4 --seed 7",
        "stemdl simulate --material MoSe2 --density 0.5 --dose 100 --out mose2",
        "stemdl simulate --movie rotor --frames 60 --fov-nm 2.6",
    )
    parser.add_argument(
        "--material", default="graphene", help="graphene, MoS2, MoSe2, WS2, WSe2 (default: graphene)"
    )
    parser.add_argument(
        "--fov-nm", type=positive, default=4.0, metavar="F", help="field of view [nm] (default: 4)"
    )
    parser.add_argument(
        "--size-px", type=count, default=256, metavar="N", help="pixels a side (default: 256)"
    )
    parser.add_argument(
        "--defects",
        metavar="KINDS",
        help="comma-separated kinds, one defect each (Si-C3, Si-C4, SV, Si3C6, ...)",
    )
    parser.add_argument(
        "--density", type=positive, metavar="D", help="random defects per nm2, instead of --defects"
    )
    parser.add_argument("--dopant", metavar="EL", help="foreign element (default: Si; W or Mo for MX2)")
    parser.add_argument(
        "--rotation-deg", type=float, default=10.0, metavar="A", help="of the lattice (default: 10)"
    )
    parser.add_argument(
        "--dose",
        type=positive,
        default=300.0,
        metavar="E",
        help="detected electrons per host atom (default: 300)",
    )
    parser.add_argument(
        "--nuisance",
        action="store_true",
        help="draw blur, scan distortions, contamination and noise at random, as in training",
    )
    parser.add_argument(
        "--movie",
        metavar="SCENARIO",
        help="a movie: switching, hopping, rotor, dimer, vacancy or visitors",
    )
    parser.add_argument("--frames", type=count, default=60, metavar="N", help="of the movie (default: 60)")
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of everything random (default: 0)"
    )
    _out(parser, "./simulated-stemdl")


def _train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        "Train a model from simulated images.",
        "stemdl train graphene --out my-graphene",
        "stemdl train graphene --out my-graphene --resume",
        "stemdl train graphene --imaging stm --out my-stm",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or a JSON file with one")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the new model (default: ./<name>-model)"
    )
    parser.add_argument("--resume", action="store_true", help="continue a run from its folder")
    parser.add_argument("--start-from", metavar="NAME|DIR", help="fine-tune this model")
    parser.add_argument("--imaging", choices=("stem", "stm"), help="microscope of the images (default: the recipe's)")
    parser.add_argument("--architecture", choices=("unet", "paper"), help="default: the recipe's")
    parser.add_argument("--epochs", type=count, metavar="N")
    parser.add_argument("--frames", type=count, metavar="N", help="simulated training frames")
    parser.add_argument("--seed", type=whole, metavar="N")
    parser.add_argument(
        "--workers", type=whole, default=0, metavar="N", help="processes (default: one a core)"
    )
    parser.add_argument(
        "--device", default="auto", choices=("cpu", "cuda", "mps", "auto"), help="default: auto"
    )


def _models(commands: Any) -> None:
    parser = _command(
        commands,
        "models",
        "List the installed models and what they were measured to do.",
        "stemdl models",
        "stemdl models graphene",
        "stemdl models --versions",
    )
    parser.add_argument("name", nargs="?", metavar="NAME|DIR", help="show the whole card of this model")
    parser.add_argument(
        "--versions", action="store_true", help="what each retrained version came from, and how it compares"
    )


def _bench(commands: Any) -> None:
    parser = _command(
        commands,
        "bench",
        "Measure accuracy and speed on simulated images (the tables of the README).",
        "stemdl bench speed",
        "stemdl bench --accuracy --out accuracy",
        "stemdl bench architectures --frames 20",
        "stemdl bench defects --frames 200",
        "stemdl bench movies --oracle --frames 60",
        "stemdl bench ablation --keep models",
    )
    parser.add_argument(
        "table", nargs="?", choices=("ablation", "accuracy", "architectures", "chemistry", "defects", "dose", "movies",
                                   "speed")
    )
    parser.add_argument("--accuracy", action="store_true", help="the same as the table 'accuracy'")
    parser.add_argument(
        "--model", action="append", metavar="NAME|DIR", help="may be repeated"
    )
    parser.add_argument("--frames", type=count, metavar="N", help="simulated frames (a dose, a movie)")
    parser.add_argument("--oracle", action="store_true", help="movies: track true atoms, with noise, not images")
    parser.add_argument("--movies", type=count, default=1, metavar="N", help="movies for each row (default: 1)")
    parser.add_argument(
        "--circumstance",
        action="append",
        choices=("usual", "fast drift", "harder"),
        help="of movies, may be repeated (default: usual)",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="ablation: where its small models stay, and are found again"
    )
    _out(parser, "none: only printed")


def _demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "Simulate a small image of Si-doped graphene, annotate it, draw the result.",
        "stemdl demo",
        "stemdl demo --out here --seed 3",
    )
    parser.add_argument("--model", default="graphene", metavar="NAME|DIR", help="default: graphene")
    parser.add_argument("--seed", type=whole, default=4, metavar="N")
    _out(parser, "./demo-stemdl")


def _swift(commands: Any) -> None:
    _command(
        commands,
        "swift",
        "Start Nion Swift with the plugin and a simulated microscope whose specimen has atoms.",
        "stemdl swift",
    )


#: Where each command is carried out; imported only when it is called, so that --help is quick.
_HOMES = {
    "annotate": "commands",
    "track": "commands",
    "demo": "commands",
    "swift": "commands",
    "simulate": "commands_simulate",
    "models": "commands_models",
    "train": "commands_models",
    "bench": "commands_models",
    **HOMES,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where left out.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with _console() if argv is None else contextlib.nullcontext():
            run = getattr(importlib.import_module(f".{_HOMES[args.command]}", __package__), args.command)
            run(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail(
            {
                "train": "interrupted, continue with --resume",
                "track": "interrupted, the same command continues with the frames that are left",
                "retrain": "interrupted, the same command continues",
            }.get(args.command, "interrupted, nothing was written"),
            INTERRUPTED,
        )
    except BrokenPipeError:  # the reader of our output has gone: not our error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, (StemdlError, OSError, MemoryError)):
            return _fail(str(error) or "out of memory", BAD_INPUT)
        return _fail(
            f"internal error: {type(error).__name__}: {error} (run with --debug before the command for "
            "the traceback, and report it)",
            BROKEN,
        )
    return 0


def _fail(message: str, code: int) -> int:
    print(f"stemdl: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _console() -> Iterator[None]:
    """What a process of our own may do to itself: ask to stop politely, and hush other libraries."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    for name in ("rsciio", "tifffile", "PIL", "h5py", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    sys.exit(main())
