"""Positions at the limit of the counts: all columns refined together on the raw image.

Sites from a network or a peak finder are good to some tenths of an angstrom. What the image itself holds is
more: this module fits one shared probe, a smooth background, the detector's noise and every column's height
and position at once, and says how far each position can be trusted.
"""

from __future__ import annotations

from ._refine import estimate_imaging, refine_sites
from .bound import cramer_rao_pm
from .result import Imaging, Refined

__all__ = ["Imaging", "Refined", "cramer_rao_pm", "estimate_imaging", "refine_sites"]
