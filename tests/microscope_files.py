"""Genuine files of microscope programs, written byte by byte for the tests that read them."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np

#: Digital Micrograph's data types of pixels, and its codes of the encoded tag types.
_DM_PIXEL = {"int16": 1, "float32": 2, "uint8": 6, "int32": 7, "uint16": 10, "float64": 12, "complex64": 3}
_DM_TAG = {
    "int16": 2,
    "int32": 3,
    "uint16": 4,
    "uint32": 5,
    "float32": 6,
    "float64": 7,
    "uint8": 10,
    "complex64": 6,
}


class DmWriter:
    """Tags of a DM3 or DM4 file. Headers are big endian, values little endian (flag 1 in the file header)."""

    def __init__(self, version: int) -> None:
        self.version = version

    def long(self, value: int) -> bytes:
        return struct.pack(">q" if self.version == 4 else ">i", value)

    def tag(self, name: str, body: bytes, kind: int) -> bytes:
        text = name.encode("latin-1")
        size = struct.pack(">q", len(body)) if self.version == 4 else b""
        return struct.pack(">bh", kind, len(text)) + text + size + body

    def group_body(self, tags: list[bytes]) -> bytes:
        return b"\x01\x00" + self.long(len(tags)) + b"".join(tags)

    def group(self, name: str, tags: list[bytes]) -> bytes:
        return self.tag(name, self.group_body(tags), 20)

    def value(self, name: str, value: float, dtype: str) -> bytes:
        data = np.asarray(value, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
        return self.tag(name, b"%%%%" + self.long(1) + self.long(_DM_TAG[dtype]) + data, 21)

    def text(self, name: str, value: str) -> bytes:
        """Strings are arrays of 16-bit characters."""
        data = value.encode("utf-16-le")
        return self.tag(
            name, b"%%%%" + self.long(3) + self.long(20) + self.long(4) + self.long(len(data) // 2) + data, 21
        )

    def array(self, name: str, value: np.ndarray) -> bytes:
        count = value.size * (2 if value.dtype.kind == "c" else 1)
        data = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        return self.tag(
            name,
            b"%%%%"
            + self.long(3)
            + self.long(20)
            + self.long(_DM_TAG[value.dtype.name])
            + self.long(count)
            + data,
            21,
        )

    def image(self, data: np.ndarray, steps: list[tuple[float, str]], name: str) -> bytes:
        """One member of the image list; DM counts dimensions from the fastest."""
        dimensions = [self.value("", n, "uint32") for n in data.shape[::-1]]
        calibrations = [
            self.group(
                "",
                [
                    self.value("Origin", 0.0, "float32"),
                    self.value("Scale", scale, "float32"),
                    self.text("Units", units),
                ],
            )
            for scale, units in steps[::-1]
        ]
        brightness = self.group(
            "Brightness",
            [
                self.value("Origin", 0.0, "float32"),
                self.value("Scale", 1.0, "float32"),
                self.text("Units", ""),
            ],
        )
        content = [
            self.group("Calibrations", [brightness, self.group("Dimension", calibrations)]),
            self.array("Data", data),
            self.value("DataType", _DM_PIXEL[data.dtype.name], "uint32"),
            self.group("Dimensions", dimensions),
            self.value("PixelDepth", data.dtype.itemsize, "uint32"),
        ]
        return self.group(
            "", [self.group("ImageData", content), self.group("ImageTags", []), self.text("Name", name)]
        )


def write_dm(path: Path, data: np.ndarray, steps: list[tuple[float, str]], *, version: int) -> Path:
    """A DM3 or DM4 file with a thumbnail and one image; `steps` are (scale, unit) per dimension."""
    dm = DmWriter(version)
    thumbnail = dm.image(np.zeros((8, 8), "int32"), [(1.0, "")] * 2, "thumbnail")
    root = dm.group_body(
        [
            dm.group("ImageList", [thumbnail, dm.image(data, steps, "HAADF")]),
            dm.group("Thumbnails", [dm.group("", [dm.value("ImageIndex", 0, "uint32")])]),
        ]
    )
    header = struct.pack(">i", version) + dm.long(len(root)) + struct.pack(">i", 1)
    path.write_bytes(header + root + b"\x00" * 8)
    return path


def swift_properties(
    shape: tuple[int, ...],
    kind: tuple[bool, int, int],
    steps: list[tuple[float, str]],
    calibrations: str = "dimensional_calibrations",
) -> dict:
    """JSON of a data item as Nion Swift keeps it, with (is_sequence, collection, datum) dimensions."""
    return {
        "type": "data-item",
        "data_shape": list(shape),
        "is_sequence": kind[0],
        "collection_dimension_count": kind[1],
        "datum_dimension_count": kind[2],
        calibrations: [{"offset": 0.0, "scale": scale, "units": units} for scale, units in steps],
        "metadata": {"hardware_source": {"channel_name": "HAADF"}},
        "version": 13,
    }


def write_ndata(path: Path, data: np.ndarray, properties: dict, *, compress: bool = False) -> Path:
    """A ``.ndata1`` export or a ``.ndata`` file of a project."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("metadata.json", json.dumps(properties))
        with archive.open("data.npy", "w") as file:
            np.lib.format.write_array(file, data, allow_pickle=False)
    return path


