"""The numbers in the README, from seeds: accuracy by dose and nuisance, architectures, speed.

Every table is a pandas data frame; `stemdl bench` prints it as Markdown and writes it as CSV.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import FrameAnalysis
from .calibration import PixelSize
from .defects import find_defects
from .errors import StemdlError
from .evaluate import SiteCounts, compare_sites, match
from .graph import build_graph
from .infer import probability_maps
from .materials import Material, get_material
from .network import count_weights
from .pipeline import analyze_frame, detect
from .preprocess import mend, model_shape, resample, standardise
from .simulate.dataset import Conditions, SimulatedFrame, simulate_frame, training_pair
from .simulate.degrade import Detector
from .simulate.structures import random_specimen
from .targets import IGNORE
from .threads import one_blas_thread
from .tuning import TOLERANCE_NM, network_positions, simulated_frames
from .weights import WEIGHTS_NAME, Model, load_model, load_network, model_folder

Progress = Callable[[int], None]
#: Seed of the test set; training uses others.
TEST_SEED = 20170811
#: Atoms nearer than this to one that a hole has taken were its neighbours, a silicon's longer bonds included [bonds].
BESIDE_HOLE = 1.6
DOSES = ((10.0, 20.0), (20.0, 50.0), (50.0, 100.0), (100.0, 200.0), (200.0, 500.0), (500.0, 1000.0))


def pixel_accuracy(model: Model, simulated: SimulatedFrame) -> tuple[float, int]:
    """Part of the pixels whose most probable class is the true one, and the number of pixels whose truth is defined."""
    card = model.card
    host = tuple({s: None for m in card.materials for s in get_material(m).species})
    image, target = training_pair(simulated, classes=card.classes, model_pixel_nm=card.pixel_size_nm,
                                  radius_nm=card.radius_nm, host=host,
                                  vacancy_radius_nm=float(card.recipe.get("vacancy_radius_nm", 1.5 * card.radius_nm)))
    predicted = probability_maps(model, image).argmax(axis=0)
    counted = target != IGNORE
    return float((predicted == target)[counted].mean()) if counted.any() else 1.0, int(counted.sum())


def architectures(models: Sequence[str], *, frames: int = 60, progress: Progress | None = None) -> pd.DataFrame:
    """Compare models of different architecture on one test set: pixel accuracy, site F1, size and time.

    Sites are those of the network alone (threshold and Laplacian of Gaussian), before refinement on the image.
    `nuisance` 0 is the paper's augmentation (shift, rotation, zoom, shear, blur, noise) with Poisson dose; with 0.5
    each of the simulator's disturbances (contamination, holes, jitter, drift, gradients, ...) is on in half of the
    frames.
    """
    rows = []
    for number, (name, nuisance) in enumerate((m, n) for m in models for n in (0.0, 0.5)):
        model = load_model(name)
        bond = model.card.material.bond_nm
        right = pixels = 0.0
        counts = {low: SiteCounts() for low in (20.0, 50.0)}
        for k, s in enumerate(simulated_frames(model.card.materials, frames, seed=TEST_SEED, nuisance=nuisance)):
            accuracy, n = pixel_accuracy(model, s)
            right, pixels = right + accuracy * n, pixels + n
            found, _ = network_positions(model, s.frame, s.conditions.pixel_nm,
                                         lowest=model.card.thresholds["site"])
            result = compare_sites(found, s.sites.yx_px, counted=s.visible, undefined=s.hidden == 2,
                                   within_px=TOLERANCE_NM / s.conditions.pixel_nm,
                                   border_px=0.5 * bond / s.conditions.pixel_nm)
            for low in counts:
                if s.conditions.detector.dose_e_per_atom >= low:
                    counts[low] = counts[low] + result.counts
            if progress:
                progress(number * frames + k + 1)
        image = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
        network, _ = load_network(model_folder(name))
        rows.append({"model": name, "architecture": model.card.architecture, "nuisance": nuisance,
                     "weights": count_weights(network),
                     "size_kB": round((model_folder(name) / WEIGHTS_NAME).stat().st_size / 1e3),
                     "pixel_accuracy": right / pixels, "site_F1_20_1000e": counts[20.0].f1,
                     "site_F1_from_50e": counts[50.0].f1,
                     "network_ms_200x200": 1e3 * _median_seconds(partial(probability_maps, model, image))})
    return pd.DataFrame(rows)


def accuracy_by_dose(name: str, *, frames_per_dose: int = 20, nuisance: float = 0.5,
                     progress: Progress | None = None) -> pd.DataFrame:
    """Whole pipeline on simulated frames, by dose: sites, positions, honesty of sigma and score, pixel size."""
    model = load_model(name)
    rows = []
    for number, dose in enumerate(DOSES):
        table = measure(model, seed=TEST_SEED + 1 + number, frames=frames_per_dose, dose_e_per_atom=dose,
                        nuisance=nuisance)
        rows.append({"electrons_per_atom": f"{dose[0]:.0f}-{dose[1]:.0f}", **table})
        if progress:
            progress((number + 1) * frames_per_dose)
    return pd.DataFrame(rows)


def measure(model: Model, *, seed: int, frames: int, dose_e_per_atom: tuple[float, float], nuisance: float,
            nominal_error: float = 0.0, **test_set: object) -> dict[str, float]:
    """Scores of the whole pipeline on one simulated test set (see `accuracy_by_dose`)."""
    simulated = simulated_frames(model.card.materials, frames, seed=seed, dose_e_per_atom=dose_e_per_atom,
                                 nuisance=nuisance, **test_set)  # type: ignore[arg-type]
    return measure_frames(model, simulated, seed=seed, nominal_error=nominal_error)[0]


def measure_frames(model: Model, simulated: Iterable[SimulatedFrame], *, seed: int,
                   nominal_error: float = 0.0) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Scores of the whole pipeline on simulated frames, and (N, 2) scores of sites and whether each was true.

    Parameters
    ----------
    model : Model
        Network and card.
    simulated : iterable of SimulatedFrame
        The test set.
    seed : int
        Of the errors of the nominal pixel sizes.
    nominal_error : float
        Largest relative error of the pixel size that the pipeline is told.
    """
    counts = SiteCounts()
    species = [0, 0]
    errors: list[NDArray[np.float64]] = []
    z_scores: list[NDArray[np.float64]] = []
    scale: list[float] = []
    judged: list[NDArray[np.float64]] = []
    in_hidden = total = refused = 0
    defect_counts = SiteCounts()
    rng = np.random.default_rng(seed)
    for s in simulated:
        pixel = s.conditions.pixel_nm
        nominal = pixel * (1 + rng.uniform(-nominal_error, nominal_error))
        frame = s.frame.with_pixel_size(PixelSize(nominal, "argument", nominal))
        material = s.material
        try:
            found = analyze_frame(frame, model, material=material)
        except StemdlError:
            # What is refused is not found.
            refused += 1
            counts = counts + SiteCounts(missed=int(s.visible.sum()))
            continue
        bond_px = get_material(material).bond_nm / pixel
        result = compare_sites(found.sites.yx_px, s.sites.yx_px, counted=s.visible, undefined=s.hidden == 2,
                               within_px=TOLERANCE_NM / pixel, border_px=0.5 * bond_px)
        counts = counts + result.counts
        f, t = result.pairs[:, 0], result.pairs[:, 1]
        inner = ~s.sites.edge[t]
        step = 1e3 * pixel * (found.sites.yx_px[f] - s.sites.yx_px[t])[inner]
        errors.append(step.ravel())
        z_scores.append((step / found.sites.sigma_pm[f][inner, None]).ravel())
        same = found.sites.species[f] == s.sites.species[t]
        species = [species[0] + int(same.sum()), species[1] + len(same)]
        scale.append(found.pixel_size.nm / _apparent_pixel_nm(s) - 1)
        judged += [np.stack([found.sites.score[f], np.ones(len(f))], axis=1),
                   np.stack([found.sites.score[result.false], np.zeros(len(result.false))], axis=1)]
        cell = np.clip(np.round(found.sites.yx_px).astype(int), 0, np.asarray(s.frame.shape) - 1)
        in_hidden += int((s.hidden[cell[:, 0], cell[:, 1]] == 1).sum())
        total += len(cell)
        defect_counts = defect_counts + compare_defects(found, s)
    error, z = np.concatenate(errors or [np.zeros(1)]), np.concatenate(z_scores or [np.zeros(1)])
    z = z[np.isfinite(z)]
    told = np.concatenate(judged or [np.zeros((0, 2))])
    row = {"site_F1": counts.f1, "precision": counts.precision, "recall": counts.recall,
           "species_right": species[0] / max(species[1], 1), "rms_pm": float(np.sqrt(np.mean(error**2))),
           "median_pm": float(np.median(np.abs(error))), "sigma_z_std": float(1.4826 * np.median(np.abs(z))),
           "score_ECE": expected_calibration_error(told),
           "scale_error_median_%": 100 * float(np.median(np.abs(scale or [0]))),
           "scale_error_worst_%": 100 * float(np.max(np.abs(scale or [0]))),
           "sites_in_hidden_%": 100 * in_hidden / max(total, 1), "refused": refused,
           "defect_precision": defect_counts.precision, "defect_recall": defect_counts.recall}
    return row, told


