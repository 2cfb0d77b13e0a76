"""Defects by name and place on simulated frames: how many are right, and where the others are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .analysis import FrameAnalysis
from .bench import TEST_SEED, compare_defects
from .errors import StemdlError
from .evaluate import SiteCounts, match
from .materials import get_material
from .pipeline import analyze_frame
from .simulate.dataset import SimulatedFrame
from .tuning import simulated_frames
from .weights import Model, load_model

#: Every kind of defect that has a name in graphene, equally often; X stands for the dopant.
GRAPHENE_KINDS = ("X-C3", "X-C4", "X-C3+V", "X2C5", "X3C6", "X4C6", "SV", "DV(5-8-5)", "DV(555-777)", "V3", "V4",
                  "SW(55-77)", "GB(5-7)")
#: Hosts of the dichalcogenide rows, and the other metal that replaces theirs.
OTHER_METAL = {"MoSe2": "W", "MoS2": "W", "WSe2": "Mo", "WS2": "Mo"}
#: Electrons a column for which the rows hold.
DOSE = (50.0, 1000.0)
#: Stray electrons on the area of an atom, over those of the atom, from which there is a background.
BACKGROUND = 0.1
#: Disturbances are each in this part of the frames.
DISTURBED = 0.5
#: Names within this of a true defect's centre are about it [nm].
WITHIN_NM = 0.10


@dataclass(frozen=True)
class Scored:
    """One frame's score.

    Parameters
    ----------
    counts : SiteCounts
        Defects right in name and place, false ones, missed ones; None where the frame was refused.
    dose : float
        Electrons a column.
    background : float
        Stray electrons on the area of an atom, over the dose.
    composition : (int, int)
        Defects with foreign atoms whose composition is right, and how many there are.
    """

    counts: SiteCounts
    dose: float
    background: float
    composition: tuple[int, int] = (0, 0)


def defects(names: Sequence[str], *, frames: int = 100, seed: int = TEST_SEED,
            progress: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Precision and recall of defects, with and without disturbances, and of fields without any.

    Parameters
    ----------
    names : sequence of str
        Models: those of graphene and of dichalcogenides get their own rows.
    frames : int
        Frames of each test set.
    seed : int
        Frames are the same for the same seed.
    progress : callable, optional
        Called with the number of frames done.

    Returns
    -------
    pandas.DataFrame
        A row a test set or a part of one.
    """
    rows: list[dict[str, object]] = []
    done = 0

    def scored(model: Model, simulated: Iterable[SimulatedFrame]) -> Iterator[Scored]:
        nonlocal done
        for s in simulated:
            yield score(model, s)
            done += 1
            if progress:
                progress(done)

    for name in names:
        model = load_model(name)
        graphene = model.card.material.kind == "honeycomb"
        for number, (title, nuisance) in enumerate((("undisturbed", 0.0), ("disturbed", DISTURBED))):
            test_set = _graphene_set if graphene else _mx2_set
            found = list(scored(model, test_set(frames, seed + number, nuisance)))
            rows.append(_row(name, title, found))
            if nuisance:
                rows += [_row(name, f"{title}, {part}", some) for part, some in parts(found)]
        if graphene:
            pristine = simulated_frames(("graphene",), frames, seed=seed + 2, dose_e_per_atom=DOSE, nuisance=DISTURBED,
                                        pristine_probability=1.0, boundary_probability=0.0)
            rows.append(_row(name, "disturbed, without defects", list(scored(model, pristine))))
    return pd.DataFrame(rows)


def number_of_frames(names: Sequence[str], frames: int) -> int:
    """Frames that `defects` will look at."""
    return sum(frames * (3 if load_model(name).card.material.kind == "honeycomb" else 2) for name in names)


