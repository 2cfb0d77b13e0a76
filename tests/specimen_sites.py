"""Sites as a perfect detector delivers them, with stated errors: chemistry tested apart from detection."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from stemdl_core.analysis import FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.columns import Z_EXPONENT
from stemdl_core.defects import find_defects
from stemdl_core.graph import AtomGraph, build_graph
from stemdl_core.materials import get_material
from stemdl_core.mx2 import alloy_fractions
from stemdl_core.simulate.structures import Specimen
from stemdl_core.sites import Sites

PIXEL_NM = 0.01


def observed(specimen: Specimen, rng: np.random.Generator, *, noise_pm: float = 5.0, scale: float = 1.0,
             intensity_noise: float = 0.05) -> tuple[Sites, tuple[int, int]]:
    """Columns inside the field of view with Gaussian errors of position and intensity, and the image's shape.

    For graphene every atom carries its species; for MX2 only position and intensity are known.
    """
    height, width = specimen.shape_nm
    yx = specimen.yx_nm
    keep = np.flatnonzero(np.all((yx >= 0) & (yx <= [height, width]), axis=1))
    yx, symbols = yx[keep], np.array(specimen.atoms.get_chemical_symbols())[keep]
    brightness = specimen.atoms.numbers[keep].astype(float) ** Z_EXPONENT
    pairs = cKDTree(yx).query_pairs(0.02, output_type="ndarray")
    brightness[pairs[:, 0]] += brightness[pairs[:, 1]]
    single = np.ones(len(yx), dtype=bool)
    single[pairs[:, 1]] = False
    yx, symbols, brightness = yx[single], symbols[single], brightness[single]
    brightness = brightness / np.median(brightness) * (1 + rng.normal(0, intensity_noise, len(yx)))
    px = (yx + rng.normal(0, 1e-3 * noise_pm, yx.shape)) * scale / PIXEL_NM - 0.5
    host = get_material(specimen.material)
    species = symbols if host.kind == "honeycomb" else np.full(len(yx), host.species[0])
    sites = Sites.from_columns(
        y_px=px[:, 0],
        x_px=px[:, 1],
        species=species,
        sigma_pm=np.full(len(yx), max(noise_pm, 0.5)),
        intensity=brightness,
        intensity_sigma=np.full(len(yx), intensity_noise),
    )
    return sites, (round(height * scale / PIXEL_NM), round(width * scale / PIXEL_NM))


def graph_of(
    sites: Sites, shape: tuple[int, int], material: str = "graphene", dopant: str | None = None
) -> AtomGraph:
    """The bond graph at the nominal pixel size."""
    return build_graph(
        sites, material=get_material(material), pixel_size=PixelSize(PIXEL_NM), shape=shape, dopant=dopant
    )


def analysis_of(specimen: Specimen, rng: np.random.Generator, **observation: float) -> FrameAnalysis:
    """Everything about one frame of a specimen, as `observed`."""
    sites, shape = observed(specimen, rng, **observation)
    graph = graph_of(sites, shape, specimen.material)
    return FrameAnalysis(model="test", material=specimen.material, shape=shape, pixel_size=graph.pixel_size,
                         sites=graph.sites, bonds=graph.bonds, defects=find_defects(graph), rings=graph.rings,
                         alloy=alloy_fractions(graph))


def names_of(sites: Sites, shape: tuple[int, int], material: str = "graphene") -> list[str]:
    """Names of the defects, sorted."""
    return sorted(d.name for d in find_defects(graph_of(sites, shape, material)))
