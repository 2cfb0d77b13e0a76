"""Two versions of a model on the same data: what is better, what is worse, and whether the new one is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.ndimage import maximum_filter

from .analysis import FrameAnalysis
from .errors import StemdlError
from .evaluate import SiteCounts, compare_sites, match
from .library import name_defects
from .library_store import Library
from .materials import get_material
from .pipeline import analyze_frame
from .retrain_data import Crops
from .simulate.dataset import SimulatedFrame
from .targets import IGNORE
from .tuning import TOLERANCE_NM
from .weights import Model

#: A new version has to gain at least this on what is new: less is chance.
LEAST_GAIN = 0.002


@dataclass(frozen=True)
class Scores:
    """Scores of one model: name of the measure to value between 0 and 1, and how many cases each rests on.

    ``new`` is what was to be learned, ``old`` the standard simulated set, ``detail`` single kinds for the table.
    """

    new: Mapping[str, float] = field(default_factory=dict)
    old: Mapping[str, float] = field(default_factory=dict)
    detail: Mapping[str, float] = field(default_factory=dict)
    cases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether the new version is kept, and why.

    Attributes
    ----------
    kept : bool
    reason : str
        One line.
    rows : tuple of dict
        The table: measure, part, before, after, cases, verdict.
    """

    kept: bool
    reason: str
    rows: tuple[dict[str, Any], ...]

    def text(self) -> str:
        """The table for people."""
        lines = [f"{'measure':<34}{'before':>8}{'after':>8}{'cases':>7}  "]
        for r in self.rows:
            lines.append(f"{r['measure']:<34}{_number(r['before']):>8}{_number(r['after']):>8}{r['cases']:>7}  "
                         f"{r['verdict']}")
        return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.4f}"


def judge_versions(before: Scores, after: Scores, *, margin: float) -> Verdict:
    """Kept only if better on the new and nowhere worse on the old beyond the margin.

    Parameters
    ----------
    before, after : Scores
        Of the previous and the new version, on the same data.
    margin : float
        Largest loss of any score, on the old or on a part of the new.
    """
    rows: list[dict[str, Any]] = []
    reasons = []
    for part, one, other in (("new", before.new, after.new), ("old", before.old, after.old),
                             ("detail", before.detail, after.detail)):
        for name in one:
            a, b = one[name], other.get(name, float("nan"))
            worse = part != "detail" and b < a - margin
            verdict = "worse" if worse else "better" if b > a + LEAST_GAIN else ""
            rows.append({"part": part, "measure": f"{part}: {name}", "before": a, "after": b,
                         "cases": before.cases.get(name, 0), "verdict": verdict})
            if worse:
                reasons.append(f"{name} falls from {a:.4f} to {b:.4f}")
    gain = float(np.mean(list(after.new.values())) - np.mean(list(before.new.values()))) if before.new else 0.0
    if gain < LEAST_GAIN:
        reasons.insert(0, f"not better on the new ({gain:+.4f})")
    if reasons:
        return Verdict(False, "; ".join(reasons), tuple(rows))
    return Verdict(True, f"better on the new by {gain:.4f}, nowhere worse by more than {margin:g}", tuple(rows))


def score_model(model: Model, *, library: Library | None, found: Sequence[SimulatedFrame], crops: Crops | None,
                standard: Sequence[SimulatedFrame], progress: Callable[[int], None] | None = None) -> Scores:
    """All scores of one model.

    Parameters
    ----------
    model : Model
    library : Library, optional
        Names of the found structures, as `annotate` would use them.
    found : sequence of SimulatedFrame
        Frames of the found structures that were not trained on.
    crops : Crops, optional
        Corrected crops that were held out.
    standard : sequence of SimulatedFrame
        The standard simulated set.
    progress : callable, optional
        Called with the number of frames done.
    """
    new: dict[str, float] = {}
    detail: dict[str, float] = {}
    cases: dict[str, int] = {}
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done)

    if found:
        sites, species, hits, total = SiteCounts(), [0, 0], Counter[str](), Counter[str]()
        for s in found:
            analysis = _analysis(model, s)
            sites, species = _sites(analysis, s, sites, species)
            named = analysis if library is None or analysis is None else name_defects(analysis, library)
            _recall(named, s, hits, total)
            one()
        new["defects found and named"] = sum(hits.values()) / max(sum(total.values()), 1)
        cases["defects found and named"] = sum(total.values())
        new["site F1 in their frames"], cases["site F1 in their frames"] = sites.f1, sites.hits + sites.missed
        for name in sorted(total):
            detail[f"recall of {name}"] = hits[name] / total[name]
            cases[f"recall of {name}"] = total[name]
    if crops is not None and len(crops):
        new["corrected crops"], cases["corrected crops"] = crop_agreement(model, crops), len(crops)
    old: dict[str, float] = {}
    sites, species, hits, total = SiteCounts(), [0, 0], Counter[str](), Counter[str]()
    false = 0
    for s in standard:
        analysis = _analysis(model, s)
        sites, species = _sites(analysis, s, sites, species)
        false += _recall(analysis, s, hits, total)
        one()
    if standard:
        old["site F1"], cases["site F1"] = sites.f1, sites.hits + sites.missed
        old["element right"], cases["element right"] = species[0] / max(species[1], 1), species[1]
        right = sum(hits.values())
        old["defect F1"] = 2 * right / max(right + false + sum(total.values()), 1)
        cases["defect F1"] = sum(total.values())
    return Scores(new, old, detail, cases)


