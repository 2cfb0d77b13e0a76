"""What is known about one analysed frame: sites, bonds, defects, rings, as tables and as ``analysis.json``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .calibration import PixelSize
from .sites import Sites

if TYPE_CHECKING:
    import networkx as nx

#: Two readings whose probability is within this factor are both listed.
AMBIGUITY = 3.0


def _column(values: Any, dtype: str) -> NDArray[Any]:
    column = np.array(values, dtype=dtype, ndmin=1)
    column.flags.writeable = False
    return column


@dataclass(frozen=True)
class Bonds:
    """Bonds between sites, as parallel columns.

    Parameters
    ----------
    a, b : (B,) int64
        Site numbers, a < b.
    length_pm : (B,) float64
        Projected bond length [pm].
    sigma_pm : (B,) float64
        Its standard deviation [pm]; NaN where not known.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    length_pm: NDArray[np.float64]
    sigma_pm: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, dtype in (("a", "i8"), ("b", "i8"), ("length_pm", "f8"), ("sigma_pm", "f8")):
            object.__setattr__(self, name, _column(getattr(self, name), dtype))

    @classmethod
    def empty(cls) -> Bonds:
        """No bonds, with the same columns and dtypes."""
        return cls(*(np.array([]) for _ in range(4)))

    def __len__(self) -> int:
        return len(self.a)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a bond."""
        return pd.DataFrame({"a": self.a, "b": self.b, "length_pm": self.length_pm, "sigma_pm": self.sigma_pm})


@dataclass(frozen=True)
class DefectBond:
    """A bond within a defect: site numbers, length [pm], standard deviation [pm] (NaN: not known)."""

    a: int
    b: int
    length_pm: float
    sigma_pm: float = float("nan")


@dataclass(frozen=True)
class DefectAngle:
    """The angle a-at-b within a defect [deg] and its standard deviation [deg] (NaN: not known)."""

    a: int
    at: int
    b: int
    deg: float
    sigma_deg: float = float("nan")


@dataclass(frozen=True)
class Defect:
    """A connected part of the graph that departs from the host lattice.

    Parameters
    ----------
    id : int
        Number within the frame.
    name : str
        ``Si-C3``, ``DV(5-8-5)``, ``V_Se``, ...; ``unknown`` where no name fits.
    composition : mapping of str to int
        Atoms of each element among `site_ids`.
    site_ids : tuple of int
        The foreign atoms and the lattice atoms bonded to them; for holes, the atoms around the hole.
    center_px : (float, float)
        Centre of mass (y, x) [px].
    missing_atoms : int
        Host atoms missing from the perfect lattice.
    bonds, angles : tuples
        Geometry of the defect.
    probability : float
        Probability of `name` given the measured positions.
    alternatives : tuple of (str, float)
        Other readings whose probability is within a factor of three of the best, most probable first.
    coordination : mapping of int to mapping of int to float
        For each foreign atom (site number), the probability of each number of bonds.
    misorientation_deg : float
        Of a grain boundary: angle between the lattices on its sides [deg], 0-30; NaN for all else, or where it cannot
        be told.
    """

    id: int
    name: str
    composition: Mapping[str, int]
    site_ids: tuple[int, ...]
    center_px: tuple[float, float]
    missing_atoms: int = 0
    bonds: tuple[DefectBond, ...] = ()
    angles: tuple[DefectAngle, ...] = ()
    probability: float = 1.0
    alternatives: tuple[tuple[str, float], ...] = ()
    coordination: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    misorientation_deg: float = float("nan")

    def to_dict(self) -> dict[str, Any]:
        """The defect as it stands in ``analysis.json``."""
        return {
            "id": self.id, "name": self.name, "composition": dict(self.composition),
            "site_ids": list(self.site_ids), "center_px": [float(v) for v in self.center_px],
            "missing_atoms": self.missing_atoms, "misorientation_deg": none_if_nan(self.misorientation_deg),
            "probability": self.probability,
            "alternatives": [{"name": n, "probability": p} for n, p in self.alternatives],
            "coordination": {str(k): {str(n): p for n, p in v.items()} for k, v in self.coordination.items()},
            "bonds": [{"a": b.a, "b": b.b, "length_pm": b.length_pm, "sigma_pm": none_if_nan(b.sigma_pm)}
                      for b in self.bonds],
            "angles": [{"a": g.a, "at": g.at, "b": g.b, "deg": g.deg, "sigma_deg": none_if_nan(g.sigma_deg)}
                       for g in self.angles],
        }


@dataclass(frozen=True)
class Defects:
    """The defects of one frame."""

    items: tuple[Defect, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Defect]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Defect:
        return self.items[index]

    def to_dataframe(self) -> pd.DataFrame:
        """One row a defect; lists are written with spaces between their members.

        Standard deviations stand in the order of the lengths and angles, `nan` where not known; the coordination of
        each foreign atom is ``<site>=<bonds>:<probability>/...``.
        """
        def mean(values: list[float]) -> float:
            return float(np.mean(values)) if values else float("nan")

        rows = {
            "id": [d.id for d in self], "name": [d.name for d in self],
            "composition": [" ".join(f"{k}{v}" for k, v in d.composition.items()) for d in self],
            "y_px": [float(d.center_px[0]) for d in self], "x_px": [float(d.center_px[1]) for d in self],
            "missing_atoms": [d.missing_atoms for d in self], "probability": [d.probability for d in self],
            "alternatives": [" ".join(f"{n}:{p:.3f}" for n, p in d.alternatives) for d in self],
            "site_ids": [" ".join(map(str, d.site_ids)) for d in self],
            "mean_bond_pm": [mean([b.length_pm for b in d.bonds]) for d in self],
            "bonds_pm": [_tenths(b.length_pm for b in d.bonds) for d in self],
            "bonds_sigma_pm": [_tenths(b.sigma_pm for b in d.bonds) for d in self],
            "angles_deg": [_tenths(g.deg for g in d.angles) for d in self],
            "angles_sigma_deg": [_tenths(g.sigma_deg for g in d.angles) for d in self],
            "coordination": [" ".join(f"{atom}=" + "/".join(f"{n}:{p:.3f}" for n, p in chances.items())
                                      for atom, chances in d.coordination.items()) for d in self],
            "misorientation_deg": [d.misorientation_deg for d in self],
        }
        dtypes = dict.fromkeys(rows, object) | {"id": "int64", "missing_atoms": "int64"} | dict.fromkeys(
            ("y_px", "x_px", "probability", "mean_bond_pm", "misorientation_deg"), "float64")
        return pd.DataFrame(rows).astype(dtypes)


@dataclass(frozen=True)
class FrameAnalysis:
    """Everything `analyze_frame` found in one frame.

    Parameters
    ----------
    model, material : str
        Names of the model and of the host material.
    shape : (int, int)
        (H, W) of the image [px].
    pixel_size : PixelSize
        The one that was used; its `nominal_nm` is what was given.
    sites, bonds, defects
        What was found.
    rings : mapping of int to int
        Number of faces of the bond graph wholly inside the image, by number of atoms.
    frame, time_s
        Index of the frame and its time [s].
    masked_fraction : float
        Part of the image that was not analysed (contamination, vacuum, holes of unknown content).
    mask : (h, w) bool array, optional
        True where not analysed, on the model's pixel grid that spans the same field of view.
    warnings : tuple of str
        What the user has to know about this result, one line each.
    alloy : mapping of str to (float, float)
        For MX2, the fraction of each foreign element on its sublattice and its standard deviation.
    """

    model: str
    material: str
    shape: tuple[int, int]
    pixel_size: PixelSize
    sites: Sites
    bonds: Bonds
    defects: Defects
    rings: Mapping[int, int]
    frame: int = 0
    time_s: float | None = None
    masked_fraction: float = 0.0
    mask: NDArray[np.bool_] | None = None
    warnings: tuple[str, ...] = ()
    alloy: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def host_species(self) -> tuple[str, ...]:
        """Species of the host material; the commonest one where the material is not known by name."""
        from .materials import MATERIALS

        if self.material in MATERIALS:
            return MATERIALS[self.material].species
        names, counts = np.unique(self.sites.species, return_counts=True)
        return (str(names[np.argmax(counts)]),) if len(names) else ()

    def to_networkx(self) -> nx.Graph:
        """Atoms, bonds and vacancies as a networkx graph, see `stemdl_core.bond_network.bond_network`."""
        from .bond_network import bond_network

        return bond_network(self)

    def to_dict(self, *, with_frame: bool = False) -> dict[str, Any]:
        """The analysis as written to ``analysis.json`` (schema 1)."""
        result: dict[str, Any] = {
            "schema": 1, "model": self.model, "material": self.material,
            "image": {
                "shape": list(self.shape), "pixel_size_nm": self.pixel_size.nm,
                "nominal_pixel_size_nm": self.pixel_size.nominal_nm, "pixel_size_source": self.pixel_size.source,
                "distortion": [list(map(float, row)) for row in self.pixel_size.distortion],
                "masked_fraction": self.masked_fraction,
            },
            "warnings": list(self.warnings),
            "sites": [
                {"id": i, "y_px": y, "x_px": x, "species": s, "score": p, "sigma_pm": none_if_nan(e),
                 "intensity": none_if_nan(v), "edge": g}
                for i, (y, x, s, p, e, v, g) in enumerate(zip(
                    self.sites.y_px.tolist(), self.sites.x_px.tolist(), self.sites.species.tolist(),
                    self.sites.score.tolist(), self.sites.sigma_pm.tolist(), self.sites.intensity.tolist(),
                    self.sites.edge.tolist()))
            ],
            "bonds": [{"a": a, "b": b, "length_pm": d, "sigma_pm": none_if_nan(e)} for a, b, d, e in zip(
                self.bonds.a.tolist(), self.bonds.b.tolist(), self.bonds.length_pm.tolist(),
                self.bonds.sigma_pm.tolist())],
            "defects": [d.to_dict() for d in self.defects],
            "rings": {str(k): int(self.rings.get(k, 0)) for k in sorted({5, 6, 7} | set(self.rings))},
            "alloy": {k: {"fraction": f, "sigma": s} for k, (f, s) in self.alloy.items()},
        }
        if with_frame:
            result["frame"] = self.frame
            if self.time_s is not None:
                result["time_s"] = self.time_s
        return result


def _tenths(values: Iterable[float]) -> str:
    return " ".join(f"{v:.1f}" for v in values)


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN: not known is null."""
    value = float(value)
    return value if np.isfinite(value) else None
