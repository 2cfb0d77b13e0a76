"""The whole way from a frame to named defects: composition only, every step is in its own module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .analysis import FrameAnalysis
from .brightness import off_the_sheet
from .calibration import PixelSize
from .colouring import alike
from .completion import complete, faint
from .contrast import dark_atoms
from .defects import find_defects
from .errors import ModelError
from .foreign import clean_surroundings, foreign_sites, told_from_dirt
from .frames import Frame
from .graph import AtomGraph, build_graph
from .in_sight import lattice_in_sight
from .infer import probability_maps
from .lattice import LatticeFit, check_scale, scale_from_map
from .materials import Material, element, get_material
from .mx2 import alloy_fractions, empty_columns
from .peaks import atom_map, find_peaks, in_mask, masked_area, near_border, scores, without_mask
from .plausibility import judge
from .preprocess import Mended, from_model_px, mend, model_shape, resample, standardise, to_model_px
from .refine import Refined, refine_sites
from .repair import second_look
from .sites import Sites
from .threads import one_blas_thread
from .weights import Model

#: In a one-element host, a site that the network doubts and whose intensity is measurably below this part of the
#: median is no atom: the network completes the lattice over a vacancy.
FAINTEST, CERTAIN = 0.5, 0.98
#: Residual variance over the expected one above which the fitted intensities are not used: correlated noise.
WORST_MISFIT = 20.0
#: Error of the pixel size from which the network looks again at the right one.
RESCALE = 0.01
#: Rounding may put what lies on the very border this far beyond it [px].
BORDER = 1e-6


@dataclass(frozen=True)
class Detection:
    """Sites of a frame before any chemistry, with what led to them (for evaluation and explanation).

    Attributes
    ----------
    pixel_size : PixelSize
        The pixel size after the check against the lattice.
    sites : Sites
        Columns found.
    vacancies_px : (K, 2) float64
        Where the network says that an atom is missing, on the image [px].
    mask : (h, w) bool
        What was not analysed, on the model's grid.
    maps : (C, h, w) float32
        Class probabilities.
    warnings : tuple of str
    refined : Refined or None
        Result of the refinement; None where there was nothing to refine.
    lattice_visible : bool
        Whether the spectrum of the image, or of the map of atoms, shows the host lattice.
    mended : Mended, optional
        The image that was fitted, without bad pixels; its `valid` leaves out what is masked, too.
    """

    pixel_size: PixelSize
    sites: Sites
    vacancies_px: NDArray[np.float64]
    mask: NDArray[np.bool_]
    maps: NDArray[np.float32]
    warnings: tuple[str, ...]
    refined: Refined | None
    lattice_visible: bool
    mended: Mended | None = None


def choose_material(model: Model, material: str | Material | None) -> Material:
    """The host material: the model's default, or one the caller names among those the model was trained for."""
    if material is None:
        return model.card.material
    chosen = material if isinstance(material, Material) else get_material(material)
    known = get_material(model.card.materials[0]).kind
    if chosen.kind != known:
        trained = ", ".join(model.card.materials)
        raise ModelError(f"model {model.name!r} was trained for {trained}, not for {chosen.name}")
    return chosen