def write_swift_hdf5(path: Path, items: list[tuple[np.ndarray, dict]], *, project: bool) -> Path:
    """An ``.nhdf`` export (``/data/<n>``) or the ``.h5`` of a project (``/data``)."""
    with h5py.File(path, "w") as file:
        for number, (data, properties) in enumerate(items):
            dataset = file.create_dataset("data" if project else f"data/{number}", data=data)
            dataset.attrs["properties"] = json.dumps(properties)
    return path


def write_velox(path: Path, images: dict[str, np.ndarray], pixel_size_m: float) -> Path:
    """A Velox ``.emd``: (H, W, T) arrays by detector, metadata as JSON in columns of bytes."""
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([json.dumps({"format": "Velox", "version": "11.0"}).encode()])
        for number, (detector, stack) in enumerate(images.items()):
            group = file.create_group(f"Data/Image/{number:032x}")
            frames = np.moveaxis(stack, 0, -1)
            group.create_dataset("Data", data=frames, chunks=(*frames.shape[:2], 1))
            metadata = (
                json.dumps(
                    {
                        "Core": {"MetadataDefinitionVersion": "7.9"},
                        "Instrument": {"InstrumentModel": "Test"},
                        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1700000000"}},
                        "Optics": {"AccelerationVoltage": "60000"},
                        "Stage": {},
                        "Sample": {},
                        "Vacuum": {},
                        "Scan": {"FrameTime": "0.5", "DwellTime": "1e-06"},
                        "Detectors": {
                            f"Detector-{number}": {
                                "DetectorName": detector,
                                "DetectorType": "ScanningDetector",
                            }
                        },
                        "BinaryResult": {
                            "PixelSize": {"height": str(pixel_size_m), "width": str(pixel_size_m)},
                            "Offset": {"x": "0", "y": "0"},
                            "PixelUnitX": "m",
                            "PixelUnitY": "m",
                            "DetectorIndex": str(number),
                        },
                    }
                ).encode()
                + b"\x00"
            )
            column = np.zeros((len(metadata) + 64, frames.shape[-1]), np.uint8)
            column[: len(metadata)] = np.frombuffer(metadata, np.uint8)[:, None]
            group.create_dataset("Metadata", data=column)
    return path


def write_hyperspy(path: Path, data: np.ndarray, steps: list[tuple[float, str]]) -> Path:
    """A HyperSpy signal in HDF5."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"file_format": "HyperSpy", "file_format_version": "3.3"})
        signal = file.create_group("Experiments/HAADF")
        signal["data"] = data
        for name in ("metadata/General", "metadata/Signal", "original_metadata", "learning_results"):
            signal.create_group(name)
        for number, (n, (scale, units)) in enumerate(zip(data.shape, steps)):
            axis = signal.create_group(f"axis-{number}")
            axis.attrs.update(
                {
                    "name": "tyx"[number - data.ndim],
                    "scale": scale,
                    "offset": 0.0,
                    "units": units,
                    "size": n,
                    "navigate": data.ndim - number > 2,
                    "_type": "UniformDataAxis",
                }
            )
    return path
