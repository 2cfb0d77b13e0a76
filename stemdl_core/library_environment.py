"""Defects with the atoms around them: what a library of defects is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
from networkx.algorithms.isomorphism import categorical_node_match
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .analysis import Defect, FrameAnalysis
from .frames import Frame
from .materials import get_material
from .planar import find_faces
from .preprocess import mend

#: Atoms this far beyond the defect's own are compared [nm]: about one ring; kept are more, for the comparison with
#: larger ones.
COMPARED_NM, KEPT_NM, LEAST_KEPT_NM = 0.20, 0.36, 0.90
#: Images of defects are kept on a grid of this pixel size and number of pixels [nm].
GRID_NM, GRID_PX = 0.015, 96


@dataclass(frozen=True, eq=False)
class Environment:
    """A defect, or several that touch, with the atoms around.

    Parameters
    ----------
    source, frame : str, int
        Where it is from.
    defect_ids, names : tuples
        The defects of the frame that it consists of, and what they were called.
    probability : float
        Smallest of the parts'.
    center_px : (float, float)
        Origin of `yx_nm` on the image [px].
    yx_nm : (N, 2) float64
        Positions about the centre, in nm of a host whose bond has its nominal length.
    species : (N,) str
    core : (N,) bool
        The defect's own atoms.
    sigma_nm : (N,) float64
        Standard deviation of a position along one axis [nm].
    bonds : (B, 2) int64
    rings : tuple of tuple of int
        Rings through the defect's foreign atoms, and rings other than hexagons that touch it.
    reach_nm : float
        Distance of the centre from the image's border [nm].
    turn_rad, coherence : float
        Direction of the host's bonds modulo 60 degrees, and how well it is defined (0 to 1).
    missing : int
        Host atoms missing.
    host : tuple of str
        Species of the host.
    pixel_nm : float
        Pixel size of the frame [nm].
    image : (GRID_PX, GRID_PX) float32, optional
        The defect, a host column being 1 and the middle of a ring 0.
    """

    source: str
    frame: int
    defect_ids: tuple[int, ...]
    names: tuple[str, ...]
    probability: float
    center_px: tuple[float, float]
    yx_nm: NDArray[np.float64]
    species: NDArray[np.str_]
    core: NDArray[np.bool_]
    sigma_nm: NDArray[np.float64]
    bonds: NDArray[np.int64]
    rings: tuple[tuple[int, ...], ...]
    reach_nm: float
    turn_rad: float
    coherence: float
    missing: int
    host: tuple[str, ...]
    pixel_nm: float
    image: NDArray[np.float32] | None = field(default=None, repr=False)

    @property
    def extent_nm(self) -> float:
        """Greatest distance of the defect's own atoms from the centre [nm]."""
        return float(np.max(np.hypot(*self.yx_nm[self.core].T), initial=0.1))

    @property
    def whole(self) -> bool:
        """All that is compared lies inside the image."""
        return self.reach_nm >= self.extent_nm + COMPARED_NM

    @cached_property
    def chemistry(self) -> tuple[object, ...]:
        """What no noise changes: foreign atoms, and for a dichalcogenide the column's content."""
        foreign = Counter(s for s in self.species[self.core].tolist() if s not in self.host)
        key: tuple[object, ...] = tuple(sorted(foreign.items()))
        if len(self.host) > 1:
            key = (*key, *sorted(Counter(self.species[self.core].tolist()).items()), self.missing)
        return key

    @cached_property
    def graph(self) -> nx.Graph:
        """Atoms and rings of the defect as a graph: an atom's label is its species, a ring's its size."""
        graph: nx.Graph = nx.Graph()
        members = {i for ring in self.rings for i in ring} | set(np.flatnonzero(self.core).tolist())
        for i in sorted(members):
            graph.add_node(i, label=str(self.species[i]))
        for a, b in self.bonds.tolist():
            if a in members and b in members:
                graph.add_edge(a, b)
        for k, ring in enumerate(self.rings):
            graph.add_node(("ring", k), label=f"ring {len(ring)}")
            graph.add_edges_from((("ring", k), i) for i in ring)
        if len(self.host) > 1:
            graph.add_node("missing", label=f"missing {self.missing}")
        return graph

    @cached_property
    def key(self) -> str:
        """Hash of the graph, equal for isomorphic ones (Weisfeiler-Lehman)."""
        return str(nx.weisfeiler_lehman_graph_hash(self.graph, node_attr="label", iterations=4))

    def same_graph(self, other: Environment) -> bool:
        """Whether the graphs are isomorphic, with species and ring sizes."""
        return self.key == other.key and bool(
            nx.is_isomorphic(self.graph, other.graph, node_match=categorical_node_match("label", "")))


