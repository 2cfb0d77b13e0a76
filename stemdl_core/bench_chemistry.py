"""The geometry of silicon defects as this program measures it, beside the paper's images and calculations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from .analysis import Defect
from .pipeline import analyze_frame
from .simulate import degrade
from .simulate.dataset import Conditions, simulate_frame
from .simulate.structures import add_defect, graphene
from .weights import load_model

#: What Ziatdinov et al., ACS Nano 11, 12742 (2017) give: quantity, their images, their calculation.
PUBLISHED = {
    "Si-C3": (("Si-C [pm]", "about 150", "-"), ("farthest C-Si-C from 120 deg [deg]", "-", "-")),
    "Si-C4": (("Si-C [pm]", "172", "177-179 (planar)"), ("farthest C-Si-C from 90 deg [deg]", "-", "-")),
    "Si3C6": (("Si-Si [pm]", "-", "-"),),
    # Their corners are about 30 % farther apart than in Si3C6: to be compared with the row above.
    "Si4C6": (("Si-Si centre-corner [pm]", "about 150", "-"),
              ("Si-Si corner-corner [pm]", "about 1.3 times that of Si3C6", "-")),
}


def geometry(model_name: str, *, frames: int = 6, dose_e_per_atom: float = 300.0, seed: int = 4,
             progress: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Mean bond lengths and angles of simulated silicon defects through the whole pipeline.

    Parameters
    ----------
    model_name : str
        Name or folder of the model.
    frames : int
        Frames of each kind.
    dose_e_per_atom : float
        Electrons a carbon atom.
    seed : int
        Frames are the same for the same seed.
    progress : callable, optional
        Called with the number of frames done.

    Returns
    -------
    pandas.DataFrame
        A row a quantity: mean and standard deviation over the frames, the truth of the simulation, the paper.
    """
    model = load_model(model_name)
    rows, done = [], 0
    for number, (kind, quantities) in enumerate(PUBLISHED.items()):
        found: list[tuple[float, ...]] = []
        true: list[tuple[float, ...]] = []
        for k in range(frames):
            rng = np.random.default_rng([seed, number, k])
            specimen = add_defect(graphene(fov_nm=2.4, rotation_deg=rng.uniform(0, 60)), kind, (1.2, 1.2), rng=rng)
            conditions = Conditions(pixel_nm=0.008, detector=degrade.Detector(dose_e_per_atom=dose_e_per_atom))
            simulated = simulate_frame(specimen, conditions, rng)
            analysis = analyze_frame(simulated.frame, model)
            for defect in analysis.defects:
                if defect.name == kind:
                    found.append(_measure(defect, 1e3 * analysis.pixel_size.to_nm(analysis.sites.yx_px),
                                          analysis.sites.species))
                    members = list(simulated.defects[0].site_ids)
                    own = 8.0 * simulated.sites.yx_px
                    true.append(_measure(defect, own, simulated.sites.species, members))
            done += 1
            if progress:
                progress(done)
        for j, (quantity, image, calculation) in enumerate(quantities):
            values = np.array([v[j] for v in found])
            rows.append({"defect": kind, "quantity": quantity, "named": f"{len(found)} of {frames}",
                         "measured": float(values.mean()) if len(values) else np.nan,
                         "spread": float(values.std()) if len(values) else np.nan,
                         "simulated": float(np.mean([v[j] for v in true])) if true else np.nan,
                         "paper_images": image, "paper_calculation": calculation})
    return pd.DataFrame(rows)


def _measure(defect: Defect, yx_pm: np.ndarray, species: np.ndarray,
             members: list[int] | None = None) -> tuple[float, ...]:
    """Mean bond length and angle of one silicon; for clusters the distances between silicon atoms."""
    ids = np.array(list(defect.site_ids) if members is None else members)
    silicon, carbon = ids[species[ids] != "C"], ids[species[ids] == "C"]
    if len(silicon) == 1:
        step = yx_pm[carbon] - yx_pm[silicon[0]]
        turn = np.sort(np.degrees(np.arctan2(step[:, 0], step[:, 1])))
        angles = np.diff(np.append(turn, turn[0] + 360.0))
        return float(np.hypot(*step.T).mean()), float(np.abs(angles - 360.0 / len(carbon)).max())
    apart = np.hypot(*(yx_pm[silicon][:, None] - yx_pm[silicon][None]).transpose(2, 0, 1))
    if len(silicon) == 3:
        return (float(apart[np.triu_indices(3, 1)].mean()),)
    centre = int(apart.sum(axis=1).argmin())
    corners = [i for i in range(len(silicon)) if i != centre]
    inner = float(apart[centre, corners].mean())
    outer = float(np.mean([apart[i, j] for k, i in enumerate(corners) for j in corners[:k]]))
    return inner, outer
