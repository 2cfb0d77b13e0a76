"""Cut-outs for first-principles calculations."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from specimen_sites import PIXEL_NM, graph_of, observed

from stemdl_core.analysis import FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.cutout import defect_cutout, write_cutout
from stemdl_core.defects import find_defects
from stemdl_core.errors import StemdlError
from stemdl_core.frames import Frame
from stemdl_core.results import write_frame_results
from stemdl_core.simulate.structures import add_defect, graphene, mx2


def analysed(specimen, rng, *, scale=1.0):
    sites, shape = observed(specimen, rng, noise_pm=2.0, scale=scale)
    graph = graph_of(sites, shape, specimen.material)
    return FrameAnalysis("none", specimen.material, shape, PixelSize(PIXEL_NM), graph.sites, graph.bonds,
                         find_defects(graph), graph.rings)


def test_cutout_of_a_fourfold_silicon_is_centred_scaled_and_has_vacuum(rng):
    analysis = analysed(add_defect(graphene(fov_nm=4.0), "Si-C4", (2.0, 2.0), rng=rng), rng, scale=1.03)
    atoms = defect_cutout(analysis, 0, radius_nm=0.6, vacuum_nm=1.2)
    assert atoms.get_chemical_formula().endswith("Si")
    assert atoms.arrays["defect"].sum() == 5
    silicon = int(np.flatnonzero(atoms.numbers == 14)[0])
    near = np.sort(atoms.get_distances(silicon, np.flatnonzero(atoms.numbers == 6)))[:4]
    np.testing.assert_allclose(near, 1.77, atol=0.1)
    carbon = atoms[atoms.arrays["defect"] == 0]
    assert np.median(np.sort(carbon.get_all_distances(), axis=1)[:, 1]) == pytest.approx(1.42, abs=0.03)
    span = np.ptp(atoms.positions, axis=0)
    np.testing.assert_allclose(atoms.cell.lengths() - span, 12.0, atol=1e-6)
    assert atoms.positions.min() >= 6.0 - 1e-6


@pytest.mark.parametrize("name", ["POSCAR", "defect.vasp", "defect.cif", "defect.xyz"])
def test_written_files_read_back(name, rng, tmp_path):
    analysis = analysed(add_defect(graphene(fov_nm=3.0), "Si3C6", (1.5, 1.5), rng=rng), rng)
    atoms = defect_cutout(analysis, 0, radius_nm=0.5)
    write_cutout(tmp_path / name, atoms)
    back = ase.io.read(tmp_path / name)
    assert sorted(back.get_chemical_symbols()) == sorted(atoms.get_chemical_symbols())
    np.testing.assert_allclose(back.cell.lengths(), atoms.cell.lengths(), rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_chalcogen_columns_become_two_atoms_and_half_vacancies_one(rng):
    analysis = analysed(add_defect(mx2(material="MoSe2", fov_nm=5.0), "V_Se", (2.5, 2.5), rng=rng), rng)
    assert [d.name for d in analysis.defects] == ["V_Se"]
    atoms = defect_cutout(analysis, 0, radius_nm=0.35)
    heights = atoms.positions[atoms.numbers == 34, 2]
    assert abs(int(np.sum(heights > heights.mean())) - int(np.sum(heights < heights.mean()))) == 1


def test_errors_name_what_is_wrong(rng, tmp_path):
    analysis = analysed(add_defect(graphene(fov_nm=3.0), "SV", (1.5, 1.5), rng=rng), rng)
    with pytest.raises(StemdlError, match="no defect 3: this frame has 1"):
        defect_cutout(analysis, 3)
    with pytest.raises(StemdlError, match=r"cannot write a\.docx"):
        write_cutout(tmp_path / "a.docx", defect_cutout(analysis, 0))


def test_results_hold_a_structure_for_every_defect_on_request(tmp_path, rng):
    analysis = analysed(add_defect(graphene(fov_nm=2.6), "Si-C4", (1.3, 1.3), rng=rng), rng)
    frame = Frame(rng.normal(size=analysis.shape).astype(np.float32), analysis.pixel_size)
    names = list(write_frame_results(tmp_path, analysis, frame, cutouts=True))
    for ending in ("vasp", "cif"):
        name = f"defect-0-Si-C4.{ending}"
        assert name in names
        atoms = ase.io.read(tmp_path / name)
        assert atoms.get_chemical_symbols().count("Si") == 1
        assert len(atoms) > 40
