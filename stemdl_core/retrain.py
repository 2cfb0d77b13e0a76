"""Retraining: found structures and corrections become a new version of the model, or are turned down with reasons."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import FrameAnalysis
from .compare_models import Scores, Verdict, judge_versions, score_model
from .corrections import Correction, by_frame
from .errors import ModelError, StemdlError
from .finetune import Schedule, fine_tune
from .frames import Frame
from .imaging_conditions import Measured
from .library_store import Library
from .recipes import Recipe, training_example
from .retrain_data import (
    Arrays,
    Crops,
    Structure,
    corrected_crops,
    found_example,
    found_frames,
    join,
    simulated_arrays,
    structures,
)
from .simulate.dataset import SimulatedFrame
from .tuning import simulated_frames
from .weights import load_model, read_card, save_model, write_card

#: Seed of the standard simulated set: the same for every version, and of no training.
STANDARD_SEED = 4711
#: At least this part of the corrections has to be borne out by their images.
LEAST_SUPPORTED = 0.75
#: Fewer steps teach nothing, however few the examples.
FEWEST_STEPS = 60
#: Numbers of original training frames start here: not the ones that the parent was trained on.
_FRESH = 20_000_000


@dataclass(frozen=True)
class Settings:
    """How a retraining is done.

    Attributes
    ----------
    frames : int
        Simulated frames of the found structures, and as many of the original ones.
    passes : float
        How often each is seen.
    minutes : float
        Longest training [min].
    margin : float
        Largest loss of any score.
    test_frames : int
        Frames of each test set.
    seed : int
    """

    frames: int = 400
    passes: float = 4.0
    minutes: float = 8.0
    margin: float = 0.01
    test_frames: int = 24
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a retraining.

    Attributes
    ----------
    verdict : Verdict
    folder : Path or None
        The new version; None where it was turned down or the run was stopped.
    before, after : Scores
    notes : tuple of str
    """

    verdict: Verdict
    folder: Path | None
    before: Scores
    after: Scores
    notes: tuple[str, ...] = ()


Progress = Callable[[str, int, int], None]
#: Image of a source and frame number, and its analysis by the parent.
FrameOf = Callable[[str, int], tuple[Frame, FrameAnalysis]]


