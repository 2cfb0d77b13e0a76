"""Animations of movies with the tracks on the frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from PIL import Image

from ..frames import Frame
from ..trajectories import Tracks
from . import canvas

#: Side of the animation [px], frames it has at most (long movies are thinned), length of the trails [frames].
ANIMATION_PX, ANIMATION_FRAMES, TRAIL = 480, 240, 12
_TRACK_COLORS = ("#ff6a13", "#00c389", "#f0e442", "#d55ec2", "#56b4e9", "#ff2d55", "#9ad13c", "#c9a26b")


def animation_frames(length: int) -> list[int]:
    """Which frames of a movie the animation shows: all, or evenly thinned ones."""
    step = max(1, -(-length // ANIMATION_FRAMES))
    return list(range(0, length, step))


def track_picture(frame: Frame, tracks: Tracks) -> NDArray[np.uint8]:
    """(h, w, 3) picture of one frame with its defects, their names and the trails of where they were."""
    height, width = frame.shape
    zoom = ANIMATION_PX / max(height, width)
    size = (max(2, round(width * zoom)), max(2, round(height * zoom)))
    figure, page = canvas.pixel_figure(*size)
    axes = canvas.image_axes(figure, 0, 0, *size)
    # Without a calibration the frames are smoothed by a pixel: they are shown smaller than they are anyway.
    image = canvas.displayed(
        frame.image, canvas.DISPLAY_SIGMA_NM if frame.pixel_size is None else frame.pixel_size.nm
    )
    low, high = np.percentile(image[::2, ::2], (1.0, 98.5))
    high += 0.5 * (high - low)  # room for foreign atoms, few of which fill the last percents
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=high if high > low else low + 1,
        interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        aspect="auto",
    )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    recent = (tracks.frame <= frame.index) & (tracks.frame > frame.index - TRAIL)
    for track_id in np.unique(tracks.track_id[recent]):
        color = _TRACK_COLORS[int(track_id) % len(_TRACK_COLORS)]
        rows = np.flatnonzero(recent & (tracks.track_id == track_id))
        xy = _on_the_lattice(tracks, rows, frame.index)
        if len(xy) > 1:
            axes.add_collection(LineCollection([xy], colors=color, linewidths=1.2, alpha=0.7), autolim=False)
        if tracks.frame[rows[-1]] != frame.index:
            continue
        x, y = (np.array([tracks.x_px[rows[-1]], tracks.y_px[rows[-1]]]) + 0.5) * zoom
        page.plot(
            [x], [y], "o", markersize=13, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.4
        )
        right = x < 0.7 * size[0]
        page.annotate(
            f"{tracks.name[rows[-1]]} #{track_id}",
            (x, y),
            (9 if right else -9, 9),
            fontsize=8,
            color=color,
            textcoords="offset points",
            ha="left" if right else "right",
            fontweight="bold",
            bbox={"facecolor": "#000000", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
        )
    stamp = f"frame {frame.index}" + ("" if frame.time_s is None else f"   {frame.time_s:.2f} s")
    page.text(
        6,
        6,
        stamp,
        fontsize=8,
        color="#ffffff",
        va="top",
        bbox={"facecolor": "#000000", "alpha": 0.45, "edgecolor": "none", "pad": 1.5},
    )
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def _on_the_lattice(tracks: Tracks, rows: NDArray[np.intp], frame: int) -> NDArray[np.float64]:
    """(N, 2) positions (x, y) [px] in one frame of the places where a track was on the specimen."""
    px = np.stack([tracks.y_px, tracks.x_px], axis=1)
    at = np.searchsorted(tracks.drift.frame, tracks.frame)
    drift = np.stack([tracks.drift.y_nm, tracks.drift.x_nm], axis=1)
    now = int(np.searchsorted(tracks.drift.frame, frame))
    if now >= len(drift) or (at >= len(drift)).any():
        return px[rows][:, ::-1]
    # A place in the image is the place on the specimen and the drift: that tells the pixel size.
    in_image = tracks.yx_nm + drift[at]
    pixel_nm = float((in_image * px).sum() / max(float((px**2).sum()), 1e-12))
    if not pixel_nm > 0:
        return px[rows][:, ::-1]
    return ((tracks.yx_nm[rows] + drift[now]) / pixel_nm)[:, ::-1]


def save_animation(
    path: str | os.PathLike[str], pictures: Iterable[NDArray[np.uint8]], *, frames_per_second: float = 8.0
) -> None:
    """Write pictures of one size as an endless GIF, one in memory at a time."""

    def images() -> Iterator[Image.Image]:
        for picture in pictures:
            yield Image.fromarray(picture).quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)

    source = images()
    first = next(source)
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=source,
        loop=0,
        duration=round(1000 / frames_per_second),
    )
