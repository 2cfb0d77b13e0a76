"""How each file format is opened as a `Stack`: shape and calibration at once, frames on demand."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ReadError
from .frames import MAX_PIXELS
from .hdf5_files import open_hdf5
from .stack import Axis, Stack, choose, could_be_image, from_array
from .swift_files import ZippedArray, calibrated_axes, open_ndata
from .tiff_files import open_tiff

_log = logging.getLogger(__name__)

Opener = Callable[[Path, str | None], Stack]


def _open_npy(path: Path, key: str | None) -> Stack:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return from_array(array, _sidecar_axes(path, array.shape))


def _sidecar_axes(path: Path, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Calibration from the ``.json`` that Nion Swift writes beside a ``.npy`` export, if there is one."""
    try:
        properties = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return calibrated_axes(properties, shape) if isinstance(properties, dict) else ()


def _open_npz(path: Path, key: str | None) -> Stack:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    arrays = {name: ZippedArray(path, f"{name}.npy") for name in names}
    if key is None and len(arrays) == 1:
        array = next(iter(arrays.values()))
    else:
        images = {name: a for name, a in arrays.items() if could_be_image(a.shape, a.dtype)}
        array = choose(arrays if key is not None else images, key, "array")
    return Stack(array.shape, array.dtype, array.load, close=array.close)


def _open_png(path: Path, key: str | None) -> Stack:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            size, mode = picture.size, picture.mode
    except Image.DecompressionBombError:
        raise ReadError(
            f"has more than {2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)} px: crop or bin it first"
        ) from None
    dtype = np.dtype({"1": "?", "I": "i4", "F": "f4"}.get(mode, "u2" if mode.startswith("I;16") else "u1"))

    def load(index: int) -> NDArray:
        with Image.open(path) as picture:
            array = np.asarray(picture)
        return array[..., 0] if mode == "LA" else array

    return Stack((size[1], size[0]), dtype, load, colour=mode in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"))


def _open_rsciio(contents: Sequence[Mapping[str, Any]], key: str | None) -> Stack:
    """One of the signals that a RosettaSciIO reader found in a file."""
    found: dict[str, Stack] = {}
    for number, signal in enumerate(contents):
        data = signal["data"]
        axes = [Axis(a.get("scale", 1.0), _unit(a.get("units"))) for a in signal["axes"]]
        title = (
            str(signal.get("metadata", {}).get("General", {}).get("title") or "").strip() or f"image {number}"
        )
        found[title if title not in found else f"{title} ({number})"] = _from_dask(data, axes)
    if key is None and len(found) > 1:
        images = {name: s for name, s in found.items() if could_be_image(s.shape, s.dtype)}
        haadf = {name: s for name, s in images.items() if "haadf" in name.lower()}
        # A microscope that records several detectors at once: the high-angle one shows the atoms.
        found = haadf if len(haadf) == 1 else images
    return next(iter(found.values())) if key is None and len(found) == 1 else choose(found, key, "image")


def _unit(units: Any) -> str:
    return "" if units is None or not isinstance(units, str) else units


def _from_dask(data: Any, axes: Sequence[Axis]) -> Stack:
    """A stack over a lazily read array; leading dimensions of length one are dropped."""
    extra = 0
    while data.ndim - extra > 2 and data.shape[extra] == 1:
        extra += 1
    shape = tuple(int(n) for n in data.shape[extra:])

    def load(index: int) -> NDArray:
        part = data[(0,) * extra + ((index,) if len(shape) == 3 else ())]
        return np.asarray(part.compute(scheduler="synchronous") if hasattr(part, "compute") else part)

    return Stack(shape, np.dtype(data.dtype), load, tuple(axes[extra:]))


def _open_dm(path: Path, key: str | None) -> Stack:
    from rsciio.digitalmicrograph import file_reader

    with path.open("rb") as file:
        version = int.from_bytes(file.read(4), "big")
    if version not in (3, 4):
        raise ReadError("is not a Digital Micrograph file")
    try:
        contents = file_reader(str(path), lazy=True)
    except ValueError as error:
        if "RGBA" in str(error):
            raise ReadError("is a colour (RGB) picture: give the grey-scale detector image") from None
        raise
    return _open_rsciio([{**signal, "data": _DmArray(path, signal)} for signal in contents], key)


class _DmArray:
    """The data block of one image of a DM file, mapped anew for each frame.

    RosettaSciIO's lazy arrays come in blocks of a hundred megabytes, of which each frame would read all.
    """

    def __init__(self, path: Path, signal: Mapping[str, Any]) -> None:
        block = signal["original_metadata"]["ImageList"]["TagGroup0"]["ImageData"]["Data"]
        self._path, self._offset = path, int(block["offset"])
        self.shape, self.dtype = tuple(int(n) for n in signal["data"].shape), np.dtype(signal["data"].dtype)
        self.ndim = len(self.shape)
        missing = self._offset + math.prod(self.shape) * self.dtype.itemsize - path.stat().st_size
        if missing > 0 and self.dtype.kind != "c":
            raise ReadError(f"is truncated: {missing} bytes of the image are missing")

    def __getitem__(self, index: Any) -> NDArray:
        return np.memmap(self._path, self.dtype, "r", self._offset, self.shape)[index]


def _open_emd(path: Path, key: str | None) -> Stack:
    import h5py

    with h5py.File(path, "r") as file:
        velox = "Version" in file and "Data" in file
    if not velox:
        return open_hdf5(path, key)
    from rsciio.emd import file_reader

    return _open_rsciio(file_reader(str(path), lazy=True, select_type="images"), key)


def _open_swift(path: Path, key: str | None) -> Stack:
    return open_ndata(path)


def _open_tiff(path: Path, key: str | None) -> Stack:
    return open_tiff(path)


#: What opens a file, by the extension of its name in lower case.
OPENERS: dict[str, Opener] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".tif": _open_tiff,
    ".tiff": _open_tiff,
    ".png": _open_png,
    ".dm3": _open_dm,
    ".dm4": _open_dm,
    ".emd": _open_emd,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".hspy": open_hdf5,
    ".ndata": _open_swift,
    ".ndata1": _open_swift,
    ".nhdf": open_hdf5,
}