def _graphene_set(frames: int, seed: int, nuisance: float) -> Iterator[SimulatedFrame]:
    return simulated_frames(("graphene",), frames, seed=seed, dose_e_per_atom=DOSE, nuisance=nuisance,
                            pristine_probability=0.0, kinds=dict.fromkeys(GRAPHENE_KINDS, 1.0))


def _mx2_set(frames: int, seed: int, nuisance: float) -> Iterator[SimulatedFrame]:
    """The other metal, one and two missing chalcogens: what every dichalcogenide has, and contrast can tell."""
    for k in range(frames):
        host = tuple(OTHER_METAL)[k % len(OTHER_METAL)]
        metal, chalcogen = get_material(host).species
        kinds = {f"{OTHER_METAL[host]}_{metal}": 1.0, f"V_{chalcogen}": 1.0, f"V_{chalcogen}2": 1.0}
        yield from simulated_frames((host,), 1, seed=1000 * seed + k, dose_e_per_atom=DOSE, nuisance=nuisance,
                                    pristine_probability=0.0, boundary_probability=0.0, kinds=kinds)


def score(model: Model, s: SimulatedFrame) -> Scored:
    """Analyse one frame and compare; a frame that is refused has missed all."""
    conditions, detector = s.conditions, s.conditions.detector
    # Two columns a cell.
    area_px = np.sqrt(3.0) / 4.0 * (get_material(s.material).lattice_nm / conditions.pixel_nm) ** 2
    background = detector.background_e_per_px * area_px / detector.dose_e_per_atom
    try:
        found = analyze_frame(s.frame, model, material=s.material)
    except StemdlError:
        return Scored(SiteCounts(0, 0, len(s.defects)), detector.dose_e_per_atom, background)
    return Scored(compare_defects(found, s), detector.dose_e_per_atom, background, composition(found, s))


def composition(found: FrameAnalysis, s: SimulatedFrame) -> tuple[int, int]:
    """Defects with foreign atoms that lie well inside, and those of them whose composition is right."""
    pixel = s.conditions.pixel_nm
    host = set(get_material(s.material).species)
    margin, limit = 0.35 / pixel, np.array(s.frame.shape) - 1 - 0.35 / pixel
    right = total = 0
    centers = np.array([d.center_px for d in found.defects]).reshape(-1, 2)
    near = {int(b): int(a) for a, b in match(centers, s.centers_px, within_px=WITHIN_NM / pixel)}
    for k, (defect, center) in enumerate(zip(s.defects, s.centers_px)):
        if set(defect.composition) <= host or s.sites.edge[list(defect.site_ids)].any():
            continue
        top, left = np.maximum(np.floor(center - margin), 0).astype(int)
        bottom, right_ = np.ceil(center + margin).astype(int) + 1
        if (center < margin).any() or (center > limit).any() or s.hidden[top:bottom, left:right_].any():
            continue
        total += 1
        right += k in near and dict(found.defects[near[k]].composition) == dict(defect.composition)
    return right, total


def parts(found: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    """A test set by what decides most: stray light, and dose."""
    return [
        ("no stray background", [f for f in found if f.background < BACKGROUND]),
        ("stray background of 10-300 %", [f for f in found if f.background >= BACKGROUND]),
        *((f"{low:.0f}-{high:.0f} e", [f for f in found if low <= f.dose < high])
          for low, high in ((50.0, 100.0), (100.0, 200.0), (200.0, 1000.1))),
    ]


def _row(model: str, title: str, found: Sequence[Scored]) -> dict[str, object]:
    counts = sum((f.counts for f in found), SiteCounts())
    right, foreign = (sum(f.composition[k] for f in found) for k in (0, 1))
    return {"model": model, "frames_are": title, "frames": len(found), "defects": counts.hits + counts.missed,
            "precision": counts.precision if counts.hits + counts.missed else np.nan,
            "recall": counts.recall if counts.hits + counts.missed else np.nan,
            "false_per_100_frames": 100 * counts.false / max(len(found), 1),
            "composition_right": f"{right} of {foreign}"}
