"""How a frame is taken: probe, dose, scan, and everything that disturbs it; and how such conditions are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import degrade
from .imaging import Probe


@dataclass(frozen=True)
class Conditions:
    """How a frame is taken. Lengths in nm, intensities relative to the host, dose in electrons a column.

    Attributes
    ----------
    pixel_nm, probe, detector
        Sampling, probe profile and detector noise.
    exponent : float
        n of the Z^n contrast.
    pair_coherence : float
        A column of two atoms is 2^(1 + this) times as bright as one of them: 0 for incoherent scattering, up to 0.7 at
        low angles, where the two chalcogens of a column scatter in phase.
    dopant_gain : float
        Factor on the intensity of foreign atoms heavier than the host, beyond Z^n.
    jitter_nm, flyback_nm, drift_nm
        Scan disturbances, see `degrade.disturbed_scan`.
    thermal_nm : float
        Static random displacement of every atom along each axis (frozen phonons, surface roughness).
    strain : (2, 2) tuple
        Homogeneous deformation of the specimen (identity: none), acting on (y, x).
    ripple_nm : float
        Amplitude of smooth in-plane displacements (buckled sheet seen in projection).
    gradient : float
        Change of intensity across the image, relative to its mean.
    contamination : float
        Part of the image covered by amorphous patches.
    contamination_strength : float
        Mean excess of the patches relative to the host's mean intensity.
    contamination_smear_nm : float
        Extra blur of the patches: they lie out of focus and move under the beam.
    vacuum : float
        Part of the image that is a hole or beyond the sheet's edge.
    second_layer : float
        Part of the image covered by a second, rotated layer.
    line_noise : float
        Standard deviation of a constant added to every line, relative to the image's mean (beam current flicker).
    smoothing_px : float
        Gaussian blur of the finished image, as users apply to noisy data [px].
    hot_pixels, dead_lines : int
        Bad pixels.
    """

    pixel_nm: float = 0.008
    probe: Probe = field(default_factory=Probe)
    detector: degrade.Detector = field(default_factory=degrade.Detector)
    exponent: float = 1.64
    pair_coherence: float = 0.0
    dopant_gain: float = 1.0
    jitter_nm: float = 0.0
    flyback_nm: float = 0.0
    drift_nm: tuple[float, float] = (0.0, 0.0)
    thermal_nm: float = 0.0
    strain: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    ripple_nm: float = 0.0
    gradient: float = 0.0
    contamination: float = 0.0
    contamination_strength: float = 1.0
    contamination_smear_nm: float = 0.08
    vacuum: float = 0.0
    second_layer: float = 0.0
    line_noise: float = 0.0
    smoothing_px: float = 0.0
    hot_pixels: int = 0
    dead_lines: int = 0


@dataclass(frozen=True)
class Ranges:
    """Ranges from which `draw_conditions` draws. Pairs are (low, high); doses and pixels log-uniform.

    ``nuisance`` is the probability with which each of the disturbances is switched on; ``pair_coherence`` the largest
    value of a condition that half of the frames have; ``hiding`` a factor on the probability of what hides the lattice
    (contamination, holes, second layers).
    """

    pixel_nm: tuple[float, float] = (0.005, 0.030)
    dose_e_per_atom: tuple[float, float] = (12.0, 1500.0)
    sigma_nm: tuple[float, float] = (0.032, 0.070)
    tail_sigma_nm: tuple[float, float] = (0.10, 0.30)
    tail_fraction: tuple[float, float] = (0.0, 0.6)
    exponent: tuple[float, float] = (1.5, 1.8)
    dopant_gain: tuple[float, float] = (0.5, 1.4)
    scale_error: float = 0.02
    strain: float = 0.02
    nuisance: float = 0.5
    pair_coherence: float = 0.0
    hiding: float = 1.0


def draw_conditions(rng: np.random.Generator, ranges: Ranges | None = None) -> Conditions:
    """Random imaging conditions.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    ranges : Ranges, optional
        What to draw from.
    """
    r = ranges or Ranges()

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def on(probability: float) -> bool:
        return bool(rng.random() < probability)

    nuisance = r.nuisance
    dose = log_uniform(*r.dose_e_per_atom)
    pixel = log_uniform(*r.pixel_nm)
    probe = Probe(rng.uniform(*r.sigma_nm), rng.uniform(*r.tail_sigma_nm), rng.uniform(*r.tail_fraction))
    # A carbon column's electrons per pixel at its centre set what is a lot of background or readout noise.
    peak = dose * pixel**2 / (2 * np.pi * probe.sigma_nm**2)
    detector = degrade.Detector(
        dose_e_per_atom=dose,
        background_e_per_px=peak * rng.uniform(0, 2.0) if on(nuisance) else 0.0,
        readout_e=np.sqrt(peak) * rng.uniform(0, 0.7) if on(nuisance) else 0.0,
        gain=log_uniform(1e-2, 1e3), offset=rng.uniform(-50, 50),
        afterglow=rng.uniform(0, 0.25) if on(0.4 * nuisance) else 0.0)
    stretch = np.eye(2) + rng.uniform(-r.strain, r.strain, (2, 2)) if on(0.7) else np.eye(2)
    stretch = stretch * (1 + rng.uniform(-r.scale_error, r.scale_error))
    return Conditions(
        pixel_nm=pixel, probe=probe, detector=detector, exponent=rng.uniform(*r.exponent),
        dopant_gain=rng.uniform(*r.dopant_gain),
        pair_coherence=max(0.0, rng.uniform(-1, 1) * r.pair_coherence) if r.pair_coherence else 0.0,
        jitter_nm=rng.uniform(0, 0.012) if on(nuisance) else 0.0,
        flyback_nm=rng.uniform(0, 0.012) if on(0.5 * nuisance) else 0.0,
        drift_nm=tuple(rng.uniform(-0.06, 0.06, 2)) if on(nuisance) else (0.0, 0.0),
        thermal_nm=rng.uniform(0, 0.005),
        strain=((stretch[0, 0], stretch[0, 1]), (stretch[1, 0], stretch[1, 1])),
        ripple_nm=rng.uniform(0, 0.012) if on(nuisance) else 0.0,
        gradient=rng.uniform(-0.5, 0.5) if on(0.5 * nuisance) else 0.0,
        contamination=rng.uniform(0.05, 0.6) if on(0.6 * r.hiding * nuisance) else 0.0,
        contamination_strength=log_uniform(0.3, 6.0),
        contamination_smear_nm=rng.uniform(0.0, 0.2),
        vacuum=rng.uniform(0.05, 0.5) if on(0.3 * r.hiding * nuisance) else 0.0,
        second_layer=rng.uniform(0.1, 0.5) if on(0.1 * r.hiding * nuisance) else 0.0,
        line_noise=rng.uniform(0, 0.06) if on(0.3 * nuisance) else 0.0,
        smoothing_px=rng.uniform(0.5, 0.045 / pixel) if on(0.25 * nuisance) and pixel < 0.03 else 0.0,
        hot_pixels=int(rng.integers(1, 4)) if on(0.1 * nuisance) else 0,
        dead_lines=int(rng.integers(1, 3)) if on(0.1 * nuisance) else 0)