def _apparent_pixel_nm(s: SimulatedFrame) -> float:
    """What a pixel shows of the specimen (geometric mean) [nm]: drift along the frame shortens or stretches it."""
    c = s.conditions
    stretch = abs(np.linalg.det(np.asarray(c.strain))) / (1 + c.drift_nm[0] / (s.frame.shape[0] * c.pixel_nm))
    return float(c.pixel_nm / np.sqrt(stretch))


def compare_defects(found: FrameAnalysis, s: SimulatedFrame, *, within_nm: float = 0.10) -> SiteCounts:
    """Defects that are right in name and place.

    Those within 0.35 nm of the border or of hidden areas do not count, nor those with an atom beside a hole of the
    sheet: the hole has taken their neighbours, and the specimen's names are no longer theirs. Nor does what was seen at
    the border without being given a name. A boundary is in place where most of its atoms are: its centre is anywhere
    along it, depending on where it leaves the image.
    """
    pixel = s.conditions.pixel_nm
    centers = np.array([d.center_px for d in found.defects]).reshape(-1, 2)
    names = [d.name for d in found.defects]
    margin = 0.35 / pixel
    grown = _near_hidden(s.hidden, int(round(margin)))
    limit = np.asarray(s.frame.shape) - 1 - margin

    def judged(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        if len(p) == 0:
            return np.zeros(0, bool)
        cell = np.clip(np.round(p).astype(int), 0, np.asarray(s.frame.shape) - 1)
        return ((p >= margin) & (p <= limit)).all(axis=1) & ~grown[cell[:, 0], cell[:, 1]]

    pairs = match(centers, s.centers_px, within_px=within_nm / pixel)
    right = [(a, b) for a, b in pairs if names[a] == s.defects[b].name]
    for b, true in enumerate(s.defects):
        for a, one in enumerate(found.defects):
            if true.name == one.name and true.name.startswith("GB") and b not in {j for _, j in right}:
                there, here = s.sites.yx_px[list(true.site_ids)], found.sites.yx_px[list(one.site_ids)]
                common = len(match(here, there, within_px=within_nm / pixel))
                if common > 0.5 * max(len(here), len(there)):
                    right.append((a, b))
    found_judged, true_judged = judged(centers), judged(s.centers_px)
    if len(s.removed_px):
        hole, beside = cKDTree(s.removed_px), BESIDE_HOLE * get_material(s.material).bond_nm / pixel

        def whole(yx_px: NDArray[np.float64], center: NDArray[np.float64]) -> bool:
            return bool((hole.query(np.concatenate([yx_px, center[None]]))[0] > beside).all())

        found_sites = found.sites.yx_px
        found_judged &= np.array([whole(found_sites[list(d.site_ids)], c)
                                  for d, c in zip(found.defects, centers)], dtype=bool)
        true_judged &= np.array([whole(s.sites.yx_px[list(d.site_ids)], c)
                                 for d, c in zip(s.defects, s.centers_px)], dtype=bool)
    # A defect with atoms at the border has neighbours out of view: its name cannot be known.
    found_judged &= np.array([d.name != "unknown" or not found.sites.edge[list(d.site_ids)].any()
                              for d in found.defects], dtype=bool)
    true_judged &= np.array([not s.sites.edge[list(d.site_ids)].any() for d in s.defects], dtype=bool)
    hits = sum(1 for a, b in right if true_judged[b])
    matched_found = {a for a, _ in right}
    matched_true = {b for _, b in right}
    return SiteCounts(hits, sum(1 for a in np.flatnonzero(found_judged) if a not in matched_found),
                      sum(1 for b in np.flatnonzero(true_judged) if b not in matched_true))


def _near_hidden(hidden: NDArray[np.uint8], reach: int) -> NDArray[np.bool_]:
    from scipy.ndimage import distance_transform_edt

    if not hidden.any():
        return np.zeros(hidden.shape, dtype=bool)
    return distance_transform_edt(hidden == 0) <= reach


def expected_calibration_error(judged: NDArray[np.float64], bins: int = 10) -> float:
    """Mean difference between stated probability and observed frequency, weighted by how many are in each bin.

    Parameters
    ----------
    judged : (N, 2) float64
        Score, and whether the site was true.
    """
    which = np.clip((judged[:, 0] * bins).astype(int), 0, bins - 1)
    if not len(judged):
        return 0.0
    total = 0.0
    for k in range(bins):
        members = judged[which == k]
        if len(members):
            total += len(members) * abs(members[:, 0].mean() - members[:, 1].mean())
    return total / len(judged)


def speed(name: str, *, repeat: int = 7, progress: Progress | None = None) -> pd.DataFrame:
    """Median time of the steps of `analyze_frame` for a 512 x 512 frame of a 4 nm field, and of the whole.

    What follows detection (bonds, rings, defects with all their numbers) is measured for 600 and for 5,000 atoms with
    defects among them, at 300 electrons an atom and at 100, where bonds take longer to tell.
    """
    model = load_model(name)
    rng = np.random.default_rng(7)
    specimen = random_specimen(model.card.materials[0], 4.0, rng, boundary_probability=0.0, pristine_probability=0.0)
    s = simulate_frame(specimen, Conditions(pixel_nm=4.0 / 512), rng, shape=(512, 512))
    material = get_material(model.card.materials[0])
    image = mend(s.frame.image).image
    small = model_shape(s.frame.shape, 4.0 / 512, model.card.pixel_size_nm)
    ready = standardise(resample(image, small))
    steps: dict[str, Callable[[], object]] = {
        "mend, resample, standardise": lambda: standardise(resample(mend(s.frame.image).image, small)),
        "network": lambda: probability_maps(model, ready),
        "all of detection": lambda: detect(s.frame, model, material=material, dopant=model.card.dopant),
        "all of analyze_frame": lambda: analyze_frame(s.frame, model),
        **{f"bonds, rings and defects, {atoms:,} atoms, {dose:.0f} e": _chemistry(model, material, fov_nm, dose)
           for atoms, fov_nm in ((600, 4.0), (5000, 11.4)) for dose in (300.0, 100.0)},
    }
    rows = []
    for k, (step, run) in enumerate(steps.items()):
        with one_blas_thread():
            rows.append({"step": step, "median_ms": 1e3 * _median_seconds(run, repeat)})
        if progress:
            progress(k + 1)
    table = pd.DataFrame(rows)
    table["threads"] = torch.get_num_threads()
    return table


def _chemistry(model: Model, material: Material, fov_nm: float, dose: float) -> Callable[[], object]:
    """What is done with the sites of a frame, to be timed."""
    if material.kind != "honeycomb":
        # Two columns stand on the area of two atoms, in a larger cell.
        fov_nm *= material.lattice_nm / get_material("graphene").lattice_nm
    rng = np.random.default_rng(8)
    specimen = random_specimen(material.name, fov_nm, rng, boundary_probability=0.0, pristine_probability=0.0,
                               density_per_nm2=0.3)
    s = simulate_frame(specimen, Conditions(pixel_nm=0.0125, detector=Detector(dose)), rng)
    found = detect(s.frame, model, material=material, dopant=model.card.dopant)

    def chemistry() -> object:
        graph = build_graph(found.sites, material=material, pixel_size=found.pixel_size, shape=s.frame.shape,
                            mask=found.mask)
        return find_defects(graph, vacancies_px=found.vacancies_px)

    return chemistry


def _median_seconds(run: Callable[[], object], repeat: int = 7) -> float:
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """CSV of a table; appears whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    table.to_csv(temporary, index=False)
    temporary.replace(path)


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown, numbers to four significant digits."""
    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)