def retrain(parent: Path, folder: Path, *, library: Library | None = None, which: Sequence[str] = (),
            corrections: Sequence[Correction] = (), frame_of: FrameOf | None = None,
            settings: Settings | None = None, progress: Progress | None = None,
            stop: Callable[[], bool] | None = None) -> Outcome | None:
    """Teach a model what was found and corrected; keep the result only if it is better.

    Parameters
    ----------
    parent : Path
        Folder of the model to start from; it is never changed.
    folder : Path
        Of the new version; made only if it is kept.
    library : Library, optional
        Found structures.
    which : sequence of str
        Classes to teach; all that have a name when empty.
    corrections : sequence of Correction
    frame_of : callable, optional
        ``frame_of(source, number)`` gives the image and its analysis by the parent; needed for corrections.
    settings : Settings, optional
    progress : callable, optional
        ``progress(stage, done, total)``.
    stop : callable, optional
        Asked often; True ends the run, which the same call continues later.

    Returns
    -------
    Outcome or None
        None when stopped.

    Raises
    ------
    StemdlError
        If there is nothing to learn from, or the folder is taken.
    """
    settings = settings or Settings()
    tell = progress or (lambda stage, done, total: None)
    card = read_card(parent)
    if folder.exists():
        raise ModelError(f"{folder} exists already: choose another folder for the new version")
    recipe = _recipe(card.recipe, card.name)
    found: list[Structure] = []
    notes: list[str] = []
    if library is not None and (which or any(c.name for c in library.shown())):
        found, notes = structures(library, which)
        library = _with_names(library, found)
    crops = _crops(corrections, frame_of, recipe)
    notes += list(crops.unused)
    if not found and not len(crops):
        raise StemdlError("nothing to learn from: name classes of the library, or give corrections of atoms")
    if not _believable(crops):
        verdict = _unsupported(crops)
        return Outcome(verdict, None, Scores(), Scores(), tuple(notes))
    measured = Measured.from_dict(library.conditions) if library is not None and library.conditions else None
    identity = _identity(card.sha256, library, found, corrections, settings)
    work = folder.with_name(f".{folder.name}-work")
    if work.exists() and not _same(work, identity):
        shutil.rmtree(work)
    taught, held = crops.split()
    sets = _sets(recipe, found, measured, taught, settings, work, identity, tell, stop)
    if sets is None:
        return None
    total = sum(len(s[0]) for s in sets[:2])
    steps = max(int(settings.passes * total / 16), FEWEST_STEPS)
    shares = (0.5, 0.4, 0.1) if found else (0.0, 0.65, 0.35)
    weights = {str(n): float(w) for n, w in recipe.class_weights}
    network = fine_tune(parent, sets, work, Schedule(steps, settings.minutes, shares=shares), identity=identity,
                        class_weights=weights, seed=settings.seed, stop=stop,
                        progress=lambda done, of: tell("train", done, of))
    if network is None:
        return None
    candidate = work / "candidate"
    name, version = _version(card.name, folder)
    save_model(candidate, network, replace(card, name=name, version=version, parent=f"{card.name}:{card.sha256}"))
    standard = list(standard_set(card.materials, settings.test_frames))
    test = found_frames(found, measured, count=settings.test_frames, seed=settings.seed) if found else []
    number = 2 * (len(test) + len(standard))
    scores = []
    for k, place in enumerate((parent, candidate)):
        first = k * (len(test) + len(standard))

        def tested(done: int, first: int = first) -> None:
            tell("compare", first + done, number)

        scores.append(score_model(load_model(place), library=library, found=test, crops=held, standard=standard,
                                  progress=tested))
        if stop is not None and stop():
            return None
    verdict = judge_versions(scores[0], scores[1], margin=settings.margin)
    if not verdict.kept:
        shutil.rmtree(work, ignore_errors=True)
        return Outcome(verdict, None, scores[0], scores[1], tuple(notes))
    record = _record(card.name, card.sha256, found, crops, corrections, measured, verdict, settings)
    write_card(candidate, replace(read_card(candidate), scores={**card.scores, "retrained": record}))
    folder.parent.mkdir(parents=True, exist_ok=True)
    candidate.rename(folder)
    shutil.rmtree(work, ignore_errors=True)
    return Outcome(verdict, folder, scores[0], scores[1], tuple(notes))


def _believable(crops: Crops) -> bool:
    return float(np.mean(crops.supported)) >= LEAST_SUPPORTED if crops.supported else True


def _unsupported(crops: Crops) -> Verdict:
    """Turned down before any training: the images contradict the corrections."""
    good, total = sum(crops.supported), len(crops.supported)
    row = {"part": "new", "measure": "new: corrections the image supports", "before": good / total,
           "after": float("nan"), "cases": total, "verdict": "too few"}
    return Verdict(False, f"the images contradict {total - good} of {total} corrections", (row,))


def standard_set(materials: Sequence[str], count: int) -> Iterable[SimulatedFrame]:
    """The standard simulated set: the conditions and defects of practice."""
    return simulated_frames(materials, count, seed=STANDARD_SEED, dose_e_per_atom=(50.0, 500.0), nuisance=0.25,
                            fov_nm=(2.5, 4.0))


def _recipe(data: Any, name: str) -> Recipe:
    if not data:
        raise ModelError(f"model {name!r} has no recipe on its card: what it learned first cannot be repeated")
    return Recipe.from_dict(dict(data))


def _with_names(library: Library, found: Sequence[Structure]) -> Library:
    """The library in which every taught class has a name of its own: what the comparison looks for."""
    taught = {s.class_id: s.name for s in found}
    return replace(library, classes=tuple(replace(c, name=c.name or taught.get(c.id, "")) for c in library.classes))


def _crops(corrections: Sequence[Correction], frame_of: FrameOf | None, recipe: Recipe) -> Crops:
    parts = []
    for (source, number), several in by_frame(corrections):
        if all(c.action == "rename" for c in several):
            continue
        if frame_of is None:
            raise StemdlError(f"the image {source} of the corrections is not at hand")
        frame, analysis = frame_of(source, number)
        moved = [replace(c, frame=analysis.frame) for c in several]
        parts.append(corrected_crops(frame, analysis, moved, recipe))
    return join(parts, recipe)


