"""Classes found without names against the truth: ``python tests/benchmarks/bench_library.py [frames [seed]]``.

Simulated frames of twelve kinds of defects at 100 detected electrons an atom, analysed by the shipped model. Printed
are the adjusted Rand index over the defects that were found, against the kinds and the structures (Si2C5 has two),
and for comparison that of the names which the chemistry gives.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from stemdl_core.evaluate import match, rand_index
from stemdl_core.library_classes import classify
from stemdl_core.library_environment import environments
from stemdl_core.pipeline import analyze_frame
from stemdl_core.tuning import simulated_frames
from stemdl_core.weights import load_model

KINDS = ("Si-C3", "Si-C4", "Si-C3+V", "Si2C4", "Si2C5", "Si2C6", "Si3C6", "Si4C6", "SV", "DV(5-8-5)", "DV(555-777)",
         "SW(55-77)")


def main(frames: int, seed: int) -> None:
    """Simulate, analyse, sort, compare."""
    model = load_model("graphene")
    found, kinds, structures, names, true = [], [], [], [], 0
    for k, s in enumerate(simulated_frames(("graphene",), frames, seed=seed, dose_e_per_atom=(100.0, 100.0),
                                           nuisance=0.0, fov_nm=(3.5, 5.5), kinds=KINDS, density_per_nm2=0.22,
                                           pristine_probability=0.0)):
        whole = [not s.sites.edge[list(d.site_ids)].any() for d in s.defects]
        true += sum(whole)
        several = environments(analyze_frame(s.frame, model), s.frame, source=str(k))
        centers = np.array([e.center_px for e in several]).reshape(-1, 2)
        pairs = match(centers, s.centers_px, within_px=0.15 / s.conditions.pixel_nm)
        truth = {int(a): s.defects[b] for a, b in pairs if whole[b]}
        for n, e in enumerate(several):
            d = truth.get(n)
            found.append(e)
            kinds.append("" if d is None else d.name)
            structures.append("" if d is None else f"{d.name} {d.missing_atoms}")
            names.append("+".join(e.names))
    started = time.process_time()
    classes = classify(found)
    seconds = time.process_time() - started
    place = {(e.source, e.center_px): n for n, e in enumerate(found)}
    label = [""] * len(found)
    for c in classes:
        for m in c.members:
            label[place[m.source, (m.y_px, m.x_px)]] = c.id
    judged = [n for n in range(len(found)) if kinds[n] and label[n]]

    def index(truth, given):
        return rand_index([truth[n] for n in judged], [given[n] for n in judged])

    print(f"{frames} frames, {true} true defects, {sum(k != '' for k in kinds)} found, {len(judged)} in "
          f"{len({label[n] for n in judged})} classes, sorted in {seconds:.1f} s")
    print(f"adjusted Rand index of the classes: {index(kinds, label):.3f} against kinds, "
          f"{index(structures, label):.3f} against structures; of the names: {index(kinds, names):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 15)
