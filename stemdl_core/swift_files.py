"""Nion Swift's own files: ``.ndata1`` and ``.ndata`` (zip), ``.nhdf`` and the ``.h5`` of a project."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ReadError
from .stack import Axis, Stack


class ZippedArray:
    """One ``.npy`` member of a zip archive, read frame by frame.

    A compressed member can only be read forward: going through the frames in order costs one pass, going back
    starts again from the beginning.
    """

    def __init__(self, path: Path, member: str) -> None:
        self._path, self._member = path, member
        self._lock = threading.Lock()
        self._zip: zipfile.ZipFile | None = None
        self._file: IO[bytes] | None = None
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            self.shape, self.fortran, self.dtype = read_npy_header(file)
            self._offset = file.tell()
            self._stored = archive.getinfo(member).file_size
        self._stored_check()

    def _stored_check(self) -> None:
        needed = self._offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if not self.dtype.hasobject and self._stored < needed:
            raise ReadError(f"is truncated: {self._member} has {self._stored} of {needed} bytes")

    def __len__(self) -> int:
        return self.shape[0]

    def load(self, index: int) -> NDArray:
        """The (H, W) array of one frame; the whole array where it is 2-D."""
        if len(self.shape) == 2:
            return self._read(0, self.shape)
        if self.fortran:
            # Frames interleave in the file: there is no way but to read it all.
            return self._read(0, self.shape)[index]
        return self._read(
            index * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize, self.shape[1:]
        )

    def _read(self, start: int, shape: tuple[int, ...]) -> NDArray:
        length = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        with self._lock:
            if self._file is None:
                self._zip = zipfile.ZipFile(self._path)
                self._file = self._zip.open(self._member)
            self._file.seek(self._offset + start)
            data = self._file.read(length)
        if len(data) != length:
            raise ReadError("is truncated")
        return np.frombuffer(data, self.dtype).reshape(shape, order="F" if self.fortran else "C")

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            for file in (self._file, self._zip):
                if file is not None:
                    file.close()
            self._file = self._zip = None


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of a ``.npy`` file, leaving the position at its data."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(int(n) for n in shape), bool(fortran), dtype


def calibrated_axes(properties: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes of a data item from its properties, checked to be an image or a series of images.

    Sequences made by Swift are (is_sequence, collection, datum) = (True, 0, 2); stacks that were imported
    from other programs are often (False, 1, 2).

    Raises
    ------
    ReadError
        If the data item is something else, a spectrum image for instance.
    """
    sequence = bool(properties.get("is_sequence", False))
    collection = properties.get("collection_dimension_count")
    datum = properties.get("datum_dimension_count")
    if collection is not None and datum is not None and len(shape) in (2, 3):
        kind = (sequence, int(collection), int(datum))
        images = (
            [(False, 0, 2), (False, 2, 0)]
            if len(shape) == 2
            else [(True, 0, 2), (True, 2, 0), (False, 1, 2), (False, 0, 2)]
        )
        if kind not in images:
            raise ReadError(
                f"holds data of {datum} dimension(s) at {collection} scan dimension(s)"
                f"{' in a sequence' if sequence else ''}, not an image or a sequence of images"
            )
    calibrations = properties.get("spatial_calibrations") or properties.get("dimensional_calibrations") or ()
    axes = tuple(Axis(float(c.get("scale", 1.0) or 0.0), str(c.get("units") or "")) for c in calibrations)
    return axes if len(axes) == len(shape) else ()


def open_ndata(path: Path) -> Stack:
    """A ``.ndata1`` export or a ``.ndata`` file of a project."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "data.npy" not in names:
            raise ReadError("has no data.npy in it: not a data file of Nion Swift")
        properties = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    array = ZippedArray(path, "data.npy")
    return Stack(
        array.shape, array.dtype, array.load, calibrated_axes(properties, array.shape), close=array.close
    )


def swift_datasets(file: Any) -> dict[str, Any]:
    """Datasets of an open HDF5 file that Swift wrote, by name; empty for files of other programs.

    A project keeps one array in ``/data``, an export (``.nhdf``) several in ``/data/<n>``; each carries the
    data item's JSON in its attribute ``properties``.
    """
    data = file.get("data")
    if data is None:
        return {}
    members = (
        {"data": data} if hasattr(data, "dtype") else {f"data/{name}": data[name] for name in sorted(data)}
    )
    return {name: d for name, d in members.items() if hasattr(d, "dtype") and "properties" in d.attrs}


def dataset_properties(dataset: Any) -> dict[str, Any]:
    """JSON of attribute ``properties``."""
    text = dataset.attrs["properties"]
    properties = json.loads(text.decode("utf-8") if isinstance(text, bytes) else str(text) or "{}")
    return properties if isinstance(properties, dict) else {}
