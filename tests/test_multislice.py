"""Against multislice (abTEM, an extra; the tests skip without it): column intensities, and whole images analysed."""

from __future__ import annotations

from functools import cache

import ase
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from stemdl_core import analyze_frame, load_model
from stemdl_core.calibration import PixelSize
from stemdl_core.frames import Frame
from stemdl_core.simulate.imaging import column_intensity
from stemdl_core.simulate.structures import add_defect, graphene

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


#: Field of view of the image [nm], and the steps it is interpolated to [Angstrom].
FOV_NM, STEP = 3.4, 0.04
#: Its defects (y, x) [nm].
FIELD = {"SV": (0.8, 2.6), "SW(55-77)": (2.6, 2.6), "Si-C3": (0.8, 0.8), "Si-C4": (1.7, 1.7), "DV(5-8-5)": (2.6, 0.8)}


@cache
def field() -> np.ndarray:
    """(H, W) multislice image: 60 kV, 31 mrad, 60-170 mrad, aberration-free; one carbon atom has the sum one."""
    rng = np.random.default_rng(20171112)
    specimen = graphene(fov_nm=FOV_NM, rotation_deg=13.0)
    for kind, at in FIELD.items():
        specimen = add_defect(specimen, kind, at, rng=rng)
    margin, side = 5.0, 10 * FOV_NM
    atoms = specimen.atoms
    positions = atoms.positions + [margin, margin, 2.0]
    near = ((positions[:, :2] > 0) & (positions[:, :2] < side + 2 * margin)).all(axis=1)
    slab = ase.Atoms(atoms.numbers[near], positions=positions[near], cell=[side + 2 * margin, side + 2 * margin, 4.0])
    quiet = {"diagnostics.progress_bar": False, "local_diagnostics.progress_bar": False}
    with abtem.config.set({"device": "cpu", **quiet}):
        potential = abtem.Potential(slab, sampling=0.09, slice_thickness=1.0, parametrization="lobato",
                                    projection="infinite")
        matrix = abtem.SMatrix(potential=potential, energy=60e3, semiangle_cutoff=31, interpolation=3)
        scan = abtem.GridScan(start=(margin,) * 2, end=(margin + side,) * 2, sampling=0.33, endpoint=False)
        measured = matrix.scan(scan=scan, detectors=abtem.AnnularDetector(inner=60, outer=170))
        image = np.asarray(measured.compute(progress_bar=False).interpolate(STEP).array, dtype=np.float64).T
    inside = ((positions[:, :2] > margin) & (positions[:, :2] < margin + side)).all(axis=1)
    return image / image.sum() * float(((atoms.numbers[inside] / 6.0) ** 1.7).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("electrons", "pixel_nm", "source_pm"), [
    (np.inf, 0.006, 0.0), (np.inf, 0.02, 90.0), (1e6, 0.008, 70.0), (1e5, 0.01, 60.0), (1e3, 0.012, 80.0),
    (2e2, 0.016, 60.0),
])
def test_all_defects_of_a_multislice_image_are_named(electrons: float, pixel_nm: float, source_pm: float) -> None:
    image = gaussian_filter(field(), source_pm / 235.5 / STEP)
    at = np.arange(int(FOV_NM / pixel_nm)) * pixel_nm * 10 / STEP
    image = np.clip(map_coordinates(image, np.meshgrid(at, at, indexing="ij"), order=3, mode="nearest"), 0, None)
    if np.isfinite(electrons):
        image = np.random.default_rng(1).poisson(image * electrons * (10 * pixel_nm / STEP) ** 2)
    found = analyze_frame(Frame(image.astype(np.float32), PixelSize(pixel_nm, "metadata", pixel_nm)),
                          load_model("graphene"))
    assert sorted(d.name for d in found.defects) == sorted(FIELD)
    for defect in found.defects:
        place = np.array(FIELD[defect.name])
        assert np.hypot(*(np.array(defect.center_px) * pixel_nm - place)) < 0.25
