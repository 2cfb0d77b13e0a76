"""Table of position errors over the Cramer-Rao bound, and the time for 1,000 columns.

Run as ``PYTHONPATH=.:tests python tests/benchmarks/bench_refine.py`` from the project's folder.
"""

from __future__ import annotations

import time

import numpy as np
from column_scenes import fit_one_by_one, honeycomb, laplacian_parabola, scene

from stemdl_core.refine import refine_sites


def rms(errors: list[np.ndarray]) -> float:
    """Root mean square along one axis."""
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def main() -> None:
    """Print both."""
    rng = np.random.default_rng(7)
    print(f"{'scene':10}{'pm/px':>6}{'e/atom':>8}{'bound pm':>10}{'joint':>8}{'z std':>7}{'one by one':>12}"
          f"{'LoG':>8}   (rms over bound)")
    for kind in ("lattice", "isolated", "silicon", "trimer"):
        for pixel_nm in (0.005, 0.010, 0.020):
            for dose in (10, 30, 100, 300, 1000):
                joint, single, laplace, scores = [], [], [], []
                world = scene(kind, dose, pixel_nm)
                for _ in range(3 if kind == "lattice" else 8):
                    image, start = world.image(rng), world.start(rng, 15.0)
                    found = refine_sites(image, *start, pixel_size_nm=pixel_nm, groups=world.groups)
                    error = world.errors_pm(found.y_px, found.x_px)
                    joint.append(error)
                    scores.append(error / found.sigma_pm[world.judged, None])
                    single.append(world.errors_pm(*fit_one_by_one(image, *start, pixel_nm=pixel_nm)))
                    laplace.append(world.errors_pm(*laplacian_parabola(image, *start, pixel_nm=pixel_nm)))
                bound = scene(kind, dose, 0.020).bound_pm()
                spread = np.std(np.concatenate(scores))
                print(f"{kind:10}{1e3 * pixel_nm:6.0f}{dose:8d}{bound:10.2f}{rms(joint) / bound:8.2f}"
                      f"{spread:7.2f}{rms(single) / bound:12.2f}{rms(laplace) / bound:8.2f}", flush=True)
    for pixel_nm in (0.005, 0.010, 0.020):
        fov = 5.1
        world = scene("lattice", 100.0, pixel_nm, fov_nm=fov)
        image, start = world.image(rng), world.start(rng, 15.0)
        wall, own = [], []
        for _ in range(15):
            first, first_own = time.perf_counter(), time.process_time()
            refine_sites(image, *start, pixel_size_nm=pixel_nm)
            wall.append(time.perf_counter() - first)
            own.append(time.process_time() - first_own)
        print(f"{len(honeycomb(fov, 0.3))} columns at {1e3 * pixel_nm:.0f} pm/px: "
              f"{1e3 * min(wall):.0f} ms wall, {1e3 * min(own):.0f} ms processor")


if __name__ == "__main__":
    main()
