"""Thresholds and calibrated scores of a trained model, measured on simulated frames that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.optimize import isotonic_regression

from .errors import ModelError
from .evaluate import SiteCounts, compare_sites
from .frames import Frame
from .infer import probability_maps
from .materials import get_material
from .peaks import find_peaks, masked_probability
from .preprocess import from_model_px, mend, model_shape, resample, standardise
from .simulate.dataset import Ranges, SimulatedFrame, draw_conditions, simulate_frame
from .simulate.stm import random_stm
from .simulate.structures import random_specimen
from .weights import Model, ModelCard, load_model, read_card, write_card

#: Sides of the test images [px].
SIDES = (128, 192, 256, 384, 512, 768, 1024)
#: A site is right within this distance of a true one [nm].
TOLERANCE_NM = 0.050
#: Imaging conditions of the test frames: probes of 82 to 137 pm full width at half maximum with moderate tails, as
#: corrected instruments have between 60 and 200 kV, and silicon as bright as Z^n says (n = 1.5-1.8) within 15 %.
#: Training goes beyond, to what is hardly resolved and to dopants of 1.8 times the host's brightness.
PRACTICE = Ranges(sigma_nm=(0.035, 0.058), tail_sigma_nm=(0.10, 0.25), tail_fraction=(0.0, 0.4),
                  dopant_gain=(0.85, 1.15))
#: Probabilities of the class 'masked' that are tried as the limit.
MASKED = (0.3, 0.4, 0.5, 0.6, 0.7)
#: Lowest response that is looked at when thresholds are chosen.
LOWEST_RESPONSE = 0.10


def simulated_frames(materials: Sequence[str], count: int, *, seed: int,
                     dose_e_per_atom: tuple[float, float] = (20.0, 1000.0), nuisance: float = 0.5,
                     fov_nm: tuple[float, float] = (2.0, 6.0), ranges: Ranges | None = None,
                     **specimen: object) -> Iterator[SimulatedFrame]:
    """Simulated frames over the field sizes, pixel counts and doses of practice.

    Parameters
    ----------
    materials : sequence of str
        Hosts, drawn with equal probability.
    count : int
        Number of frames.
    seed : int
        Frame k depends on (seed, k) alone.
    dose_e_per_atom : (float, float)
        Log-uniform range of the dose.
    nuisance : float
        Probability of each disturbance.
    fov_nm : (float, float)
        Range of the field of view.
    ranges : Ranges, optional
        Other imaging conditions; `PRACTICE` by default.
    **specimen
        Passed on to `random_specimen` (``kinds``, ``density_per_nm2``, ...).
    """
    base = replace(ranges or PRACTICE, dose_e_per_atom=dose_e_per_atom, nuisance=nuisance)
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        material = materials[int(rng.integers(len(materials)))]
        fov = rng.uniform(*fov_nm)
        possible = [n for n in SIDES if 0.004 <= fov / n <= 0.030] or [SIDES[2]]
        side = int(rng.choice(possible))
        # Drawn for this pixel size: background and readout noise are electrons a pixel.
        pixel = fov / side
        conditions = replace(draw_conditions(rng, replace(base, pixel_nm=(pixel, pixel))), pixel_nm=pixel)
        specimen_ = random_specimen(material, fov, rng, **specimen)  # type: ignore[arg-type]
        yield simulate_frame(specimen_, conditions, rng, shape=(side, side))


def network_positions(model: Model, frame: Frame, pixel_nm: float, *,
                      lowest: float = LOWEST_RESPONSE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 2) [px] and responses (N,) from the network alone, at a known pixel size."""
    yx, response, masked = _answers(model, frame, pixel_nm, lowest)
    keep = masked <= model.card.thresholds.get("masked", 1.0)
    return yx[keep], response[keep]


