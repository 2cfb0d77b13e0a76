"""Defects cut into a perfect sheet and never relaxed, as image simulations often have them, keep their names."""

from __future__ import annotations

import numpy as np
import pytest
from specimen_sites import PIXEL_NM

from stemdl_core.calibration import PixelSize
from stemdl_core.defects import find_defects
from stemdl_core.graph import build_graph
from stemdl_core.materials import get_material
from stemdl_core.simulate.structures import graphene
from stemdl_core.sites import Sites


def cut(kind, turn, rng, noise_pm):
    """Sites of a rigid sheet with one defect near its middle."""
    yx = graphene(fov_nm=3.0, rotation_deg=turn, margin_nm=0.0).yx_nm.copy()
    species = np.full(len(yx), "C", dtype="U2")
    order = np.argsort(np.hypot(*(yx - 1.5).T))
    middle = int(order[0])
    first, second, third = (int(i) for i in np.argsort(np.hypot(*(yx - yx[middle]).T))[1:4])
    centre, step = 0.5 * (yx[middle] + yx[first]), 0.5 * (yx[first] - yx[middle])
    ring = np.argsort(np.hypot(*(yx - (2 * yx[middle] - yx[first])).T))[:6].tolist()
    gone = {"SV": [middle], "DV(5-8-5)": [middle, first], "Si-C4": [middle, first], "V3": [middle, first, second],
            "V4": [middle, first, second, third], "V6": ring}.get(kind, [])
    if kind == "SW(55-77)":
        turned = np.array([step[1], -step[0]])
        yx[middle], yx[first] = centre + turned, centre - turned
    for name, dopants in (("Si-C3", [middle]), ("N-C3", [middle]), ("Si2C4", [middle, first]),
                          ("Si2C5", [first, second])):
        if kind == name:
            species[dopants] = name[:2].rstrip("-")
    yx, species = np.delete(yx, gone, axis=0), np.delete(species, gone)
    if kind == "Si-C4":
        yx, species = np.concatenate([yx, [centre]]), np.append(species, "Si")
    px = (yx + rng.normal(0, 1e-3 * noise_pm, yx.shape)) / PIXEL_NM - 0.5
    return Sites.from_columns(y_px=px[:, 0], x_px=px[:, 1], species=species,
                              sigma_pm=np.full(len(px), max(noise_pm, 1.0)))


@pytest.mark.parametrize("kind", ["SV", "DV(5-8-5)", "V3", "V4", "V6", "SW(55-77)", "Si-C3", "Si-C4", "N-C3", "Si2C4",
                                  "Si2C5"])
def test_rigid_defects_keep_their_names(kind, rng):
    for turn, noise, scale in ((0.0, 0.0, 1.0), (17.0, 4.0, 0.95), (41.0, 8.0, 1.05)):
        graph = build_graph(cut(kind, turn, rng, noise), material=get_material("graphene"),
                            pixel_size=PixelSize(scale * PIXEL_NM), shape=(300, 300))
        assert [d.name for d in find_defects(graph)] == [kind]
