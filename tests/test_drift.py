"""Drift of drawn movies, whose truth is known, without a jump by a lattice vector."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stemdl_core.drift import DriftTracker, register
from stemdl_core.errors import StemdlError
from stemdl_core.lattice import fit_lattice
from stemdl_core.materials import get_material

GRAPHENE = get_material("graphene")


class Specimen:
    """Graphene with silicon atoms (four times as bright) and vacancies at known places."""

    def __init__(self, rng, *, fov_nm=2.0, silicon=2, vacancies=1, rotation_deg=14.0):
        a = GRAPHENE.lattice_nm
        angle = np.deg2rad(rotation_deg)
        vectors = a * np.array([[math.sin(t), math.cos(t)] for t in (angle, angle + np.pi / 3)])
        cells = np.stack(np.meshgrid(*[np.arange(-30, 31)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        yx = np.concatenate([(cells + f) @ vectors for f in (1 / 3, 2 / 3)]) + rng.uniform(0, a, 2)
        yx = yx[(np.abs(yx) < fov_nm / 2 + 1.6).all(axis=1)]
        inner = np.flatnonzero((np.abs(yx) < fov_nm / 2 - 0.2).all(axis=1))
        chosen = rng.choice(inner, silicon + vacancies, replace=False)
        self.fov_nm, self.yx = fov_nm, yx
        self.bright = np.ones(len(yx))
        self.bright[chosen[:silicon]] = 4.2
        self.bright[chosen[silicon:]] = 0.0

    def frame(self, rng, drift_nm, *, within_nm=(0.0, 0.0), side=256, dose=50.0):
        """Counts; `drift_nm` is that of the middle line."""
        pixel = self.fov_nm / side
        place = (self.yx + drift_nm) / pixel + (side - 1) / 2
        place = place + (place[:, :1] / side - 0.5) * np.asarray(within_nm) / pixel
        image = np.full((side, side), 0.2 * dose * pixel**2 / 0.0262)
        near = ((place > -30) & (place < side + 30)).all(axis=1) & (self.bright > 0)
        for width, share in ((0.05 / pixel, 0.75), (0.11 / pixel, 0.25)):
            ey, ex = (np.exp(-0.5 * ((np.arange(side)[:, None] - p) / width)**2) for p in place[near].T)
            image += (ey * (self.bright[near] * share * dose / (2 * np.pi * width**2))) @ ex.T
        return rng.poisson(image).astype(np.float32)


def wandering(rng, frames, *, most_step=0.2, most=1.0):
    """A drift (T, 2) [nm] with inertia, steps up to `most_step`, within `most` of the start."""
    drift, velocity = np.zeros((frames, 2)), rng.normal(0, 0.06, 2)
    for t in range(1, frames):
        velocity = 0.85 * velocity + rng.normal(0, 0.045, 2) - 0.05 * drift[t - 1]
        length = np.hypot(*velocity)
        velocity *= min(1.0, most_step / max(length, 1e-9))
        drift[t] = drift[t - 1] + velocity
        radius = np.hypot(*drift[t])
        if radius > most:
            drift[t] *= most / radius
            velocity = -0.3 * velocity
    return drift


def movie(rng, specimen, truth, **options):
    """Images of a drifting specimen and the lattice of the first."""
    images = [specimen.frame(rng, d, **options) for d in truth]
    nominal = 1.04 * specimen.fov_nm / images[0].shape[1]
    fit = fit_lattice(images[0], material=GRAPHENE, nominal_pixel_size_nm=nominal)
    assert fit is not None
    return images, fit


def rms(error):
    return float(np.sqrt((error**2).sum(axis=1).mean()))


@pytest.mark.parametrize(("silicon", "vacancies", "dose"),
                         [(2, 1, 50.0), (1, 0, 50.0), (2, 0, 20.0), (0, 3, 200.0)])
def test_drift_is_found_on_the_right_branch(rng, silicon, vacancies, dose):
    specimen = Specimen(rng, silicon=silicon, vacancies=vacancies)
    truth = wandering(rng, 40)
    images, fit = movie(rng, specimen, truth, dose=dose)
    drift, steps = register(images, fit=fit)
    assert np.hypot(*(drift - truth).T).max() < 0.06
    assert rms(drift - truth) < 0.015
    live = np.array([(s.dy_nm, s.dx_nm) for s in steps]) - truth
    assert (np.hypot(*live.T) > 0.06).mean() <= (0.0 if silicon == 2 else 0.15)


def test_slow_drift_of_a_perfect_crystal(rng):
    specimen = Specimen(rng, silicon=0, vacancies=0)
    truth = wandering(rng, 40, most_step=0.05)
    images, fit = movie(rng, specimen, truth)
    drift, steps = register(images, fit=fit)
    assert rms(drift - truth) < 0.015
    assert all(s.sigma_nm < 0.01 for s in steps)


def test_fast_drift_of_a_perfect_crystal_is_told_as_uncertain(rng):
    specimen = Specimen(rng, silicon=0, vacancies=0)
    images, fit = movie(rng, specimen, wandering(rng, 15))
    _, steps = register(images, fit=fit)
    assert steps[-1].branch_confidence < 0.8


def test_drift_within_a_frame(rng):
    specimen = Specimen(rng)
    truth = wandering(rng, 12, most_step=0.08)
    within = rng.normal(0, 0.04, (12, 2))
    within[0] = 0
    images = [specimen.frame(rng, d, within_nm=w, dose=100) for d, w in zip(truth, within)]
    fit = fit_lattice(images[0], material=GRAPHENE, nominal_pixel_size_nm=0.008)
    drift, steps = register(images, fit=fit)
    found = np.array([s.within_nm for s in steps])
    assert rms((found - within)[1:] - (found - within)[1:].mean(axis=0)) < 0.03
    assert rms(drift - truth) < 0.02


def test_an_atom_that_hops_takes_the_branch_along_with_it_not(rng):
    specimen = Specimen(rng, silicon=3, vacancies=0)
    truth = wandering(rng, 30)
    images, fit = movie(rng, specimen, truth[:15])
    atom = np.flatnonzero(specimen.bright > 2)[0]
    apart = np.hypot(*(specimen.yx - specimen.yx[atom]).T)
    specimen.bright[[atom, np.argsort(np.abs(apart - 0.246))[0]]] = 1.0, 4.2
    images += [specimen.frame(rng, d) for d in truth[15:]]
    drift, _ = register(images, fit=fit)
    assert rms(drift - truth) < 0.015


def test_bad_frames_are_bridged(rng):
    specimen = Specimen(rng)
    truth = wandering(rng, 20, most_step=0.1)
    images, fit = movie(rng, specimen, truth)
    tracker = DriftTracker(fit=fit, shape=(256, 256))
    for t, image in enumerate(images):
        if t in (6, 7):
            tracker.skip()
            continue
        if t == 12:  # a frame of noise: no lattice, no features
            step = tracker.update(rng.poisson(3.0, (256, 256)).astype(np.float32))
            assert not step.lattice_seen
            continue
        step = tracker.update(image)
        assert math.hypot(step.dy_nm - truth[t, 0], step.dx_nm - truth[t, 1]) < 0.04
    with pytest.raises(StemdlError, match="frame of"):
        tracker.update(np.zeros((64, 64), dtype=np.float32))


def test_located_atoms_and_defects_may_stand_in_for_the_image(rng):
    specimen = Specimen(rng, silicon=2, vacancies=0)
    truth = wandering(rng, 15)
    images, fit = movie(rng, specimen, truth, dose=100)
    tracker = DriftTracker(fit=fit, shape=(256, 256))
    for image, d in zip(images, truth):
        yx = (specimen.yx + d) * 256 / 2.0 + 127.5 + rng.normal(0, 1.0, specimen.yx.shape)
        inside = ((yx > 0) & (yx < 255)).all(axis=1)
        step = tracker.update(image, sites_px=yx[inside & (specimen.bright == 1)],
                              defect_px=yx[inside & (specimen.bright > 2)])
        assert math.hypot(step.dy_nm - d[0], step.dx_nm - d[1]) < 0.02


def test_one_at_a_time_does_not_grow(rng):
    specimen = Specimen(rng)
    images, fit = movie(rng, specimen, wandering(rng, 6))
    tracker = DriftTracker(fit=fit, shape=(256, 256))
    for _ in range(5):
        for image in images:
            tracker.update(image)
    assert tracker.history().shape == (0, 2)
    assert len(tracker._branches) <= 24
    assert all(b.path is None for b in tracker._branches)
