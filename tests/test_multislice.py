"""The fast model's column intensities against multislice (abTEM, an extra; the tests skip without it)."""

from __future__ import annotations

from functools import cache

import ase
import numpy as np
import pytest

from stemdl_core.simulate.imaging import column_intensity

abtem = pytest.importorskip("abtem", reason="abTEM (extra `multislice`) is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

#: Annular detectors [mrad] and the exponent that the fast model has for each: 1.64 is that of Krivanek et al.
#: (Nature 2010, 464, 571) for 58-200 mrad; farther out, light atoms come closer to Rutherford's Z^2.
EXPONENT = {(58.0, 200.0): 1.64, (80.0, 200.0): 1.87}


@cache
def column_sums(symbol: str) -> dict[tuple[float, float], float]:
    """Signal of one atom summed over probe positions, for each detector: 60 kV, 32 mrad, aberration-free.

    The sum over positions is the volume of the column's profile, whatever the probe's shape is.
    """
    side, half = 10.0, 2.4
    atom = ase.Atoms(symbol, positions=[[side / 2, side / 2, 1.0]], cell=[side, side, 2.0])
    quiet = {"diagnostics.progress_bar": False, "local_diagnostics.progress_bar": False}
    with abtem.config.set({"device": "cpu", **quiet}):
        potential = abtem.Potential(atom, sampling=0.05, slice_thickness=2.0, parametrization="lobato",
                                    projection="infinite")
        probe = abtem.Probe(energy=60e3, semiangle_cutoff=32)
        probe.grid.match(potential)
        middle = side / 2
        # Finer than half the probe's resolution, as the aperture demands.
        scan = abtem.GridScan(start=(middle - half,) * 2, end=(middle + half,) * 2, sampling=0.37, endpoint=False)
        detectors = [abtem.AnnularDetector(inner=inner, outer=outer) for inner, outer in EXPONENT]
        measured = probe.scan(potential, scan=scan, detectors=detectors).compute(progress_bar=False)
    return {angles: float(np.asarray(m.array).sum()) for angles, m in zip(EXPONENT, measured, strict=True)}


@pytest.mark.parametrize("angles", EXPONENT)
@pytest.mark.parametrize(("bright", "dim"), [("Si", "C"), ("N", "C"), ("Mo", "Se"), ("W", "Mo")])
def test_contrast_of_two_elements_agrees_with_multislice(bright: str, dim: str, angles: tuple[float, float]) -> None:
    exact = column_sums(bright)[angles] / column_sums(dim)[angles]
    numbers = ase.Atoms(f"{bright}{dim}").numbers
    first, second = column_intensity(numbers, EXPONENT[angles])
    assert first / second == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize("angles", EXPONENT)
def test_tungsten_saturates(angles: tuple[float, float]) -> None:
    exact = column_sums("W")[angles] / column_sums("Mo")[angles]
    # What the exponent between the metals truly is: far below that of light atoms.
    assert 0.9 < np.log(exact) / np.log(74 / 42) < 1.45
