"""Arguments of the commands of the learning loop: library, conditions, explain, retrain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def place(text: str) -> tuple[float, float]:
    """``Y,X``: two numbers."""
    try:
        y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a place: give Y,X in pixels, such as 120,88") from None
    return y, x


def add_library_option(parser: Any) -> None:
    """``--library`` of the commands that name defects."""
    parser.add_argument("--library", type=Path, metavar="DIR",
                        help="give defects the names of this library (default: your own, where there is one)")


def add_library(commands: Any) -> None:
    """``stemdl library``."""
    from .cli import Parser, _calibration, _command, _model, count

    parser: Parser = _command(
        commands, "library", "Find, look at and name the kinds of defects in your data.",
        "stemdl library build movie.dm4 image1.dm4 image2.dm4 --out mine",
        "stemdl library list --library mine",
        'stemdl library name K3 "Si3C6 rotor" --library mine',
        "stemdl annotate image3.dm4 --library mine")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str, example: str) -> Parser:
        sub: Parser = actions.add_parser(name, help=summary, description=summary, epilog=f"example:\n  {example}")
        sub.add_argument("--quiet", action="store_true", help="print nothing but errors")
        if name != "build":
            sub.add_argument("--library", type=Path, metavar="DIR", help="default: your own, which annotate uses")
        return sub

    build = action("build", "Analyse images and movies and sort their defects into classes.",
                   "stemdl library build movie.dm4 --out mine")
    build.add_argument("files", type=Path, nargs="+", metavar="FILE", help="images and movies")
    build.add_argument("--out", type=Path, metavar="DIR", help="the library (default: your own, which annotate uses); "
                       "names in an existing one are kept")
    build.add_argument("--corrections", type=Path, metavar="FILE", help="CSV or JSON of corrected atoms, applied first")
    build.add_argument("--frames", type=count, metavar="N", help="at most so many frames of each movie, evenly spread")
    _calibration(build)
    _model(build)
    action("list", "All classes, the most frequent and novel first.", "stemdl library list")
    show = action("show", "One class: geometry, where its members are, its contact sheet.", "stemdl library show K3")
    show.add_argument("which", metavar="CLASS", help="K3, or its name")
    name = action("name", "Name a class; annotate and track use the name from then on.",
                  'stemdl library name K3 "Si3C6 rotor"')
    name.add_argument("which", metavar="CLASS", help="K3, or its name")
    name.add_argument("name", metavar="NAME", help='an empty name ("") takes it back')
    merge = action("merge", "Declare classes the same; the first keeps its name.", "stemdl library merge K3 K7")
    merge.add_argument("which", metavar="CLASS", nargs="+", help="K3 K7 ..., or their names")
    drop = action("drop", "Put a class out of sight, for instance dirt.", "stemdl library drop K9")
    drop.add_argument("which", metavar="CLASS", help="K9, or its name")


def add_conditions(commands: Any) -> None:
    """``stemdl conditions``."""
    from .cli import _calibration, _command, _model

    parser = _command(commands, "conditions",
                      "Measure probe, dose, jitter and background of your own images, for simulation and retraining.",
                      "stemdl conditions image.dm4", "stemdl conditions movie.npy --fov-nm 4 --json")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="images and movies")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    _calibration(parser)
    _model(parser)


def add_explain(commands: Any) -> None:
    """``stemdl explain``."""
    from .cli import _calibration, _command, _model, _out, whole

    parser = _command(commands, "explain", "Show which part of the image the network looks at for one defect or atom.",
                      "stemdl explain graphene.dm4 --at 120,88")
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("--at", type=place, required=True, metavar="Y,X", help="where, in pixels from the upper left")
    parser.add_argument("--frame", type=whole, metavar="N", help="which frame of a sequence, from 0")
    _calibration(parser)
    _model(parser)
    _out(parser, "./<stem>-explain")


def add_retrain(commands: Any) -> None:
    """``stemdl retrain``."""
    from .cli import _command, count, positive, whole

    parser = _command(
        commands, "retrain",
        "Teach the network what was found and corrected; the new version is kept only if it is better.",
        "stemdl retrain --library mine",
        "stemdl retrain --library mine --corrections corrections.csv --images image1.dm4")
    parser.add_argument("--library", type=Path, metavar="DIR", help="found structures (default: your own library)")
    parser.add_argument("--class", dest="classes", action="append", metavar="CLASS",
                        help="teach these classes only (default: all that have a name)")
    parser.add_argument("--corrections", type=Path, metavar="FILE", help="CSV or JSON of corrected atoms")
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FILE",
                        help="the corrected images, where the corrections name them by another path")
    parser.add_argument("--model", default="graphene", metavar="NAME|DIR", help="the version to start from")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="folder of the new version (default: among your own models)")
    parser.add_argument("--minutes", type=positive, default=8.0, metavar="M", help="longest training (default: 8)")
    parser.add_argument("--margin", type=positive, default=0.01, metavar="F",
                        help="by how much no old score may drop (default: 0.01)")
    parser.add_argument("--frames", type=whole, default=400, metavar="N",
                        help="simulated frames of the found structures; as many of the original ones (default: 400)")
    parser.add_argument("--test-frames", type=count, default=24, metavar="N",
                        help="frames of each set on which the versions are compared (default: 24)")
    parser.add_argument("--seed", type=whole, default=1, metavar="N")


#: All of them, in the order of the help; and where they are carried out.
PARSERS = (add_library, add_conditions, add_explain, add_retrain)
HOMES = dict.fromkeys(("library", "conditions", "explain"), "commands_library") | {"retrain": "commands_retrain"}
