"""How accurate results are, and under what: tables by dose, pixel size, disturbance and material, from seeds.

Positions are measured against the Cramer-Rao bound on columns whose truth, dose and probe are known, next to two
usual ways to locate them: the maximum of a Laplacian of Gaussian with a parabola through it, and the network's blobs
alone. The bound is that of estimators which know nothing beforehand. Refinement does (its start positions; columns of
one kind are about equally bright) and the network does even more (it has seen perfect lattices), so that few electrons
may leave them below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace

from .bench import TEST_SEED, measure_frames
from .calibration import PixelSize
from .evaluate import match
from .frames import Frame
from .refine import cramer_rao_pm, refine_sites
from .simulate.dataset import Conditions, SimulatedFrame, draw_conditions, simulate_frame
from .simulate.imaging import Probe, Scan, render
from .simulate.structures import graphene, random_specimen
from .tuning import PRACTICE, network_positions
from .weights import Model, load_model

Progress = Callable[[int], None]
DOSES = ((10.0, 20.0), (20.0, 50.0), (50.0, 100.0), (100.0, 200.0), (200.0, 500.0), (500.0, 1000.0))
PIXELS_NM = ((0.005, 0.008), (0.008, 0.012), (0.012, 0.018), (0.018, 0.025), (0.025, 0.030))
#: Dose of the tables that are not about dose [electrons an atom].
USUAL_DOSE = (100.0, 1000.0)
#: Each disturbance, and what of the conditions belongs to it.
DISTURBANCES: dict[str, tuple[str, ...]] = {
    "background and readout": ("detector",), "line jitter": ("jitter_nm", "flyback_nm"),
    "drift": ("drift_nm",), "ripples": ("ripple_nm",), "gradient": ("gradient",),
    "contamination": ("contamination", "contamination_strength", "contamination_smear_nm"),
    "holes": ("vacuum",), "second layer": ("second_layer",), "flicker": ("line_noise",),
    "smoothing": ("smoothing_px",), "bad pixels": ("hot_pixels", "dead_lines"),
}
ALWAYS_DRAWN = ("contamination_strength", "contamination_smear_nm")
#: Columns of the positions' table: probe core [nm] and the share of the electrons in a tail 2.2 times as wide.
SIGMA_NM, TAIL, TAIL_RATIO, BACKGROUND = 0.045, 0.2, 2.2, 0.03
#: Columns of the lattice are displaced at random by this much along each axis [nm]: defects and ripples do so too.
DISPLACED_NM = 0.012
POSITION_DOSES, POSITION_PIXELS_NM = (10.0, 30.0, 100.0, 300.0, 1000.0), (0.005, 0.010, 0.020)


def disturbed(rng: np.random.Generator, names: Sequence[str], *, pixel_nm: float,
              dose_e_per_atom: tuple[float, float]) -> Conditions:
    """Conditions of practice with the named disturbances on, and no others."""
    ranges = replace(PRACTICE, pixel_nm=(pixel_nm, pixel_nm), dose_e_per_atom=dose_e_per_atom)
    conditions = draw_conditions(rng, replace(ranges, nuisance=0.0))
    plain = Conditions()
    for name in names:
        if name == "background and readout":
            # They are electrons a pixel, and belong to the probe and dose at hand.
            ours = conditions.detector
            peak = ours.dose_e_per_atom * pixel_nm**2 / (2 * np.pi * conditions.probe.sigma_nm**2)
            noisy = replace(ours, background_e_per_px=peak * rng.uniform(0, 2.0),
                            readout_e=np.sqrt(peak) * rng.uniform(0, 0.7))
            conditions = replace(conditions, detector=noisy)
            continue
        entries = DISTURBANCES[name]
        for _ in range(400):
            drawn = draw_conditions(rng, replace(ranges, nuisance=1.0))
            # What is drawn always (how strong a patch would be) does not tell whether there is one.
            if any(getattr(drawn, e) != getattr(plain, e) for e in entries if e not in ALWAYS_DRAWN):
                break
        conditions = replace(conditions, **{e: getattr(drawn, e) for e in entries})
    return conditions


def accuracy_frames(material: str, count: int, *, seed: int, dose_e_per_atom: tuple[float, float] = USUAL_DOSE,
                    pixel_nm: tuple[float, float] | None = None, disturbance: str = "",
                    nuisance: float = 0.5) -> Iterator[SimulatedFrame]:
    """Simulated frames of one material; frame k depends on the seed and k alone.

    Parameters
    ----------
    material : str
        The host.
    count, seed : int
        Number of frames; of everything random.
    dose_e_per_atom, pixel_nm : (float, float)
        Ranges of the dose [electrons] and of the pixel size [nm].
    disturbance : str
        The only one that is on, one of `DISTURBANCES`; empty: each is on with probability `nuisance`.
    nuisance : float
        See there.
    """
    low, high = pixel_nm or (0.006, 0.025)
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        fov = rng.uniform(2.5, 4.0)
        pixel = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        side = max(round(fov / pixel), 64)
        pixel = fov / side
        if disturbance:
            on = [] if disturbance == "none" else [disturbance]
            conditions = disturbed(rng, on, pixel_nm=pixel, dose_e_per_atom=dose_e_per_atom)
        else:
            ranges = replace(PRACTICE, pixel_nm=(pixel, pixel), dose_e_per_atom=dose_e_per_atom, nuisance=nuisance)
            conditions = draw_conditions(rng, ranges)
        conditions = replace(conditions, pixel_nm=pixel)
        yield simulate_frame(random_specimen(material, fov, rng), conditions, rng, shape=(side, side))


def _tuned(row: dict[str, float]) -> dict[str, float]:
    """The columns that the tables show."""
    names = ("site_F1", "species_right", "rms_pm", "sigma_z_std", "score_ECE", "scale_error_median_%",
             "scale_error_worst_%", "sites_in_hidden_%", "refused", "defect_precision", "defect_recall")
    return {name: row[name] for name in names}


def accuracy_tables(names: Sequence[str], *, frames: int = 20, nominal_error: float = 0.05,
                    progress: Progress | None = None) -> tuple[dict[str, pd.DataFrame], NDArray[np.float64]]:
    """Tables 'dose', 'pixel', 'nuisance' and 'material' of the whole way from image to defects.

    Parameters
    ----------
    names : sequence of str
        Models; the first one's first material is that of the first three tables.
    frames : int
        Frames a row.
    nominal_error : float
        Largest relative error of the pixel size that the pipeline is told.
    progress : callable, optional
        Called with the number of rows done.

    Returns
    -------
    tables : dict of DataFrame
    judged : (N, 2) float64
        Score and truth of every site of the dose table, for the reliability curve.
    """
    model = load_model(names[0])
    host = model.card.materials[0]
    done = 0
    told: list[NDArray[np.float64]] = []

    def row(label: str, value: str, model: Model, material: str, seed: int, **changes: object) -> dict[str, object]:
        nonlocal done
        simulated = accuracy_frames(material, frames, seed=seed, **changes)  # type: ignore[arg-type]
        scores, judged = measure_frames(model, simulated, seed=seed, nominal_error=nominal_error)
        if label == "electrons_per_atom":
            told.append(judged)
        done += 1
        if progress:
            progress(done)
        return {label: value, **_tuned(scores)}

    tables = {
        "dose": pd.DataFrame([row("electrons_per_atom", f"{d[0]:.0f}-{d[1]:.0f}", model, host, TEST_SEED + 100 + k,
                                  dose_e_per_atom=d) for k, d in enumerate(DOSES)]),
        "pixel": pd.DataFrame([row("pixel_pm", f"{1e3 * p[0]:.0f}-{1e3 * p[1]:.0f}", model, host,
                                   TEST_SEED + 200 + k, pixel_nm=p) for k, p in enumerate(PIXELS_NM)]),
        "nuisance": pd.DataFrame(
            [row("disturbance", d, model, host, TEST_SEED + 300, disturbance=d) for d in ("none", *DISTURBANCES)]
            + [row("disturbance", "each in half of the frames", model, host, TEST_SEED + 301),
               row("disturbance", "all at once", model, host, TEST_SEED + 302, nuisance=1.0)]),
        "material": pd.DataFrame([row("material", m, other, m, TEST_SEED + 400)
                                  for other in map(load_model, names) for m in other.card.materials]),
    }
    return tables, np.concatenate(told or [np.zeros((0, 2))])


def accuracy_rows(names: Sequence[str]) -> int:
    """Number of rows that `accuracy_tables` measures."""
    materials = sum(len(load_model(n).card.materials) for n in names)
    return len(DOSES) + len(PIXELS_NM) + len(DISTURBANCES) + 3 + materials


def columns_in_view(arrangement: str, *, pixel_nm: float, fov_nm: float = 1.8,
                    rotation_deg: float = 17.0) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """(N, 2) positions [px] of a 'lattice' (graphene) or of 'isolated' columns 0.6 nm apart, and the image's shape."""
    side = round(fov_nm / pixel_nm)
    if arrangement == "isolated":
        at = np.arange(0.35, fov_nm - 0.2, 0.6)
        yx = np.stack(np.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)
        yx = yx + 0.07 * np.sin(np.arange(len(yx)))[:, None]
    else:
        yx = graphene(fov_nm=fov_nm, rotation_deg=rotation_deg, offset_nm=(0.013, 0.041), margin_nm=0.2).yx_nm
    return yx / pixel_nm - 0.5, (side, side)


