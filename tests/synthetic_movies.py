"""Analyses of frames made directly from known structures: the tracker's tests need neither images nor a network."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stemdl_core.analysis import Bonds, Defect, Defects, FrameAnalysis
from stemdl_core.calibration import PixelSize
from stemdl_core.sites import Sites

A_NM = 0.246
BASIS = A_NM * np.array([[np.sin(t), np.cos(t)] for t in np.radians([7.0, 67.0])])  # rows (y, x)
MOTIF = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]])


def site(i: int, j: int, motif: int) -> np.ndarray:
    """Position (y, x) [nm] of a lattice site relative to the middle of the first frame."""
    return (np.array([i, j]) + MOTIF[motif]) @ BASIS


@dataclass
class Thing:
    """A defect of the truth: name, position relative to the middle of the first frame, orientation."""

    id: int
    name: str
    at: np.ndarray
    angle: float = 0.0
    half: Thing | None = None  # what the lower half of the frame shows


@dataclass
class Movie:
    """Frames of a known specimen as a perfect or an imperfect analysis would describe them."""

    frames: list[list[Thing]]
    drift: np.ndarray
    fov_nm: float = 2.0
    shape: tuple[int, int] = (256, 256)
    noise_nm: float = 0.010
    misread: float = 0.01
    lost: float = 0.005
    invented: float = 0.01
    material: str = "graphene"
    wrong_names: dict[str, str] = field(
        default_factory=lambda: {
            "Si-C3": "Si-C4",
            "Si-C4": "Si-C3",
            "Si3C6": "unknown",
            "Si2C5": "unknown",
            "SV": "unknown",
        }
    )

    def analyses(self, rng: np.random.Generator):
        """FrameAnalysis of every frame."""
        for t, things in enumerate(self.frames):
            yield self.analysis(t, things, rng)

    def analysis(self, t: int, things: list[Thing], rng: np.random.Generator) -> FrameAnalysis:
        """One frame."""
        nm = self.fov_nm / self.shape[1]
        middle = nm * (np.array(self.shape) - 1) / 2
        shift = middle + self.drift[t]
        n = int(self.fov_nm / 0.2) + 14
        cells = np.stack(np.meshgrid(np.arange(-n, n), np.arange(-n, n), indexing="ij"), -1).reshape(-1, 2)
        host = np.concatenate([(cells + m) @ BASIS for m in MOTIF])
        foreign, owner = [], []
        for k, thing in enumerate(things):
            atoms = _atoms(thing)
            if thing.half is not None:
                other = _atoms(thing.half)
                cut = thing.at[0]
                atoms = np.concatenate([atoms[atoms[:, 0] < cut], other[other[:, 0] >= cut]])
            clear = {"SV": 0.05, "Si-C3": 0.06, "Si-C4": 0.09}.get(thing.name, 0.16)
            host = host[np.linalg.norm(host - thing.at, axis=1) > clear]
            if thing.name != "SV":
                foreign += list(atoms)
                owner += [k] * len(atoms)
        foreign_yx = np.array(foreign).reshape(-1, 2)
        host = host + shift
        inside = ((host > 0.02) & (host < np.array(self.shape) * nm - 0.02)).all(axis=1)
        host = host[inside]
        foreign_px = foreign_yx + shift
        seen = ((foreign_px > 0.02) & (foreign_px < np.array(self.shape) * nm - 0.02)).all(axis=1)
        owner = np.array(owner, dtype=int)[seen] if len(owner) else np.array([], dtype=int)
        foreign_px = foreign_px[seen]
        yx = np.concatenate([host, foreign_px]) + rng.normal(
            0, self.noise_nm, (len(host) + len(foreign_px), 2)
        )
        species = np.array(["C"] * len(host) + ["Si"] * len(foreign_px))
        defects = []
        for k, thing in enumerate(things):
            centre = thing.at + shift
            reach = np.array(self.shape) * nm
            if min(centre.min(), (reach - centre).min()) < 0.15 or rng.random() < self.lost:
                continue
            ids = len(host) + np.flatnonzero(owner == k)
            if thing.name != "SV" and not len(ids):
                continue
            around = np.argsort(np.linalg.norm(yx[: len(host)] - centre, axis=1))
            hosts = around[: {"Si-C3": 3, "Si-C4": 4, "SV": 3, "Si2C5": 5}.get(thing.name, 6)]
            name, probability = thing.name, float(rng.uniform(0.9, 1.0))
            if thing.half is not None:
                name, probability = "unknown", 0.5
            elif rng.random() < self.misread:
                name, probability = self.wrong_names.get(name, "unknown"), float(rng.uniform(0.5, 0.97))
            members = [*ids.tolist(), *hosts.tolist()]
            at = yx[ids].mean(axis=0) if len(ids) else centre + rng.normal(0, 0.02, 2)
            defects.append(
                Defect(
                    len(defects),
                    name,
                    {"Si": len(ids), "C": len(hosts)},
                    tuple(members),
                    tuple(at / nm),
                    probability=probability,
                )
            )
        if rng.random() < self.invented:
            at = rng.uniform(20, np.array(self.shape) - 20)
            hosts = np.argsort(np.linalg.norm(yx[: len(host)] - at * nm, axis=1))[:3]
            defects.append(
                Defect(len(defects), "SV", {"C": 3}, tuple(hosts.tolist()), tuple(at), probability=0.6)
            )
        sites = Sites.from_columns(y_px=yx[:, 0] / nm, x_px=yx[:, 1] / nm, species=species)
        return FrameAnalysis(
            "synthetic",
            self.material,
            self.shape,
            PixelSize(nm),
            sites,
            Bonds.empty(),
            Defects(tuple(defects)),
            {},
            frame=t,
            time_s=0.5 * t,
        )


def _atoms(thing: Thing) -> np.ndarray:
    if thing.name == "Si3C6":
        turns = np.radians(thing.angle + np.array([0, 120, 240]))
        return thing.at + 0.145 * np.stack([np.sin(turns), np.cos(turns)], axis=1)
    if thing.name == "Si2C5":
        turn = np.radians(thing.angle + np.array([0, 180]))
        return thing.at + 0.11 * np.stack([np.sin(turn), np.cos(turn)], axis=1)
    return thing.at[None]


def smooth_drift(
    frames: int, rng: np.random.Generator, *, total: float = 1.0, jitter: float = 0.02
) -> np.ndarray:
    """(T, 2) drift from the first frame [nm], with jitter from frame to frame."""
    direction = rng.uniform(0, 2 * np.pi)
    path = np.linspace(0, total, frames)[:, None] * np.array([np.sin(direction), np.cos(direction)])
    path = path + rng.normal(0, jitter, (frames, 2))
    return path - path[0]


def events_match(
    found: list[tuple[int, str]], true: list[tuple[int, str]], *, within: int = 1
) -> tuple[int, int, int]:
    """(matched, found, true): events of the same kind within so many frames, each used once."""
    left, hits = list(true), 0
    for frame, kind in found:
        near = [e for e in left if e[1] == kind and abs(e[0] - frame) <= within]
        if near:
            left.remove(min(near, key=lambda e: abs(e[0] - frame)))
            hits += 1
    return hits, len(found), len(true)
