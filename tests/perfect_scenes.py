"""What a perfect detector, or one with a stated error, would make of a specimen."""

from __future__ import annotations

import numpy as np

from stemdl_core.analysis import FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.defects import find_defects
from stemdl_core.graph import build_graph
from stemdl_core.materials import get_material
from stemdl_core.sites import Sites

PIXEL = PixelSize(0.01)


def analysis_of(specimen, *, drop=(), species=None, noise_nm=0.0, rng=None) -> FrameAnalysis:
    """Sites are the atoms inside the field, those of `drop` overlooked, places wrong by `noise_nm` along each axis."""
    side = round(specimen.fov_nm / PIXEL.nm)
    yx = specimen.yx_nm / PIXEL.nm - 0.5
    if noise_nm:
        yx = yx + rng.normal(0.0, noise_nm / PIXEL.nm, yx.shape)
    inside = ((yx > 0) & (yx < side - 1)).all(axis=1)
    inside[list(drop)] = False
    names = np.array(specimen.atoms.get_chemical_symbols()) if species is None else species
    sites = Sites.from_columns(y_px=yx[inside, 0], x_px=yx[inside, 1], species=names[inside],
                               sigma_pm=np.full(inside.sum(), max(1e3 * noise_nm, 3.0)))
    graph = build_graph(sites, material=get_material("graphene"), pixel_size=PIXEL, shape=(side, side))
    return FrameAnalysis(model="perfect", material="graphene", shape=(side, side), pixel_size=PIXEL,
                         sites=graph.sites, bonds=graph.bonds, defects=find_defects(graph), rings=graph.rings)