def laplacian_parabola(image: NDArray[np.floating], start_px: NDArray[np.float64], *,
                       pixel_nm: float) -> NDArray[np.float64]:
    """(N, 2) maxima of the Laplacian of Gaussian uphill of each start, refined by parabolas [px]."""
    response = -gaussian_laplace(np.asarray(image, np.float64), SIGMA_NM / pixel_nm)
    last = np.array(image.shape) - 2
    found = np.empty_like(start_px)
    for k, start in enumerate(start_px):
        at = np.clip(np.rint(start).astype(int), 1, last)
        for _ in range(round(0.06 / pixel_nm)):
            part = response[at[0] - 1:at[0] + 2, at[1] - 1:at[1] + 2]
            step = np.array(np.unravel_index(part.argmax(), (3, 3))) - 1
            if not step.any():
                break
            at = np.clip(at + step, 1, last)
        for axis in (0, 1):
            before, after = (response[tuple(at + sign * np.eye(2, dtype=int)[axis])] for sign in (-1, 1))
            curve = before + after - 2 * response[tuple(at)]
            shift = 0.5 * (before - after) / curve if curve < 0 else 0.0
            found[k, axis] = at[axis] + np.clip(shift, -1, 1)
    return found


def positions(name: str, *, frames: int = 4, progress: Progress | None = None) -> pd.DataFrame:
    """Errors of positions over the Cramer-Rao bound, by arrangement, dose and pixel size.

    The refinement starts 15 pm off along each axis. `within_bars`: rms at most 1.2 times the bound, bias at most 0.3 of
    it, and errors over `sigma_pm` with a standard deviation of 0.9-1.1, each but for the scatter of the sample.
    """
    model = load_model(name)
    rows = []
    for arrangement in ("isolated", "lattice"):
        for dose in POSITION_DOSES:
            for number, pixel in enumerate(POSITION_PIXELS_NM):
                rng = np.random.default_rng([TEST_SEED, arrangement == "lattice", int(dose), number])
                repeats = frames * (6 if arrangement == "isolated" else 1)
                rows.append(_position_row(model, arrangement, dose, pixel, repeats, rng))
                if progress:
                    progress(len(rows))
    return pd.DataFrame(rows)