def open_stack(path: Path, key: str | None = None) -> Stack:
    """Open a file as a stack, checked to be an image or a series of images.

    Parameters
    ----------
    path : Path
        The file; its extension says what it is.
    key : str, optional
        Which array, data set or image, in files that hold several.

    Raises
    ------
    ReadError
        One line that begins with the file's name.
    """
    if not path.exists():
        raise ReadError(f"{path}: no such file")
    if path.is_dir():
        raise ReadError(f"{path}: is a folder, not an image file")
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        known = " ".join(OPENERS)
        raise ReadError(
            f"{path}: unknown kind of file {path.suffix or '(no extension)'!r}: give one of {known}"
        )
    if path.stat().st_size == 0:
        raise ReadError(f"{path}: is an empty file")
    return guarded(path, lambda: _opened(opener, path, key))


def _opened(opener: Opener, path: Path, key: str | None) -> Stack:
    stack = opener(path, key)
    try:
        stack.check()
    except BaseException:
        stack.close()
        raise
    return stack


def guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Run an action on a file; whatever goes wrong becomes one line that names the file."""
    try:
        return action()
    except ReadError as error:
        raise ReadError(f"{path}: {error}") from None
    except PermissionError:
        raise ReadError(f"{path}: no permission to read it") from None
    except MemoryError:
        raise ReadError(f"{path}: does not fit into memory: crop or bin it first") from None
    except Exception as error:  # readers of many formats fail on damaged files in as many ways
        _log.debug("reading %s", path, exc_info=True)
        reason = re.sub(r"\s+", " ", str(error)).strip()[:160] or type(error).__name__
        raise ReadError(
            f"{path}: cannot be read as {path.suffix.lower()}, is it damaged or truncated? ({reason})"
        ) from None