def environments(analysis: FrameAnalysis, frame: Frame | None = None, *, source: str = "") -> list[Environment]:
    """Every defect of a frame with its surroundings; defects that touch are one.

    Parameters
    ----------
    analysis : FrameAnalysis
    frame : Frame, optional
        With it, each environment has its image.
    source : str
        Name of the file; the frame's own by default.
    """
    if len(analysis.defects) == 0:
        return []
    view = _View(analysis, frame, source or (frame.source if frame is not None else ""))
    return [e for group in touching(analysis) if (e := view.environment(group)) is not None]


def touching(analysis: FrameAnalysis) -> list[list[Defect]]:
    """Defects grouped where they share an atom or a bond joins them."""
    owner: dict[int, list[int]] = {}
    for k, d in enumerate(analysis.defects):
        for i in d.site_ids:
            owner.setdefault(i, []).append(k)
    links: nx.Graph = nx.Graph()
    links.add_nodes_from(range(len(analysis.defects)))
    for several in owner.values():
        links.add_edges_from(zip(several, several[1:]))
    honeycomb = get_material(analysis.material).kind == "honeycomb"
    for a, b in zip(analysis.bonds.a.tolist(), analysis.bonds.b.tolist()) if honeycomb else ():
        if a in owner and b in owner:
            links.add_edge(owner[a][0], owner[b][0])
    return [[analysis.defects[k] for k in sorted(part)] for part in nx.connected_components(links)]


