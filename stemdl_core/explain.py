"""What the network looks at when it finds an atom or a defect: occlusion and saliency maps.

Occlusion covers a small spot of the image with its own surroundings' mean and asks how much less sure the network
becomes; saliency is the gradient of that sureness with respect to every pixel.

References
----------
Zeiler, Fergus, ECCV 2014: occlusion. Simonyan et al., arXiv:1312.6034: saliency.
Ziatdinov et al., ACS Nano 11, 12742 (2017), supplement: which areas a network attends to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, zoom

from .analysis import FrameAnalysis
from .corrections import nearest_defect
from .errors import StemdlError
from .frames import Frame
from .pipeline import analyze_frame
from .preprocess import from_model_px, mend, model_shape, resample, standardise, to_model_px
from .weights import Model

#: Half a side of the map, what lies beyond it and still reaches the network's decision, spacing of the spots and
#: their radius (standard deviation) [nm].
WINDOW_NM, REACH_NM, STRIDE_NM, SPOT_NM = 0.44, 0.36, 0.04, 0.035
#: Spots that go through the network at a time.
BATCH = 64


@dataclass(frozen=True)
class Explanation:
    """What decides one finding.

    Attributes
    ----------
    title : str
        Name of the defect or species of the atom.
    at_px : (float, float)
        Its place (y, x) on the image [px].
    targets_px : (K, 2) float64
        The places whose class is explained [px].
    classes : tuple of str
        The network's class at each.
    probability : float
        Mean probability of the classes.
    occlusion : (n, n) float32
        Loss of log probability when the spot is covered, averaged over the targets; positive: the spot speaks for the
        finding.
    saliency : (n, n) float32
        Magnitude of the gradient of the same with respect to the image, softened.
    extent_px : (float, float, float, float)
        (top, bottom, left, right) of both maps on the image [px].
    half_radius_nm : float
        Half of the positive occlusion lies within this distance of the targets [nm].
    """

    title: str
    at_px: tuple[float, float]
    targets_px: NDArray[np.float64]
    classes: tuple[str, ...]
    probability: float
    occlusion: NDArray[np.float32]
    saliency: NDArray[np.float32]
    extent_px: tuple[float, float, float, float]
    half_radius_nm: float
    pixel_nm: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, as plain data."""
        top, bottom, left, right = self.extent_px
        return {"schema": 1, "what": self.title, "at_px": list(self.at_px), "targets_px": self.targets_px.tolist(),
                "classes": list(self.classes), "probability": self.probability, "half_radius_nm": self.half_radius_nm,
                "pixel_size_nm": self.pixel_nm,
                "extent_px": {"top": top, "bottom": bottom, "left": left, "right": right}}


def explain(frame: Frame, model: Model, at_px: tuple[float, float], *, dopant: str | None = None,
            material: str | None = None, progress: Callable[[int, int], None] | None = None) -> Explanation:
    """Which part of the image makes the network find what it finds at a place.

    Parameters
    ----------
    frame : Frame
    model : Model
    at_px : (float, float)
        Place (y, x) [px]; the defect there is explained, or the nearest atom.
    dopant, material : str, optional
        As for `analyze_frame`.
    progress : callable, optional
        ``progress(spots done, spots)``.

    Raises
    ------
    StemdlError
        If the place is not on the image, or nothing was found near it.
    """
    if not all(np.isfinite(v) and -0.5 <= v <= n - 0.5 for v, n in zip(at_px, frame.shape)):
        raise StemdlError(f"place {at_px[0]:g},{at_px[1]:g} is not on the image of {frame.shape[0]} x "
                          f"{frame.shape[1]} px (rows, columns)")
    analysis = analyze_frame(frame, model, dopant=dopant, material=material)
    title, center, targets, empty = _targets(analysis, at_px)
    small = model_shape(frame.shape, analysis.pixel_size.nm, model.card.pixel_size_nm)
    image = standardise(resample(mend(frame.image).image, small))
    pitch = model.card.pixel_size_nm
    half, reach = round(WINDOW_NM / pitch), round(REACH_NM / pitch)
    middle = np.round(to_model_px(np.array([center]), frame.shape, small)[0]).astype(int)
    # Beyond the border the image is continued by its mirror: spots there change nothing that matters.
    pad = half + reach + 8
    crop = np.pad(image, pad, mode="reflect" if min(image.shape) > pad else "edge")
    low = middle + pad - half - reach
    side = 2 * (half + reach) + 1
    side += -side % getattr(model.network, "multiple", 8)
    crop = crop[low[0]:low[0] + side, low[1]:low[1] + side]
    places = to_model_px(targets, frame.shape, small) + pad - low
    base = torch.from_numpy(np.ascontiguousarray(crop, dtype=np.float32))[None, None].to(model.device)
    if empty:
        places = _holes(model, base, places[0], 0.25 / pitch)
        targets = from_model_px(places - pad + low, frame.shape, small)
    channels, cells, weights, classes = _ask(model, base, places)

    def sureness(batch: torch.Tensor) -> torch.Tensor:
        logs = torch.log_softmax(model.network(batch).float(), dim=1)
        return (logs[:, channels, cells[:, 0], cells[:, 1]] * weights).sum(dim=1)

    wanted = base.clone().requires_grad_(True)
    value = sureness(wanted)
    value.sum().backward()  # type: ignore[no-untyped-call]
    gradient = wanted.grad
    assert gradient is not None
    slope = gaussian_filter(np.abs(gradient[0, 0].cpu().numpy()), 1.0)
    sure = float(value.detach()[0])
    steps = np.arange(-half, half + 1, max(round(STRIDE_NM / pitch), 1))
    loss = _occlude(base, sureness, sure, half + reach + steps, SPOT_NM / pitch, progress)
    size = 2 * half + 1
    occlusion = zoom(loss, size / len(steps), order=1)[:size, :size]
    window = slice(reach, reach + size)
    factor = np.asarray(frame.shape) / np.asarray(small)
    corners = [(middle[k] + sign * (half + 0.5) + 0.5) * factor[k] - 0.5 for k in (0, 1) for sign in (-1, 1)]
    return Explanation(
        title, (float(center[0]), float(center[1])), targets, classes, float(np.exp(sure)),
        occlusion.astype(np.float32), slope[window, window].astype(np.float32),
        (float(corners[0]), float(corners[1]), float(corners[2]), float(corners[3])),
        _half_radius(occlusion, places - reach, pitch), analysis.pixel_size.nm)


