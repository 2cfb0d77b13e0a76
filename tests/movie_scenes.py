"""Known histories of defects, as frames for `synthetic_movies.Movie` and the events they contain."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from synthetic_movies import Movie, Thing, site

from stemdl_core.trajectories import Tracks

Scene = tuple[list[list[Thing]], list[tuple[int, str]]]


def neighbours(i: int, j: int, motif: int) -> list[tuple[int, int, int]]:
    """Sites next to a site, all on the other sublattice."""
    around = [(i + a, j + b, 1 - motif) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return [n for n in around if abs(np.linalg.norm(site(*n) - site(i, j, motif)) - 0.142) < 0.01]


def switching(rng: np.random.Generator, frames: int = 100, rate: float = 0.06) -> Scene:
    """One silicon between three and four bonds."""
    home = (0, 0, 0)
    name, at, scene, events = "Si-C3", site(*home), [], []
    for t in range(frames):
        if t and rng.random() < rate:
            name = "Si-C4" if name == "Si-C3" else "Si-C3"
            other = site(*neighbours(*home)[rng.integers(3)])
            at = site(*home) if name == "Si-C3" else (site(*home) + other) / 2
            events.append((t, "switch"))
        scene.append([Thing(1, name, at)])
    return scene, events


def hopping(rng: np.random.Generator, frames: int = 100, rate: float = 0.06, name: str = "Si-C3") -> Scene:
    """Defects that hop to neighbouring sites, one beside one that rests."""
    at, scene, events = (-2, 0, 0), [], []
    for t in range(frames):
        if t and rng.random() < rate:
            options = [n for n in neighbours(*at) if np.linalg.norm(site(*n) - site(-2, 0, 0)) < 0.5]
            at = options[rng.integers(len(options))]
            events.append((t, "hop"))
        scene.append([Thing(1, name, site(*at)), Thing(2, "Si-C3", site(3, 0, 1))])
    return scene, events


def dimer(rng: np.random.Generator, frames: int = 60) -> Scene:
    """Two silicon atoms that join and part."""
    join, part = int(rng.integers(10, 25)), int(rng.integers(32, 50))
    a, b = site(-1, 0, 0), site(0, 0, 0)
    pair = Thing(1, "Si2C5", (a + b) / 2, float(np.degrees(np.arctan2(*(b - a)))))
    scene = [
        [pair] if join <= t < part else [Thing(1, "Si-C3", a), Thing(2, "Si-C3", b)] for t in range(frames)
    ]
    return scene, [(join, "merge"), (part, "split")]


def visitors(rng: np.random.Generator, frames: int = 90) -> Scene:
    """Two silicon atoms that come and go beside one that stays."""
    spans = [
        (int(rng.integers(8, 25)), int(rng.integers(50, 65))),
        (int(rng.integers(28, 45)), int(rng.integers(68, 82))),
    ]
    guests = [Thing(2, "Si-C3", site(2, -4, 1)), Thing(3, "Si-C4", (site(-3, 2, 1) + site(-3, 2, 0)) / 2)]
    scene = [
        [Thing(1, "Si-C3", site(0, 0, 0)), *(g for g, (a, b) in zip(guests, spans) if a <= t < b)]
        for t in range(frames)
    ]
    return scene, [e for a, b in spans for e in ((a, "birth"), (b, "death"))]


def rotor(
    rng: np.random.Generator, frames: int = 72, flips: tuple[int, ...] = (4, 9, 28, 55, 56, 63)
) -> Scene:
    """The trimer turning by 60 degrees; the first flip happens half-way through its frame."""
    angle, angles = float(rng.uniform(0, 120)), []
    for t in range(frames):
        angle += 60.0 * (t in flips)
        angles.append(angle % 120)
    scene = [[Thing(1, "Si3C6", site(0, 0, 0), a)] for a in angles]
    half = flips[0]
    scene[half] = [
        Thing(
            1, "Si3C6", site(0, 0, 0), angles[half - 1], half=Thing(1, "Si3C6", site(0, 0, 0), angles[half])
        )
    ]
    return scene, [(t, "rotation") for t in flips]


def identity_score(tracks: Tracks, movie: Movie) -> tuple[float, int]:
    """IDF1 and the number of tracks beyond those of the truth (Ristani et al., ECCV 2016)."""
    nm = movie.fov_nm / movie.shape[1]
    middle = nm * (np.array(movie.shape) - 1) / 2
    hits: dict[tuple[int, int], int] = {}
    truths = 0
    px = np.stack([tracks.y_px, tracks.x_px], axis=1)
    for t, things in enumerate(movie.frames):
        rows = np.flatnonzero(tracks.frame == t)
        for thing in things:
            center = thing.at + middle + movie.drift[t]
            if min(center.min(), (np.array(movie.shape) * nm - center).min()) < 0.15:
                continue
            truths += 1
            for row in rows[np.linalg.norm(px[rows] * nm - center, axis=1) < 0.1]:
                key = (thing.id, int(tracks.track_id[row]))
                hits[key] = hits.get(key, 0) + 1
    true, found = sorted({k[0] for k in hits}), sorted({k[1] for k in hits})
    table = np.zeros((len(true), len(found)))
    for (a, b), count in hits.items():
        table[true.index(a), found.index(b)] = count
    best = table[linear_sum_assignment(-table)].sum()
    return float(2 * best / (truths + len(tracks))), len(found) - len(true)