class _View:
    """What all environments of one frame have in common."""

    def __init__(self, analysis: FrameAnalysis, frame: Frame | None, source: str) -> None:
        self.analysis, self.source = analysis, source
        self.material = get_material(analysis.material)
        self.pixel = analysis.pixel_size
        sites, bonds = analysis.sites, analysis.bonds
        host = np.isin(sites.species, self.material.species)
        plain = host[bonds.a] & host[bonds.b]
        self.scale = 1.0
        if plain.sum() >= 20:
            self.scale = float(np.median(bonds.length_pm[plain])) / (1e3 * self.material.bond_nm)
        self.yx = self.pixel.to_nm(sites.yx_px)
        self.faces = find_faces(self.yx, bonds.a, bonds.b)
        self.ringed = np.flatnonzero((self.faces.area > 0) & (self.faces.size <= 24))
        self.rings = [tuple(self.faces.nodes(int(f))) for f in self.ringed]
        self.tree = cKDTree(self.yx) if len(sites) else None
        self.foreign = ~host
        self.image = None if frame is None else mend(frame.image).image
        self.middles = np.array([sites.yx_px[list(r)].mean(axis=0) for r in self.rings if len(r) == 6])

    def environment(self, group: Sequence[Defect]) -> Environment | None:
        """One group of touching defects; None where nothing of it is left to see."""
        ids = sorted({i for d in group for i in d.site_ids})
        if not ids or self.tree is None:
            return None
        sites = self.analysis.sites
        foreign = [i for i in ids if self.foreign[i]]
        center_px = np.mean([d.center_px for d in group], axis=0)
        if foreign:
            center_px = sites.yx_px[foreign].mean(axis=0)
        center = self.pixel.to_nm(center_px)
        extent = float(np.max(np.hypot(*(self.yx[ids] - center).T)))
        kept_nm = max(extent + KEPT_NM * self.scale, LEAST_KEPT_NM * self.scale)
        kept = np.array(sorted(self.tree.query_ball_point(center, kept_nm)), dtype=np.int64)
        local = {int(i): k for k, i in enumerate(kept)}
        inside = np.isin(self.analysis.bonds.a, kept) & np.isin(self.analysis.bonds.b, kept)
        pairs = np.stack([self.analysis.bonds.a[inside], self.analysis.bonds.b[inside]], axis=1)
        own = set(ids)
        seeds = set(foreign)
        rings = tuple(tuple(local[i] for i in ring) for ring in self.rings
                      if all(i in local for i in ring) and (seeds & set(ring) if len(ring) == 6 else own & set(ring)))
        corner = np.asarray(self.analysis.shape) - 1.0
        reach = float(np.min(np.concatenate([center_px, corner - center_px]))) * self.pixel.nm / self.scale
        turn, coherence = self._turn(kept, own)
        sigma = np.where(np.isfinite(sites.sigma_pm[kept]), sites.sigma_pm[kept], 10.0)
        return Environment(
            self.source, self.analysis.frame, tuple(d.id for d in group), tuple(d.name for d in group),
            float(min(d.probability for d in group)), (float(center_px[0]), float(center_px[1])),
            (self.yx[kept] - center) / self.scale, sites.species[kept], np.isin(kept, ids), 1e-3 * sigma,
            np.array([[local[a], local[b]] for a, b in pairs.tolist()], dtype=np.int64).reshape(-1, 2), rings, reach,
            turn, coherence, sum(d.missing_atoms for d in group), self.material.species, self.pixel.nm,
            self._picture(center_px, kept))

    def _turn(self, kept: NDArray[np.int64], own: set[int]) -> tuple[float, float]:
        bonds = self.analysis.bonds
        near = np.isin(bonds.a, kept) & np.isin(bonds.b, kept)
        clean = near & ~np.isin(bonds.a, list(own)) & ~np.isin(bonds.b, list(own))
        use = clean if clean.sum() >= 6 else near
        step = self.yx[bonds.b[use]] - self.yx[bonds.a[use]]
        if len(step) == 0:
            return 0.0, 0.0
        phase = np.exp(6j * np.arctan2(step[:, 0], step[:, 1])).mean()
        return float(np.angle(phase)) / 6.0, float(abs(phase))

    def _picture(self, center_px: NDArray[np.float64], kept: NDArray[np.int64]) -> NDArray[np.float32] | None:
        if self.image is None:
            return None
        from scipy.ndimage import gaussian_filter, map_coordinates

        # Only the part that is needed, softened by a third of a column's width: levels below single electrons.
        half = int(np.ceil(0.75 * GRID_PX * GRID_NM * self.scale / self.pixel.nm)) + 3
        low = np.clip(np.round(center_px).astype(int) - half, 0, None)
        part = self.image[low[0]:low[0] + 2 * half + 1, low[1]:low[1] + 2 * half + 1]
        part = gaussian_filter(part.astype(np.float64), min(0.022 / self.pixel.nm, 8.0), mode="nearest")
        steps = (np.arange(GRID_PX) - (GRID_PX - 1) / 2) * GRID_NM * self.scale
        grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)
        place = center_px + self.pixel.to_px(grid) - low

        def at(points: NDArray[np.float64]) -> NDArray[np.float64]:
            return map_coordinates(part, np.moveaxis(points - low, -1, 0), order=1, mode="nearest")

        sites = self.analysis.sites
        columns = sites.yx_px[kept[~self.foreign[kept]]]
        near = self.middles[np.hypot(*(self.middles - center_px).T) < half] if len(self.middles) else self.middles
        bright = float(np.median(at(columns))) if len(columns) else float(part.max())
        dark = float(np.median(at(near))) if len(near) else float(part.min())
        picture = map_coordinates(part, np.moveaxis(place, -1, 0), order=1, mode="constant", cval=np.nan)
        picture = (picture - dark) / max(bright - dark, 1e-9)
        return np.clip(picture, -3.0, 12.0).astype(np.float32)