def _analysis(model: Model, s: SimulatedFrame) -> FrameAnalysis | None:
    try:
        return analyze_frame(s.frame, model, material=s.material)
    except StemdlError:
        return None


def _sites(analysis: FrameAnalysis | None, s: SimulatedFrame, counts: SiteCounts,
           species: list[int]) -> tuple[SiteCounts, list[int]]:
    pixel = s.conditions.pixel_nm
    yx = np.zeros((0, 2)) if analysis is None else analysis.sites.yx_px
    result = compare_sites(yx, s.sites.yx_px, counted=s.visible, undefined=s.hidden == 2,
                           within_px=TOLERANCE_NM / pixel,
                           border_px=0.5 * get_material(s.material).bond_nm / pixel)
    if analysis is not None and len(result.pairs):
        same = analysis.sites.species[result.pairs[:, 0]] == s.sites.species[result.pairs[:, 1]]
        species = [species[0] + int(same.sum()), species[1] + len(same)]
    return counts + result.counts, species


def _recall(analysis: FrameAnalysis | None, s: SimulatedFrame, hits: Counter[str], total: Counter[str]) -> int:
    """Count true defects whose atoms are all in view, those found by name and place; returns the false ones."""
    items = () if analysis is None else analysis.defects.items
    centers = np.array([d.center_px for d in items]).reshape(-1, 2)
    pixel = s.conditions.pixel_nm
    pairs = {int(b): int(a) for a, b in match(centers, s.centers_px, within_px=0.15 / pixel)}
    judged = [k for k, d in enumerate(s.defects) if not s.sites.edge[list(d.site_ids)].any()
              and s.visible[list(d.site_ids)].all()]
    for k in judged:
        total[s.defects[k].name] += 1
        hits[s.defects[k].name] += k in pairs and items[pairs[k]].name == s.defects[k].name
    # A found one near a true one that is cut by the border is not false, and the border itself judges none.
    margin = 0.35 / pixel
    limit = np.asarray(s.frame.shape) - 1 - margin
    known = set(pairs.values())
    false = 0
    for a, d in enumerate(items):
        y, x = d.center_px
        inside = margin <= y <= limit[0] and margin <= x <= limit[1]
        hidden = s.hidden[int(np.clip(round(y), 0, s.hidden.shape[0] - 1)),
                          int(np.clip(round(x), 0, s.hidden.shape[1] - 1))]
        wrong = a in known and any(pairs.get(k) == a and d.name != s.defects[k].name for k in judged)
        false += bool(inside and not hidden and (wrong or a not in known))
    return false


def crop_agreement(model: Model, crops: Crops) -> float:
    """F1 of the pixels that network and correction call the same within one pixel, background apart.

    Without the tolerance the rims of discs of three pixels would decide.
    """
    hits, claimed, called = 0, 0, 0
    with torch.inference_mode():
        for k in range(0, len(crops), 16):
            x = torch.from_numpy(crops.images[k:k + 16].astype(np.float32))[:, None].to(model.device)
            found = model.network(x).argmax(1).cpu().numpy()
            target = crops.targets[k:k + 16]
            free = target == IGNORE
            found = np.where(free, 0, found)
            for number in range(1, len(model.card.classes)):
                said, seen = target == number, found == number
                near_seen = maximum_filter(seen, size=(1, 3, 3))
                near_said = maximum_filter(said, size=(1, 3, 3))
                hits += int((said & near_seen).sum()) + int((seen & near_said).sum())
                claimed += int(said.sum())
                called += int(seen.sum())
    return hits / max(claimed + called, 1)
