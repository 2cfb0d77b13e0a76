"""One image with what is known about it, and sequences of them that are read on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import PixelSize
from .errors import StemdlError

#: Frames larger than this are refused: 16384^2 is the largest scan of today's controllers.
MAX_PIXELS = 16384 * 16384
#: Below this side length no atom's surroundings fit into the image.
MIN_SIDE_PX = 16


@dataclass(frozen=True)
class Frame:
    """A calibrated image.

    Parameters
    ----------
    image : (H, W) array_like of real numbers
        Intensities, any linear scale. Kept as a read-only float32 copy in native byte order.
    pixel_size : PixelSize, optional
        None when neither the file nor the caller knows it.
    index : int
        Number of the frame in its sequence.
    time_s : float, optional
        Time since the first frame [s].
    source : str
        Where the image came from, for messages and records.

    Raises
    ------
    StemdlError
        If the array is not a 2-D image of finite real numbers with contrast and a usable size.
    """

    image: NDArray[np.float32]
    pixel_size: PixelSize | None = None
    index: int = 0
    time_s: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", as_image(self.image))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) [px]."""
        return self.image.shape[0], self.image.shape[1]

    def with_pixel_size(self, pixel_size: PixelSize | None) -> Frame:
        """The same frame with another pixel size."""
        return replace(self, pixel_size=pixel_size)


def as_image(data: ArrayLike) -> NDArray[np.float32]:
    """Check an array and return it as a read-only (H, W) float32 image.

    Raises
    ------
    StemdlError
        Empty, not 2-D, colour, complex, not numeric, too small, too large, constant, or NaN/inf.
    """
    array = np.asarray(data)
    if array.dtype.fields is not None:
        raise StemdlError("image is a colour (RGB) picture: give the grey-scale detector image")
    if array.dtype.kind == "c":
        raise StemdlError("image is complex: give a real image (for instance the magnitude)")
    if array.dtype.kind not in "fiub":
        raise StemdlError(f"image has no numbers in it (dtype {array.dtype})")
    if array.size == 0:
        raise StemdlError(f"image is empty (shape {array.shape})")
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        raise StemdlError(f"image is a colour (RGB) picture of shape {array.shape}: give the grey-scale detector image")
    if array.ndim != 2:
        raise StemdlError(f"image must be 2-D (rows, columns), not {array.ndim}-D of shape {array.shape}")
    if min(array.shape) < MIN_SIDE_PX:
        raise StemdlError(f"image of {array.shape[0]} x {array.shape[1]} px is too small: "
                          f"{MIN_SIDE_PX} px a side needed")
    if array.size > MAX_PIXELS:
        raise StemdlError(f"image of {array.shape[0]} x {array.shape[1]} px is too large: crop or bin it first")
    image = np.array(array, dtype=np.float32, order="C")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise StemdlError("image has NaN or infinite pixels: mask or replace them first")
    if low == high:
        raise StemdlError(f"image is constant (every pixel {low:g}): nothing to find")
    image.flags.writeable = False
    return image


@dataclass(frozen=True)
class FrameSequence:
    """A movie whose frames are read one at a time.

    Parameters
    ----------
    length : int
        Number of frames.
    load : callable
        ``load(i)`` returns the (H, W) array of frame i; called only when the frame is asked for.
    pixel_size : PixelSize, optional
        Common to all frames.
    frame_time_s : float, optional
        Time from one frame to the next [s].
    source : str
        Where the sequence came from.
    """

    length: int
    load: Callable[[int], ArrayLike]
    pixel_size: PixelSize | None = None
    frame_time_s: float | None = None
    source: str = ""

    @classmethod
    def from_array(cls, stack: ArrayLike, *, pixel_size: PixelSize | None = None,
                   frame_time_s: float | None = None, source: str = "") -> FrameSequence:
        """A sequence over a (T, H, W) array (or memory map, read frame by frame)."""
        if getattr(stack, "ndim", np.ndim(stack)) != 3:
            raise StemdlError(f"sequence must be 3-D (frames, rows, columns), not {np.ndim(stack)}-D")
        return cls(len(stack), stack.__getitem__, pixel_size, frame_time_s, source)  # type: ignore

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Frame:
        if not -self.length <= index < self.length:
            raise IndexError(f"frame {index} of {self.length}")
        index %= self.length
        time_s = None if self.frame_time_s is None else index * self.frame_time_s
        return Frame(np.asarray(self.load(index)), self.pixel_size, index, time_s, self.source)

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(self.length))
