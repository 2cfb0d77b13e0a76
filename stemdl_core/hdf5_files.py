"""HDF5 in the dialects of Nion Swift, HyperSpy and Berkeley (EMD), and plain data sets with attributes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .stack import Axis, Stack, choose, could_be_image, from_array
from .swift_files import calibrated_axes, dataset_properties, swift_datasets


def open_hdf5(path: Path, key: str | None) -> Stack:
    """The one data set of an HDF5 file that could be an image, or the one that was asked for."""
    file = h5py.File(path, "r")
    try:
        swift = swift_datasets(file)
        datasets: dict[str, Any] = dict(swift)

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[name] = item

        if not swift:
            file.visititems(collect)
        if key is None and len(datasets) > 1:
            datasets = {
                n: d
                for n, d in datasets.items()
                if could_be_image(d.shape[::-1] if _columns_first(d) else d.shape, d.dtype)
            }
        chosen = choose(datasets, key, "data set")
        axes = calibrated_axes(dataset_properties(chosen), chosen.shape) if swift else _axes(chosen)
        if not swift and _columns_first(chosen):
            return _transposed(chosen, axes, file.close)
        return from_array(chosen, axes, file.close)
    except BaseException:
        file.close()
        raise


def _columns_first(dataset: h5py.Dataset) -> bool:
    """Whether an EMD data set is stored (x, y, ...), as HyperSpy writes them, rather than (..., y, x).

    The names of its dimensions say so; without names the order is taken as RosettaSciIO takes it.
    """
    group = dataset.parent
    if not group.attrs.get("emd_group_type") or group.attrs.get("py4dstem_version") or "_type" in group.attrs:
        return False
    names = [
        _text(group[f"dim{n + 1}"].attrs.get("name", "")).lower() if f"dim{n + 1}" in group else ""
        for n in range(dataset.ndim)
    ]
    return names[-1:] not in (["x"], ["width"], ["columns"])


def _transposed(dataset: h5py.Dataset, axes: tuple[Axis, ...], close: Callable[[], None]) -> Stack:
    """The data set with its dimensions in reverse order, read frame by frame."""

    def load(index: int) -> NDArray:
        return np.asarray(dataset[..., index] if dataset.ndim == 3 else dataset[...]).T

    return Stack(tuple(int(n) for n in dataset.shape[::-1]), dataset.dtype, load, axes[::-1], close=close)


def _axes(dataset: h5py.Dataset) -> tuple[Axis, ...]:
    for read in (_attribute_axes, _hyperspy_axes, _berkeley_axes):
        axes = read(dataset)
        if len(axes) == dataset.ndim:
            return axes
    return ()


def _attribute_axes(dataset: h5py.Dataset) -> tuple[Axis, ...]:
    """Our own attributes, or ``element_size_um`` of ImageJ's and ilastik's exporters."""
    attributes = dataset.attrs
    first: tuple[Axis, ...] = ()
    if dataset.ndim == 3:
        first = (Axis(float(attributes["frame_time_s"]), "s") if "frame_time_s" in attributes else Axis(),)
    if "pixel_size_nm" in attributes:
        steps, units = np.ravel(attributes["pixel_size_nm"]), "nm"
    elif "fov_nm" in attributes:
        steps, units = np.ravel(attributes["fov_nm"])[-1:] / dataset.shape[-1], "nm"
    elif "element_size_um" in attributes:
        steps, units = np.ravel(attributes["element_size_um"]), "um"
    else:
        return ()
    y, x = np.broadcast_to(steps[-2:].astype(float), 2)
    return (*first, Axis(float(y), units), Axis(float(x), units))


def _hyperspy_axes(dataset: h5py.Dataset) -> tuple[Axis, ...]:
    """Groups ``axis-<n>`` beside the data set."""
    groups = [dataset.parent.get(f"axis-{number}") for number in range(dataset.ndim)]
    if any(group is None for group in groups):
        return ()
    return tuple(Axis(float(g.attrs.get("scale", 1.0)), _text(g.attrs.get("units", ""))) for g in groups)


def _berkeley_axes(dataset: h5py.Dataset) -> tuple[Axis, ...]:
    """Vectors ``dim<n>`` beside the data set, with the coordinate of each index or of the first two."""
    vectors = [dataset.parent.get(f"dim{number + 1}") for number in range(dataset.ndim)]
    if any(not isinstance(vector, h5py.Dataset) or vector.ndim != 1 or not len(vector) for vector in vectors):
        return ()
    axes = []
    for vector in vectors:
        first_two = [float(v) for v in vector[:2]]
        step = first_two[1] - first_two[0] if len(first_two) > 1 else 1.0
        axes.append(Axis(step, _text(vector.attrs.get("units", ""))))
    return tuple(axes)


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "" if text == "_hspy_AxisArray_None" else text