def detect(frame: Frame, model: Model, *, material: Material, dopant: str) -> Detection:
    """Find the atom columns of a frame.

    Parameters
    ----------
    frame : Frame
        The image and its nominal pixel size, if known.
    model : Model
        Network and card.
    material : Material
        The host.
    dopant : str
        Element of the bright foreign class.

    Raises
    ------
    CalibrationError
        If the pixel size is not known and no lattice supplies it, or the two contradict each other.
    """
    card = model.card
    mended = mend(frame.image)
    pixel_size, fit, warnings = check_scale(mended.image, material, frame.pixel_size)
    shape = frame.shape

    def look(pixel_nm: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        coarse = resample(mended.image, model_shape(shape, pixel_nm, card.pixel_size_nm))
        maps = probability_maps(model, standardise(coarse))
        return coarse, maps, masked_area(card, maps)

    coarse, maps, mask = look(pixel_size.nm)
    fitted_on = None
    if fit is None:
        # Too faint for the image's spectrum; the atoms that the network finds may still form one lattice.
        used, fitted_on = pixel_size.nm, mask.shape
        pixel_size, fit, warnings = scale_from_map(np.where(mask, 0, atom_map(card, maps)), material=material,
                                                   map_pixel_nm=card.pixel_size_nm, nominal=pixel_size)
        if abs(pixel_size.nm / used - 1) > RESCALE:
            coarse, maps, mask = look(pixel_size.nm)
    elif (seen := lattice_in_sight(coarse, mask, fit, shape=shape, pixel_nm=card.pixel_size_nm)).any():
        maps, mask = without_mask(card, maps, seen), mask & ~seen
    warnings += _of_the_picture(mended, coarse, fit if fitted_on is None else None, material, shape)
    small = mask.shape
    peaks = find_peaks(card, maps)
    keep = ~in_mask(mask, peaks.yx_px)
    start = from_model_px(peaks.yx_px[keep], shape, small)
    inside = ((start > -0.5 - BORDER) & (start < np.asarray(shape) - 0.5 + BORDER)).all(axis=1)
    keep[np.flatnonzero(keep)[~inside]] = False
    start, which, score = start[inside], np.flatnonzero(keep), scores(card, peaks.response[keep])
    if fit is not None and faint(score):
        nodes = fit.nodes(shape)[0] if fitted_on is None else from_model_px(fit.nodes(fitted_on)[0], shape, fitted_on)
        done = complete(start, score, peaks.dopant[keep], nodes[~in_mask(mask, to_model_px(nodes, shape, small))],
                        bond_px=material.bond_nm / pixel_size.nm,
                        holes_px=from_model_px(peaks.vacancies_px, shape, small))
        start, score, which = done.yx_px, done.score, np.where(done.origin >= 0, which[done.origin], -1)
    dopant_class = (which >= 0) & peaks.dopant[which]
    share = np.where(which >= 0, peaks.dopant_share[which], 0.0)
    usable = mended.valid & ~_enlarge(mask, shape) if mask.any() else mended.valid
    refined = None
    if len(start):
        groups = dopant_class if material.kind == "honeycomb" else alike(pixel_size.to_nm(start), material.bond_nm)
        refined = refine_sites(mended.image, start[:, 0], start[:, 1], pixel_size_nm=pixel_size.nm,
                               groups=groups.astype(int), valid=usable)
        if refined.sharpened is not None:
            mended = replace(mended, image=refined.sharpened)
    sites, absent = _make_sites(score, dopant_class, share, refined, material, dopant)
    if refined is not None and len(sites):
        absent = absent | off_the_sheet(coarse, to_model_px(sites.yx_px, shape, small), sites, refined, sure=CERTAIN,
                                        material=material, pixel_nm=card.pixel_size_nm, image_pixel_nm=pixel_size.nm)
    sites = sites.select(~absent)
    # Columns at the border may be fitted to where no pixel is.
    sites = sites.select(((sites.yx_px >= -0.5) & (sites.yx_px <= np.asarray(shape) - 0.5)).all(axis=1))
    border = 1e-3 * material.longest_bond_pm(material.species[0], material.species[-1]) / pixel_size.nm
    factor = small[0] / shape[0]
    edge = near_border(sites.yx_px, shape, border, mask, factor)
    sites = sites.replace(edge=edge)
    holes = peaks.vacancies_px[~in_mask(mask, peaks.vacancies_px)]
    return Detection(pixel_size, sites, from_model_px(holes, shape, small), mask, maps, warnings, refined,
                     fit is not None, replace(mended, valid=usable))


def _of_the_picture(mended: Mended, coarse: NDArray[np.float32], fit: LatticeFit | None, material: Material,
                    shape: tuple[int, int]) -> tuple[str, ...]:
    """What is wrong with the image as a whole."""
    said: tuple[str, ...] = ()
    if mended.cut_off:
        said += (f"the image is cut off at its highest value ({100 * mended.cut_off:.1f} % of it): bright atoms are "
                 "placed and weighed by their flanks",)
    if fit is not None and material.kind == "honeycomb" and dark_atoms(coarse, fit, shape=shape):
        said += ("the bright spots form a triangular net, not a honeycomb: an inverted or bright-field image, or two "
                 "layers; what is named here is not to be trusted",)
    return said


def _enlarge(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of the model's grid on the pixels of the image."""
    rows = ((np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]).astype(int)
    return mask[np.ix_(rows, columns)]


def _make_sites(score: NDArray[np.float64], is_dopant: NDArray[np.bool_], share: NDArray[np.float64],
                refined: Refined | None, material: Material, dopant: str) -> tuple[Sites, NDArray[np.bool_]]:
    """Sites and their refinement, species from the network's class, checked by intensity; and which are not there."""
    if refined is None or not len(score):
        return Sites.empty(), np.zeros(0, dtype=bool)
    amplitude, sigma = refined.amplitude, refined.amplitude_sigma
    host = amplitude[~is_dopant & refined.converged & np.isfinite(amplitude)]
    if not len(host):
        host = amplitude[np.isfinite(amplitude)]
    unit = float(np.median(host)) if len(host) and np.median(host) > 0 else np.nan
    intensity, intensity_sigma = amplitude / unit, sigma / unit
    measured = refined.converged & np.isfinite(amplitude)
    if refined.imaging is None or not refined.imaging.misfit < WORST_MISFIT or np.isnan(unit):
        # Neighbouring pixels share their noise (the image was smoothed or enlarged): heights of overlapping columns
        # trade against each other and are rough at best.
        measured[:] = False
    if dopant and (contrast := element(dopant) / material.atomic_number(material.species[0])) > 1:
        yx = np.stack([refined.y_px, refined.x_px], axis=1)
        clean = clean_surroundings(yx, intensity, refined.background / unit)
        is_dopant = foreign_sites(intensity=intensity, sigma=intensity_sigma, measured=measured, share=share,
                                  clean=clean, contrast=contrast)
        if measured.any():
            is_dopant = told_from_dirt(is_dopant, yx_px=yx, intensity=intensity, sigma=intensity_sigma, share=share,
                                       contrast=contrast)
    if not measured.any() and material.kind == "mx2" and refined.imaging is not None:
        # Single heights are rough, averages over a sublattice are not: they still tell metal from chalcogen.
        intensity_sigma = intensity_sigma * max(refined.imaging.misfit, 1.0) ** 0.5
    elif not measured.any():
        intensity, intensity_sigma = np.full(len(amplitude), np.nan), np.full(len(amplitude), np.nan)
    species = np.where(is_dopant & bool(dopant), dopant, material.species[0])
    sites = Sites.from_columns(y_px=refined.y_px, x_px=refined.x_px, species=species, score=score,
                               sigma_pm=refined.sigma_pm, intensity=intensity, intensity_sigma=intensity_sigma)
    if material.kind != "honeycomb":
        # A light metal among tungsten, or one chalcogen of two, is faint and yet there.
        return sites, np.zeros(len(sites), dtype=bool)
    return sites, measured & (intensity + 2 * intensity_sigma < FAINTEST) & (score < CERTAIN)


def analyze_frame(frame: Frame, model: Model, *, dopant: str | None = None,
                  material: str | Material | None = None) -> FrameAnalysis:
    """Find and name everything in one frame.

    Parameters
    ----------
    frame : Frame
        The image; its pixel size is checked against the lattice, or taken from it.
    model : Model
        Network and card, see `load_model`.
    dopant : str, optional
        Element of the bright foreign class; the model card's by default. Contrast alone does not tell neighbours
        in the periodic table apart.
    material : str or Material, optional
        Host material; the model's first by default.

    Returns
    -------
    FrameAnalysis

    Raises
    ------
    StemdlError
        Unknown element or material, or a pixel size that is neither given nor to be had from the lattice.
    """
    with one_blas_thread():
        return _analyze(frame, model, dopant, material)


def _analyze(frame: Frame, model: Model, dopant: str | None, material: str | Material | None) -> FrameAnalysis:
    host = choose_material(model, material)
    foreign = model.card.dopant if dopant is None else dopant
    if foreign:
        element(foreign)
    found = detect(frame, model, material=host, dopant=foreign)

    def bonded(sites: Sites) -> AtomGraph:
        return build_graph(sites, material=host, pixel_size=found.pixel_size, shape=frame.shape, mask=found.mask,
                           dopant=dopant)

    graph, holes, weighed = bonded(found.sites), found.vacancies_px, None
    if (empty := empty_columns(graph)).any():
        # Not atoms: what the network completed over a missing column. The hole remains to be named.
        holes = np.concatenate([holes, graph.sites.yx_px[empty]])
        graph = bonded(graph.sites.select(~empty))
    verdict = judge(graph, lattice_visible=found.lattice_visible)
    mask, warnings = found.mask, [*found.warnings, *verdict.warnings]
    if not verdict.believable:
        graph, holes, mask = bonded(Sites.empty()), holes[:0], np.ones_like(mask)
    elif host.kind == "honeycomb" and found.refined is not None and found.mended is not None:
        graph, holes, weighed = second_look(found.mended.image, found.mended.valid, graph, found.refined,
                                            vacancies_px=holes, bonded=bonded)
    defects = find_defects(graph, vacancies_px=holes, weighed=weighed)
    fraction = float(mask.mean())
    if verdict.believable and fraction >= 0.005:
        warnings.append(f"{100 * fraction:.0f} % of the image shows no lattice (contamination or vacuum) and was "
                        "not analysed")
    return FrameAnalysis(model=model.name, material=host.name, shape=frame.shape, pixel_size=found.pixel_size,
                         sites=graph.sites, bonds=graph.bonds, defects=defects, rings=graph.rings,
                         frame=frame.index, time_s=frame.time_s, masked_fraction=fraction, mask=mask,
                         warnings=tuple(warnings), alloy=alloy_fractions(graph))


def analyze_sequence(sequence: Iterable[Frame], model: Model, *, dopant: str | None = None,
                     material: str | Material | None = None) -> Iterator[FrameAnalysis]:
    """Analyse the frames of a sequence one at a time.

    Each frame's result depends on that frame alone and equals that of `analyze_frame`.

    Yields
    ------
    FrameAnalysis
        In the order of the frames.
    """
    for frame in sequence:
        yield analyze_frame(frame, model, dopant=dopant, material=material)