def _targets(analysis: FrameAnalysis,
             at_px: tuple[float, float]) -> tuple[str, NDArray[np.float64], NDArray[np.float64], bool]:
    """What is explained: title, centre, the places whose class counts, on the image [px]; whether it is a hole."""
    from .materials import get_material

    sites = analysis.sites
    number = nearest_defect(analysis, at_px)
    if number is not None:
        defect = analysis.defects[number]
        ids = list(defect.site_ids)
        foreign = [i for i in ids if sites.species[i] not in get_material(analysis.material).species]
        if foreign:
            return defect.name, sites.yx_px[foreign].mean(axis=0), sites.yx_px[foreign], False
        center = np.array(defect.center_px)
        if defect.missing_atoms and get_material(analysis.material).kind == "honeycomb":
            return defect.name, center, center[None], True
        near = analysis.pixel_size.lengths_pm(sites.yx_px[ids] - center)
        return defect.name, center, sites.yx_px[ids][near < max(180.0, float(near.min()) + 1.0)], False
    if len(sites):
        distance = analysis.pixel_size.lengths_pm(sites.yx_px - np.asarray(at_px))
        nearest = int(np.argmin(distance))
        if distance[nearest] < 150.0:
            return f"{sites.species[nearest]} atom", sites.yx_px[nearest], sites.yx_px[[nearest]], False
    raise StemdlError(f"nothing was found near {at_px[0]:g},{at_px[1]:g}: give the place of an atom or a defect")


def _holes(model: Model, base: torch.Tensor, center: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Where the network sees missing atoms around the middle of a hole; the middle itself where it sees none."""
    channel = model.class_index("vacancy")
    if channel is None:
        return center[None]
    with torch.inference_mode():
        seen = torch.softmax(model.network(base).float(), dim=1)[0, channel].cpu().numpy()
    soft = gaussian_filter(seen, 1.0)
    top = np.argwhere((soft == maximum_filter(soft, 5)) & (soft > 0.25))
    near = top[np.hypot(*(top - center).T) < reach] if len(top) else top
    return near.astype(np.float64) if len(near) else center[None]


def _ask(model: Model, base: torch.Tensor, places: NDArray[np.float64]) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Channel, pixel and weight of everything that is asked of the network, and the class at each place."""
    with torch.inference_mode():
        maps = torch.softmax(model.network(base).float(), dim=1)[0].cpu().numpy()
    radius = model.card.radius_nm / model.card.pixel_size_nm
    rows, columns = np.indices(maps.shape[1:])
    channels, cells, weights, classes = [], [], [], []
    for y, x in places:
        disc = np.argwhere((rows - y) ** 2 + (columns - x) ** 2 <= max(radius, 1.0) ** 2)
        if len(disc) == 0:
            continue
        mean = maps[:, disc[:, 0], disc[:, 1]].mean(axis=1)
        channel = int(np.argmax(mean))
        channels += [channel] * len(disc)
        cells += disc.tolist()
        weights += [1.0 / (len(disc) * len(places))] * len(disc)
        classes.append(model.card.classes[channel])
    device = base.device
    return (torch.tensor(channels, device=device), torch.tensor(cells, device=device),
            torch.tensor(weights, device=device), tuple(classes))


def _occlude(base: torch.Tensor, sureness: Callable[[torch.Tensor], torch.Tensor], sure: float,
             steps: NDArray[np.int64], sigma: float,
             progress: Callable[[int, int], None] | None) -> NDArray[np.float64]:
    """(n, n) loss of sureness with a soft spot over every place of a grid."""
    image = base[0, 0].cpu().numpy()
    # The cover is the surroundings' mean: neither atom nor hole.
    cover = gaussian_filter(image, 6.0, mode="nearest")
    rows, columns = np.indices(image.shape)
    spots = [(r, c) for r in steps.tolist() for c in steps.tolist()]
    loss = np.empty(len(spots))
    for first in range(0, len(spots), BATCH):
        several = spots[first:first + BATCH]
        masks = np.stack([np.exp(-0.5 * ((rows - r) ** 2 + (columns - c) ** 2) / sigma**2) for r, c in several])
        covered = image + masks * (cover - image)
        batch = torch.from_numpy(covered.astype(np.float32))[:, None].to(base.device)
        with torch.inference_mode():
            loss[first:first + len(several)] = sure - sureness(batch).cpu().numpy()
        if progress:
            progress(first + len(several), len(spots))
    return loss.reshape(len(steps), len(steps))


def _half_radius(occlusion: NDArray[np.float64], places: NDArray[np.float64], pitch: float) -> float:
    rows, columns = np.indices(occlusion.shape)
    distance = np.min([np.hypot(rows - y, columns - x) for y, x in places], axis=0).ravel()
    weight = np.clip(occlusion, 0.0, None).ravel()
    order = np.argsort(distance)
    total = np.cumsum(weight[order])
    if total[-1] <= 0:
        return float("nan")
    return float(pitch * distance[order][np.searchsorted(total, 0.5 * total[-1])])
