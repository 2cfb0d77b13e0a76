"""What each ingredient buys: small models, each trained without one of them, on the same disturbed frames."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .bench import TEST_SEED
from .errors import StemdlError
from .evaluate import SiteCounts, compare_sites
from .materials import get_material
from .pipeline import detect
from .recipes import GRAPHENE_CLASSES, Recipe
from .simulate.dataset import SimulatedFrame
from .train import LOG, read_log, train
from .tuning import TOLERANCE_NM, finish_model, network_positions, simulated_frames
from .weights import Model, load_model, read_card

#: Small and quick: the differences between these count, not their height. Small batches, for many steps.
SMALL = Recipe("ablation", ("graphene",), GRAPHENE_CLASSES, filters=(16, 32, 64, 64), dopant="Si", crop_px=64,
               n_train=1200, n_validation=60, epochs=8, batch=8, unrelaxed=0.2)
#: Seed and number of the frames that thresholds are chosen on, not those of the test.
TUNING_SEED, TUNING_FRAMES = 71, 16


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe, and the recipe less one ingredient of the simulator at a time."""
    ranges = recipe.ranges
    return {
        "everything": recipe,
        "labels not moved by jitter and drift": replace(recipe, labels_move=False),
        "no tails of the probe": replace(recipe, ranges=replace(ranges, tail_fraction=(0.0, 0.0))),
        "no contamination, holes, second layers": replace(recipe, ranges=replace(ranges, hiding=0.0)),
    }


def ablation(*, frames: int = 24, recipe: Recipe = SMALL, folder: Path | None = None,
             names: Sequence[str] | None = None, workers: int = 0,
             progress: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Train with and without each ingredient, and measure on the same disturbed frames.

    Every model is measured twice: the sites of the network alone at their blobs' centres, and after the refinement
    on the image, which is an ingredient as well.

    Parameters
    ----------
    frames : int
        Test frames.
    recipe : Recipe
        What all models have in common; frames and first weights of all come from its seed.
    folder : Path, optional
        Keeps the models; those that are already there are not trained again.
    names : sequence of str, optional
        Only these of `variants`.
    workers : int
        Processes that simulate; 0 takes one per core.
    progress : callable, optional
        Called with the number of epochs done.

    Returns
    -------
    pandas.DataFrame
        A row a model and a kind of positions.
    """
    rows, done = [], 0
    with _kept(folder) as place:
        for number, (name, changed) in enumerate(variants(recipe).items()):
            if names is not None and name not in names:
                continue
            here = place / f"{number}"
            started = (here / LOG).is_file()
            before = len(read_log(here, changed)) if started else 0
            if before < changed.epochs:
                for _ in train(changed, here, resume=started, workers=workers):
                    done += 1
                    if progress:
                        progress(done)
            if "tuning" not in read_card(here).scores:
                finish_model(here, count=TUNING_FRAMES, seed=TUNING_SEED)
            model = load_model(here)
            rows += [{"training": name, "positions": kind, **scores}
                     for kind, scores in measure(model, disturbed_frames(recipe, frames)).items()]
    return pd.DataFrame(rows)


def disturbed_frames(recipe: Recipe, count: int) -> Iterator[SimulatedFrame]:
    """Frames with each disturbance on in half of them; the same for all models."""
    return simulated_frames(recipe.materials, count, seed=TEST_SEED + 500, dose_e_per_atom=(50.0, 1000.0),
                            nuisance=0.5, fov_nm=(2.5, 4.0))


@contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """The folder, or one that is gone afterwards."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="stemdl-ablation-") as temporary:
        yield Path(temporary)


def measure(model: Model, simulated: Iterator[SimulatedFrame]) -> dict[str, dict[str, float]]:
    """Scores of the network's blobs, and of the refined sites."""
    kinds = ("network", "refined")
    counts = dict.fromkeys(kinds, SiteCounts())
    errors: dict[str, list[NDArray[np.float64]]] = {k: [] for k in kinds}
    hidden, total = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    for s in simulated:
        pixel = s.conditions.pixel_nm
        material = get_material(s.material)
        blobs, _ = network_positions(model, s.frame, pixel, lowest=model.card.thresholds["site"])
        try:
            refined = detect(s.frame, model, material=material, dopant=model.card.dopant).sites.yx_px
        except StemdlError:
            # What is refused is not found.
            refined = np.empty((0, 2))
        for kind, found in zip(kinds, (blobs, refined), strict=True):
            result = compare_sites(found, s.sites.yx_px, counted=s.visible, undefined=s.hidden == 2,
                                   within_px=TOLERANCE_NM / pixel, border_px=0.5 * material.bond_nm / pixel)
            counts[kind] = counts[kind] + result.counts
            f, t = result.pairs.T
            inner = ~s.sites.edge[t]
            errors[kind].append(1e3 * pixel * (found[f] - s.sites.yx_px[t])[inner])
            cell = np.clip(np.round(found).astype(int), 0, np.asarray(s.frame.shape) - 1)
            hidden[kind] += int((s.hidden[cell[:, 0], cell[:, 1]] == 1).sum())
            total[kind] += len(found)
    rms = {k: float(np.sqrt(np.mean(np.concatenate(e) ** 2))) if sum(map(len, e)) else np.nan
           for k, e in errors.items()}
    return {k: {"site_F1": counts[k].f1, "precision": counts[k].precision, "recall": counts[k].recall,
                "rms_pm": rms[k], "sites_in_hidden_%": 100 * hidden[k] / max(total[k], 1)} for k in kinds}