def _answers(model: Model, frame: Frame, pixel_nm: float,
             lowest: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Positions [px], responses, and the probability of the class 'masked' around them, masked areas included."""
    card = replace(model.card, thresholds={**model.card.thresholds, "site": lowest})
    image = mend(frame.image).image
    small = model_shape(frame.shape, pixel_nm, card.pixel_size_nm)
    maps = probability_maps(model, standardise(resample(image, small)))
    peaks = find_peaks(card, maps)
    masked = np.zeros(len(peaks.yx_px))
    if "masked" in card.classes and len(masked):
        masked = map_coordinates(masked_probability(card, maps), peaks.yx_px.T, order=0, mode="nearest")
    return from_model_px(peaks.yx_px, frame.shape, small), peaks.response, masked.astype(np.float64)


@dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Attributes
    ----------
    threshold : float
        Response with the best F1.
    masked : float
        Probability of the class 'masked' above which nothing is looked for: that with the best F1, where what is
        found on hidden columns counts as half false.
    knots : ((float, ...), (float, ...))
        Response and probability of being true.
    counts : SiteCounts
        At the threshold, over all frames.
    """

    threshold: float
    masked: float
    knots: tuple[tuple[float, ...], tuple[float, ...]]
    counts: SiteCounts


def tune(model: Model, frames: Sequence[SimulatedFrame] | Iterator[SimulatedFrame], *,
         progress: Callable[[int], None] | None = None) -> Tuning:
    """Choose the threshold on the response and calibrate scores.

    Parameters
    ----------
    model : Model
        Its thresholds are not used.
    frames : sequence of SimulatedFrame
        Must not have been trained on.
    progress : callable, optional
        Called with the number of frames done.
    """
    collected: dict[float, list[_Answers]] = {m: [] for m in MASKED}
    for k, simulated in enumerate(frames):
        pixel_nm = simulated.conditions.pixel_nm
        found, response, masked = _answers(model, simulated.frame, pixel_nm, LOWEST_RESPONSE)
        bond_px = get_material(model.card.materials[0]).bond_nm / pixel_nm
        for limit, answers in collected.items():
            keep = masked <= limit
            result = compare_sites(found[keep], simulated.sites.yx_px, counted=simulated.visible,
                                   undefined=simulated.hidden == 2, border_px=0.5 * bond_px,
                                   within_px=TOLERANCE_NM / pixel_nm)
            cell = np.clip(np.rint(found[keep]).astype(int), 0, np.asarray(simulated.hidden.shape) - 1)
            hidden = simulated.hidden[cell[:, 0], cell[:, 1]] == 1
            hidden[result.false] = False
            answers.append(_Answers(response[keep][result.pairs[:, 0]], response[keep][result.false],
                                    response[keep][hidden], len(result.missed)))
        if progress:
            progress(k + 1)
    choices = [_best_threshold(limit, answers) for limit, answers in collected.items()
               if any(len(a.right) for a in answers)]
    if not choices:
        raise ModelError("the network finds no atoms in the test frames: train it longer")

    def worth(choice: Tuning) -> float:
        # On a column that shows through what hides it a site is right, and yet nothing to rely on: half a false one.
        hidden = sum(int((a.hidden >= choice.threshold).sum()) for a in collected[choice.masked])
        return replace(choice.counts, false=choice.counts.false + hidden // 2).f1

    return max(choices, key=worth)


@dataclass(frozen=True)
class _Answers:
    """Responses in one frame of true sites, of false ones, and of those on hidden columns; and how many were missed."""

    right: NDArray[np.float64]
    wrong: NDArray[np.float64]
    hidden: NDArray[np.float64]
    missed: int


def _best_threshold(masked: float, answers: list[_Answers]) -> Tuning:
    """Threshold and scores from the responses of true and of false sites and the number of missed ones, by frame."""
    right = np.concatenate([a.right for a in answers])
    wrong = np.concatenate([a.wrong for a in answers])
    missed = sum(a.missed for a in answers)
    response = np.concatenate([right, wrong])
    truth = np.concatenate([np.ones(len(right)), np.zeros(len(wrong))])
    order = np.argsort(-response)
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum() + missed)
    best = int(np.argmax(f1))
    threshold = float(np.clip(response[order[best]], LOWEST_RESPONSE, 0.8))
    kept = int((response >= threshold).sum())
    counts = SiteCounts(int(hits[kept - 1]), kept - int(hits[kept - 1]), int(truth.sum() + missed - hits[kept - 1]))
    return Tuning(threshold, masked, _knots(response, truth), counts)


def _knots(response: NDArray[np.float64], truth: NDArray[np.float64],
           number: int = 24) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Monotonic curve from response to probability: means of equally filled bins, made monotonic."""
    order = np.argsort(response)
    # Most sites answer strongly and are true: half of the bins share the weakest tenth, where it matters.
    cut = [*np.linspace(0, 0.1, number // 2, endpoint=False), *np.linspace(0.1, 1, number // 2 + 1)]
    edges = np.unique((np.array(cut) * len(order)).astype(int))
    x = np.array([response[order[a:b]].mean() for a, b in zip(edges[:-1], edges[1:])])
    y = np.array([truth[order[a:b]].mean() for a, b in zip(edges[:-1], edges[1:])])
    smooth = isotonic_regression(y, weights=np.diff(edges).astype(float)).x
    return tuple(round(float(v), 5) for v in x), tuple(round(float(v), 5) for v in smooth)


def finish_model(folder: Path, *, count: int = 160, seed: int = 99, device: str = "cpu",
                 progress: Callable[[int], None] | None = None) -> ModelCard:
    """Tune the trained model in a folder and write the result into its card."""
    model = load_model(folder, device=device)
    coarse = model.card.pixel_size_nm > 0.022
    if model.card.recipe.get("imaging", "stem") == "stm":
        frames: Iterator[SimulatedFrame] = (
            random_stm(3.0, np.random.default_rng([seed, k]), dopant=model.card.dopant or "N") for k in range(count))
    else:
        frames = simulated_frames(model.card.materials, count, seed=seed, dose_e_per_atom=(15.0, 1000.0),
                                  fov_nm=(3.0, 8.0) if coarse else (2.0, 6.0))
    result = tune(model, frames, progress=progress)
    card = read_card(folder)
    card = replace(card, thresholds={**card.thresholds, "site": round(result.threshold, 3), "masked": result.masked},
                   score_knots=result.knots,
                   scores={**card.scores, "tuning": {"frames": count, "seed": seed, "f1": round(result.counts.f1, 5),
                                                     "precision": round(result.counts.precision, 5),
                                                     "recall": round(result.counts.recall, 5)}})
    write_card(folder, card)
    return card