def _identity(sha: str, library: Library | None, found: Sequence[Structure], corrections: Sequence[Correction],
              settings: Settings) -> str:
    text = json.dumps([sha, [(s.class_id, s.name, s.count) for s in found],
                       {} if library is None else library.conditions, [c.to_dict() for c in corrections],
                       [settings.frames, settings.passes, settings.seed]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _same(work: Path, identity: str) -> bool:
    try:
        return (work / "identity").read_text() == identity
    except OSError:
        return False


def _sets(recipe: Recipe, found: Sequence[Structure], measured: Measured | None, crops: Crops, settings: Settings,
          work: Path, identity: str, tell: Progress, stop: Callable[[], bool] | None) -> list[Arrays] | None:
    """Found, original and corrected examples; simulated ones are kept in the work folder in case of interruption."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "identity").write_text(identity)
    count = settings.frames
    total = count * (2 if found else 1)
    base = np.random.default_rng([settings.seed, 5]).integers(1_000_000) * 10
    plans: list[tuple[str, Callable[[int], Any]]] = []
    if found:
        plans.append(("found", lambda k: found_example(found, recipe, measured, settings.seed, k)))
    plans.append(("original", lambda k: training_example(recipe, int(_FRESH + base + k))))
    result: dict[str, Arrays] = {}
    for n, (name, example) in enumerate(plans):
        parts: list[Arrays] = []
        for first in range(0, count, 50):
            file = work / f"{name}-{first}.npz"
            if file.is_file():
                with np.load(file) as stored:
                    parts.append((stored["images"], stored["targets"]))
            else:
                if stop is not None and stop():
                    return None
                some = min(50, count - first)
                shift = n * count + first

                def done(k: int, shift: int = shift) -> None:
                    tell("simulate", shift + k, total)

                def drawn(k: int, first: int = first, example: Callable[[int], Any] = example) -> Any:
                    return example(first + k)

                parts.append(simulated_arrays(some, drawn, progress=done))
                temporary = work / f"{name}-{first}.part.npz"
                np.savez(temporary, images=parts[-1][0], targets=parts[-1][1])
                temporary.replace(file)
        result[name] = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    empty = (np.zeros((0, recipe.crop_px, recipe.crop_px), np.float16),
             np.zeros((0, recipe.crop_px, recipe.crop_px), np.uint8))
    return [result.get("found", empty), result["original"], (crops.images, crops.targets)]


def _version(name: str, folder: Path) -> tuple[str, str]:
    """Name and number of a new version: ``graphene@2`` after ``graphene``."""
    number = folder.name.partition("@")[2]
    if number.isdigit():
        return folder.name, number
    last = name.partition("@")[2]
    return folder.name, str(int(last) + 1 if last.isdigit() else 2)


def next_version(name: str, taken: Iterable[str]) -> str:
    """``graphene@2`` after ``graphene``, ``graphene@4`` where @2 and @3 are taken."""
    base = name.partition("@")[0]
    numbers = [int(t.partition("@")[2]) for t in taken if t.partition("@")[0] == base and t.partition("@")[2].isdigit()]
    return f"{base}@{max([1, *numbers]) + 1}"


def _record(name: str, sha: str, found: Sequence[Structure], crops: Crops, corrections: Sequence[Correction],
            measured: Measured | None, verdict: Verdict, settings: Settings) -> dict[str, Any]:
    """From what a version came, for its card."""
    return {
        "parent": name, "parent_sha256": sha,
        "structures": [{"class": s.class_id, "name": s.name, "members": s.count} for s in found],
        "corrected_crops": [{"source": s, "frame": f} for s, f in dict.fromkeys(crops.origins)],
        "corrections": len(corrections), "corrected_by": sorted({c.who for c in corrections if c.who}),
        "conditions": None if measured is None else measured.to_dict(),
        "settings": {"frames": settings.frames, "passes": settings.passes, "margin": settings.margin,
                     "seed": settings.seed},
        "comparison": [{k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in r.items()}
                       for r in verdict.rows],
        "reason": verdict.reason,
    }
