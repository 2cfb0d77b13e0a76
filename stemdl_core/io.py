"""Images and movies from files: every format that microscopes and Nion Swift write, with its calibration."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .calibration import PixelSize
from .errors import CalibrationError, ReadError, StemdlError
from .frames import Frame, FrameSequence
from .readers import OPENERS, guarded, open_stack
from .stack import Stack

#: Extensions of the files that can be read.
EXTENSIONS = tuple(OPENERS)


def read_frame(
    path: str | os.PathLike[str],
    *,
    fov_nm: float | None = None,
    pixel_size_nm: float | None = None,
    frame: int | None = None,
    key: str | None = None,
) -> Frame:
    """One image from a file.

    Parameters
    ----------
    path : path
        The file; its extension says what it is (`EXTENSIONS`).
    fov_nm : float, optional
        Width of the image [nm]; goes before the file's own calibration.
    pixel_size_nm : float, optional
        Pixel size [nm/px]; the same in another way.
    frame : int, optional
        Which frame of a sequence. A sequence of several frames is refused without it.
    key : str, optional
        Which array, data set or image, in files that hold several.

    Returns
    -------
    Frame
        With `pixel_size` None where neither the caller nor the file gives one.

    Raises
    ------
    ReadError
        If the file is no readable image; one line that begins with its name.
    CalibrationError
        If the field of view or pixel size is no positive number, or both are given.

    Examples
    --------
    >>> frame = read_frame("graphene.dm4")                # doctest: +SKIP
    >>> frame = read_frame("movie.npy", frame=3, fov_nm=4.0)  # doctest: +SKIP
    """
    file = Path(path)
    _check_arguments(fov_nm, pixel_size_nm)
    stack = open_stack(file, key)
    try:
        index = _frame_index(file, stack, frame)
        pixel_size = _pixel_size(file, stack, fov_nm, pixel_size_nm)
        time_s = stack.frame_time_s()
        image = guarded(file, lambda: stack.load(index))
        try:
            return Frame(image, pixel_size, index, None if time_s is None else index * time_s, str(file))
        except StemdlError as error:
            raise ReadError(f"{file}: {error}") from None
    finally:
        stack.close()


def read_sequence(
    path: str | os.PathLike[str],
    *,
    fov_nm: float | None = None,
    pixel_size_nm: float | None = None,
    frame_time_s: float | None = None,
    key: str | None = None,
) -> FrameSequence:
    """A movie from a file; frames are read when they are asked for, one at a time.

    Parameters
    ----------
    path : path
        The file, with a (T, H, W) array or a series of images in it.
    fov_nm, pixel_size_nm : float, optional
        As for `read_frame`.
    frame_time_s : float, optional
        Time from frame to frame [s]; goes before the file's own.
    key : str, optional
        Which array, data set or image, in files that hold several.

    Raises
    ------
    ReadError
        If the file is no readable sequence (a single image, for instance).
    CalibrationError
        If a number is not positive.
    """
    file = Path(path)
    _check_arguments(fov_nm, pixel_size_nm)
    if frame_time_s is not None and not (math.isfinite(frame_time_s) and frame_time_s > 0):
        raise CalibrationError(f"frame time must be a positive number of s, not {frame_time_s!r}")
    stack = open_stack(file, key)
    try:
        if not stack.is_sequence:
            raise ReadError(
                f"{file}: is a single image of {stack.shape[0]} x {stack.shape[1]} px, not a sequence: "
                "use 'stemdl annotate' (read_frame)"
            )
        pixel_size = _pixel_size(file, stack, fov_nm, pixel_size_nm)
        time_s = stack.frame_time_s() if frame_time_s is None else float(frame_time_s)
    except BaseException:
        stack.close()
        raise
    return FrameSequence(
        stack.shape[0], lambda i: guarded(file, lambda: stack.load(i)), pixel_size, time_s, str(file)
    )


def _check_arguments(fov_nm: float | None, pixel_size_nm: float | None) -> None:
    if fov_nm is not None and pixel_size_nm is not None:
        raise CalibrationError("give either the field of view or the pixel size, not both")
    for name, value in (("field of view", fov_nm), ("pixel size", pixel_size_nm)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CalibrationError(f"{name} must be a positive number of nm, not {value!r}")


def _frame_index(file: Path, stack: Stack, frame: int | None) -> int:
    length = stack.shape[0] if stack.is_sequence else 1
    if frame is None:
        if length > 1:
            raise ReadError(
                f"{file}: is a sequence of {length} frames: choose one with --frame (0 to {length - 1}), "
                "or use 'stemdl track'"
            )
        return 0
    if not 0 <= frame < length:
        raise ReadError(f"{file}: has no frame {frame}: its frames are 0 to {length - 1}")
    return frame


def _pixel_size(
    file: Path, stack: Stack, fov_nm: float | None, pixel_size_nm: float | None
) -> PixelSize | None:
    if fov_nm is not None:
        return PixelSize.from_fov(float(fov_nm), stack.shape[-1])
    if pixel_size_nm is not None:
        return PixelSize(float(pixel_size_nm), "argument", float(pixel_size_nm))
    return guarded(file, stack.pixel_size)