def position_rows() -> int:
    """Number of rows of `positions`."""
    return 2 * len(POSITION_DOSES) * len(POSITION_PIXELS_NM)


def _position_row(model: Model, arrangement: str, dose: float, pixel_nm: float, frames: int,
                  rng: np.random.Generator) -> dict[str, object]:
    yx, shape = columns_in_view(arrangement, pixel_nm=pixel_nm)
    if arrangement == "lattice":
        # In a perfect crystal whoever guesses the lattice beats every bound.
        yx = yx + rng.normal(0, DISPLACED_NM / pixel_nm, yx.shape)
    below = BACKGROUND * dose * pixel_nm**2 / 0.0262
    mean = below + pixel_nm**2 * render((yx + 0.5) * pixel_nm, np.full(len(yx), dose),
                                        scan=Scan.regular(shape, pixel_nm),
                                        probe=Probe(SIGMA_NM, TAIL_RATIO * SIGMA_NM, TAIL))
    margin = 0.2 / pixel_nm
    inner = np.all((yx > margin) & (yx < np.array(shape) - 1 - margin), axis=1)
    seen = np.all((yx > -0.5) & (yx < np.array(shape) - 0.5), axis=1)
    # Finer pixels know nothing more: the bound is taken where the matrices are small.
    coarse = max(pixel_nm, 0.015)
    small = columns_in_view(arrangement, pixel_nm=coarse)[1]
    at = (yx[seen] + 0.5) * pixel_nm / coarse - 0.5
    bound = cramer_rao_pm(at[:, 0], at[:, 1], dose, shape=small, pixel_size_nm=coarse, sigma_probe_nm=SIGMA_NM,
                          background=BACKGROUND * dose * coarse**2 / 0.0262, tail_fraction=TAIL,
                          tail_ratio=TAIL_RATIO)
    limit = float(np.sqrt(np.mean(bound[inner[seen]] ** 2)))
    errors: dict[str, list[NDArray[np.float64]]] = {"ours": [], "log": [], "network": [], "z": []}
    for _ in range(frames):
        image = rng.poisson(mean).astype(np.float32)
        start = yx[seen] + rng.normal(0, 0.015 / pixel_nm, (int(seen.sum()), 2))
        refined = refine_sites(image, start[:, 0], start[:, 1], pixel_size_nm=pixel_nm)
        error = 1e3 * pixel_nm * (np.stack([refined.y_px, refined.x_px], 1) - yx[seen])[inner[seen]]
        errors["ours"].append(error)
        errors["z"].append(error / refined.sigma_pm[inner[seen], None])
        maxima = laplacian_parabola(image, start, pixel_nm=pixel_nm)
        errors["log"].append(1e3 * pixel_nm * (maxima - yx[seen])[inner[seen]])
        if arrangement == "lattice":
            frame = Frame(image, PixelSize(pixel_nm, "metadata", pixel_nm))
            blobs, _ = network_positions(model, frame, pixel_nm, lowest=model.card.thresholds["site"])
            pairs = match(blobs, yx[inner], within_px=0.06 / pixel_nm)
            errors["network"].append(1e3 * pixel_nm * (blobs[pairs[:, 0]] - yx[inner][pairs[:, 1]]))
    rms = {k: float(np.sqrt(np.mean(np.concatenate(v) ** 2))) if v else np.nan for k, v in errors.items()}
    ours, z = np.concatenate(errors["ours"]), np.concatenate(errors["z"])
    scatter = 2 / np.sqrt(2 * ours.size)
    ratio, bias, spread = rms["ours"] / limit, float(np.abs(ours.mean(0)).max()) / limit, float(z.std())
    good = (ratio <= 1.2 * (1 + scatter) and bias <= 0.3 + 3 * ratio / np.sqrt(ours.size / 2)
            and 0.9 * (1 - scatter) <= spread <= 1.1 * (1 + scatter))
    return {"arrangement": arrangement, "electrons": dose, "pixel_pm": 1e3 * pixel_nm, "bound_pm": limit,
            "rms_pm": rms["ours"], "rms/bound": ratio, "bias/bound": bias, "z_std": spread,
            "LoG+parabola/bound": rms["log"] / limit, "network/bound": rms["network"] / limit, "within_bars": good}

