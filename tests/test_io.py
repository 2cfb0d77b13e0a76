"""Every file format: the pixels, the pixel size and the frame time come back as they were written."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from microscope_files import (
    swift_properties,
    write_dm,
    write_hyperspy,
    write_ndata,
    write_swift_hdf5,
    write_velox,
)

from stemdl_core.errors import CalibrationError, ReadError
from stemdl_core.io import read_frame, read_sequence

STEP_NM = 0.0156
FRAME = (20, 31)
MOVIE = (5, 20, 31)


def image(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Numbers that differ everywhere, so that a transposed or shifted reading shows."""
    values = np.arange(np.prod(shape)).reshape(shape) % 251
    return values.astype(dtype)


def steps(ndim: int, units: str = "nm", scale: float = STEP_NM) -> list[tuple[float, str]]:
    return ([(0.5, "s")] if ndim == 3 else []) + [(scale, units)] * 2


def properties(
    shape: tuple[int, ...], kind: tuple[bool, int, int], key: str = "dimensional_calibrations"
) -> dict:
    return swift_properties(shape, kind, steps(len(shape)), key)


def write_rsciio(path: Path, data: np.ndarray) -> Path:
    """A file by RosettaSciIO's own writer, in the format of the path's extension."""
    import rsciio.emd
    import rsciio.tiff

    writer = {".emd": rsciio.emd, ".tif": rsciio.tiff}[path.suffix].file_writer
    names = ["y", "x"] if data.ndim == 2 else ["t", "y", "x"]
    axes = [
        {
            "name": name,
            "scale": scale,
            "offset": 0.0,
            "units": units,
            "size": n,
            "navigate": name == "t",
            "index_in_array": i,
            "_type": "UniformDataAxis",
            "is_binned": False,
        }
        for i, (name, n, (scale, units)) in enumerate(zip(names, data.shape, steps(data.ndim)))
    ]
    writer(
        str(path),
        {
            "data": data,
            "axes": axes,
            "metadata": {"General": {"title": "HAADF"}, "Signal": {}},
            "original_metadata": {},
        },
    )
    return path


def _sidecar(path: Path, data: np.ndarray) -> Path:
    np.save(path, data)
    path.with_suffix(".json").write_text(
        json.dumps(properties(data.shape, (data.ndim == 3, 0, 2), "spatial_calibrations"))
    )
    return path


def _imagej(path: Path, data: np.ndarray) -> Path:
    extra = {"finterval": 0.5} if data.ndim == 3 else {}
    tifffile.imwrite(
        path, data, imagej=True, resolution=(1 / STEP_NM, 1 / STEP_NM), metadata={"unit": "nm", **extra}
    )
    return path


def _ome(path: Path, data: np.ndarray) -> Path:
    tifffile.imwrite(
        path,
        data,
        ome=True,
        metadata={
            "axes": "TYX"[-data.ndim :],
            "PhysicalSizeX": STEP_NM,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": STEP_NM,
            "PhysicalSizeYUnit": "nm",
            "TimeIncrement": 0.5,
            "TimeIncrementUnit": "s",
        },
    )
    return path


def _shaped(path: Path, data: np.ndarray) -> Path:
    tifffile.imwrite(
        path, data, resolution=(1 / STEP_NM, 1 / STEP_NM), metadata={"unit": "nm", "finterval": 0.5}
    )
    return path


def _nhdf(path: Path, data: np.ndarray) -> Path:
    return write_swift_hdf5(path, [(data, properties(data.shape, (data.ndim == 3, 0, 2)))], project=False)


def _project(path: Path, data: np.ndarray) -> Path:
    return write_swift_hdf5(path, [(data, properties(data.shape, (data.ndim == 3, 0, 2)))], project=True)


def _plain_hdf5(path: Path, data: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("group/haadf", data=data)
        dataset.attrs["pixel_size_nm"] = STEP_NM
        dataset.attrs["frame_time_s"] = 0.5
        file["group/mask"] = np.zeros(data.shape[-2:], bool)
    return path


def _contiguous_emd(path: Path, data: np.ndarray) -> Path:
    """Berkeley's dialect as other programs write it: one block, units in brackets."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("experiment/haadf")
        group.attrs["emd_group_type"] = 1
        group["data"] = data
        for number, (n, (scale, units)) in enumerate(zip(data.shape, steps(data.ndim, "[n_m]"))):
            group[f"dim{number + 1}"] = 3.0 + scale * np.arange(n)
            group[f"dim{number + 1}"].attrs["units"] = units
            group[f"dim{number + 1}"].attrs["name"] = "tyx"[number - data.ndim]
    return path


def _ndata(path: Path, data: np.ndarray, *, compress: bool = False) -> Path:
    return write_ndata(
        path, data, properties(data.shape, (data.ndim == 3, 0, 2), "spatial_calibrations"), compress=compress
    )


CALIBRATED = {
    "npy-swift.npy": _sidecar,
    "imagej.tif": _imagej,
    "ome.ome.tif": _ome,
    "shaped.tiff": _shaped,
    "rsciio.tif": write_rsciio,
    "gatan.dm3": lambda path, data: write_dm(path, data, steps(data.ndim), version=3),
    "gatan.dm4": lambda path, data: write_dm(path, data, steps(data.ndim), version=4),
    "berkeley.emd": write_rsciio,
    "velox.emd": lambda path, data: write_velox(
        path, {"HAADF": data.reshape((-1, *data.shape[-2:]))}, 1e-9 * STEP_NM
    ),
    "contiguous.emd": _contiguous_emd,
    "hyperspy.hdf5": lambda path, data: write_hyperspy(path, data, steps(data.ndim)),
    "plain.h5": _plain_hdf5,
    "project.h5": _project,
    "project.ndata": _ndata,
    "export.ndata1": _ndata,
    "packed.ndata1": lambda path, data: _ndata(path, data, compress=True),
    "export.nhdf": _nhdf,
}


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibrated_frame(tmp_path, name):
    data = image(FRAME)
    frame = read_frame(CALIBRATED[name](tmp_path / name, data))
    np.testing.assert_array_equal(frame.image, data)
    assert frame.pixel_size.nm == pytest.approx(STEP_NM, rel=1e-6)
    assert frame.pixel_size.nominal_nm == pytest.approx(STEP_NM, rel=1e-6)
    assert frame.pixel_size.source == "metadata"


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibrated_sequence(tmp_path, name):
    data = image(MOVIE)
    sequence = read_sequence(CALIBRATED[name](tmp_path / name, data))
    assert len(sequence) == MOVIE[0]
    for i in (3, 0, 4):  # forward, backward and last: compressed members have to be read again
        np.testing.assert_array_equal(sequence[i].image, data[i])
    assert sequence.pixel_size.nm == pytest.approx(STEP_NM, rel=1e-6)
    if name != "rsciio.tif":  # its writer keeps no time
        assert sequence[3].time_s == pytest.approx(1.5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("version", [3, 4])
def test_dm_pixel_types(tmp_path, version, dtype):
    data = image(FRAME, dtype)
    frame = read_frame(write_dm(tmp_path / f"a.dm{version}", data, steps(2), version=version))
    np.testing.assert_array_equal(frame.image, data)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<i4", ">f4", ">f8", "bool"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".ndata1"])
def test_dtypes_and_byte_orders(tmp_path, suffix, dtype):
    data = (image(FRAME) > 100) if dtype == "bool" else image(FRAME, dtype)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, data)
    elif suffix == ".npz":
        np.savez_compressed(path, haadf=data)
    else:
        write_ndata(path, data, {})
    frame = read_frame(path)
    assert frame.image.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(frame.image, data.astype("f4"))
    assert frame.pixel_size is None


@pytest.mark.parametrize(
    "units",
    [
        ("nm", 1.0),
        ("NM", 1.0),
        ("Å", 0.1),
        ("\u212b", 0.1),
        ("angstrom", 0.1),
        ("A", 0.1),
        ("um", 1e3),
        ("µm", 1e3),
        ("\u03bcm", 1e3),
        ("m", 1e9),
        ("pm", 1e-3),
    ],
)
def test_units(tmp_path, units):
    unit, nm = units
    data = image(FRAME)
    path = write_ndata(
        tmp_path / "a.ndata1", data, swift_properties(FRAME, (False, 0, 2), steps(2, unit, STEP_NM / nm))
    )
    assert read_frame(path).pixel_size.nm == pytest.approx(STEP_NM)


@pytest.mark.parametrize("units", ["1/nm", "1 / nm", "nm^-1", "1/Å", "mrad"])
def test_diffraction_patterns_are_refused(tmp_path, units):
    path = write_dm(tmp_path / "a.dm4", image(FRAME), steps(2, units), version=4)
    with pytest.raises(ReadError, match="diffraction"):
        read_frame(path)
    # Who states the field of view says that it is an image.
    assert read_frame(path, fov_nm=3.1).pixel_size.nm == pytest.approx(0.1)


@pytest.mark.parametrize("units", ["", "px", "pixels"])
def test_pixels_are_no_calibration(tmp_path, units):
    path = write_dm(tmp_path / "a.dm3", image(FRAME), steps(2, units, 1.0), version=3)
    assert read_frame(path).pixel_size is None


def test_unknown_unit_is_not_guessed(tmp_path):
    path = write_dm(tmp_path / "a.dm3", image(FRAME), steps(2, "furlong"), version=3)
    with pytest.raises(ReadError, match="furlong"):
        read_frame(path)


def test_unequal_steps_keep_their_ratio(tmp_path):
    calibration = [(0.010, "nm"), (0.016, "nm")]
    path = write_ndata(
        tmp_path / "a.ndata", image(FRAME), swift_properties(FRAME, (False, 0, 2), calibration)
    )
    np.testing.assert_allclose(
        read_frame(path).pixel_size.to_nm([[1, 0], [0, 1]]), [[0.010, 0], [0, 0.016]], atol=1e-12
    )


@pytest.mark.parametrize("kind", [(True, 0, 2), (False, 1, 2), (True, 2, 0)])
def test_swift_sequences_and_foreign_stacks(tmp_path, kind):
    data = image(MOVIE)
    path = write_ndata(tmp_path / "a.ndata1", data, properties(MOVIE, kind))
    np.testing.assert_array_equal(read_sequence(path)[2].image, data[2])


@pytest.mark.parametrize("kind", [(False, 2, 1), (True, 1, 1)])
def test_swift_spectra_are_refused(tmp_path, kind):
    path = write_ndata(tmp_path / "a.ndata1", image(MOVIE), properties(MOVIE, kind))
    with pytest.raises(ReadError, match="not an image or a sequence"):
        read_sequence(path)


@pytest.mark.parametrize("resolution", [(72, "inch"), (300, "inch"), (118, "centimeter"), (1, "none")])
def test_printer_resolution_is_no_calibration(tmp_path, resolution):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image(FRAME), resolution=(resolution[0],) * 2, resolutionunit=resolution[1], metadata=None
    )
    assert read_frame(path).pixel_size is None


def test_tiff_baseline_resolution_of_a_microscope(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image(FRAME), resolution=(1e7 / STEP_NM,) * 2, resolutionunit="centimeter", metadata=None
    )
    assert read_frame(path).pixel_size.nm == pytest.approx(STEP_NM, rel=1e-4)


def test_tiff_micron_of_imagej(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, image(FRAME), imagej=True, resolution=(1e3 / STEP_NM,) * 2, metadata={"unit": "micron"}
    )
    assert read_frame(path).pixel_size.nm == pytest.approx(STEP_NM, rel=1e-6)


def test_tiff_tags_of_digital_micrograph(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        image(FRAME),
        metadata=None,
        extratags=[
            (65003, "s", 0, "nm", True),
            (65004, "s", 0, "nm", True),
            (65009, "d", 1, STEP_NM, True),
            (65010, "d", 1, STEP_NM, True),
        ],
    )
    assert read_frame(path).pixel_size.nm == pytest.approx(STEP_NM)


def test_tiff_pages_lzw_and_white_is_zero(tmp_path):
    from PIL import Image

    data = image(MOVIE, "uint8")
    pages = tmp_path / "pages.tif"
    with tifffile.TiffWriter(pages) as writer:
        for page in data:
            writer.write(page, contiguous=False, metadata=None)
    np.testing.assert_array_equal(read_sequence(pages)[3].image, data[3])
    lzw = tmp_path / "lzw.tif"
    Image.fromarray(data[0]).save(lzw, compression="tiff_lzw")
    np.testing.assert_array_equal(read_frame(lzw).image, data[0])
    white = tmp_path / "white.tif"
    tifffile.imwrite(white, data[0], photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(read_frame(white).image, 255 - data[0].astype("f4"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png(tmp_path, dtype):
    from PIL import Image

    data = image(FRAME, dtype) * (1 if dtype == "uint8" else 200)
    path = tmp_path / "a.PNG"  # extensions are read in any case
    Image.fromarray(data).save(path)
    frame = read_frame(path, fov_nm=3.1)
    np.testing.assert_array_equal(frame.image, data)
    assert (frame.pixel_size.nm, frame.pixel_size.source) == (pytest.approx(0.1), "argument")


def test_field_of_view_is_the_width_and_goes_before_the_file(tmp_path):
    path = _imagej(tmp_path / "a.tif", image(FRAME))
    assert read_frame(path, fov_nm=6.2).pixel_size.nm == pytest.approx(6.2 / FRAME[1])
    assert read_frame(path, pixel_size_nm=0.02).pixel_size.nm == 0.02
    with pytest.raises(CalibrationError, match="not both"):
        read_frame(path, fov_nm=6.2, pixel_size_nm=0.02)


def test_frames_of_a_movie(tmp_path):
    path = tmp_path / "movie.npy"
    data = image(MOVIE)
    np.save(path, data)
    frame = read_frame(path, frame=3)
    np.testing.assert_array_equal(frame.image, data[3])
    assert frame.index == 3
    with pytest.raises(ReadError, match=r"5 frames.*--frame"):
        read_frame(path)
    with pytest.raises(ReadError, match="no frame 5"):
        read_frame(path, frame=5)
    assert read_sequence(path, frame_time_s=0.25)[2].time_s == 0.5
    with pytest.raises(CalibrationError, match="frame time"):
        read_sequence(path, frame_time_s=0.0)


def test_single_image_is_no_movie(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, image(FRAME))
    with pytest.raises(ReadError, match="annotate"):
        read_sequence(path)


def test_several_arrays_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, adf1=image(FRAME), adf2=image(FRAME) + 1, labels=np.arange(7))
    with pytest.raises(ReadError, match=r"adf1, adf2 with --key"):
        read_frame(path)
    np.testing.assert_array_equal(read_frame(path, key="adf2").image, image(FRAME) + 1)
    with pytest.raises(ReadError, match="adf3"):
        read_frame(path, key="adf3")


def test_one_image_among_tables(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image=image(FRAME), points_xy=np.zeros((40, 2)), labels=np.arange(40))
    np.testing.assert_array_equal(read_frame(path).image, image(FRAME))


def test_high_angle_detector_is_chosen(tmp_path):
    path = write_velox(tmp_path / "a.emd", {"BF": image((1, *FRAME)), "HAADF": image((1, *FRAME)) + 7}, 1e-11)
    np.testing.assert_array_equal(read_frame(path).image, image(FRAME) + 7)
    assert read_frame(path).pixel_size.nm == pytest.approx(0.01)


def test_movies_are_never_in_memory_whole(tmp_path):
    shape = (400, 128, 128)  # 26 MB
    data = np.zeros(shape, "f4")
    data[:] = np.arange(128)
    files = [
        tmp_path / "a.npy",
        tmp_path / "a.npz",
        tmp_path / "a.ndata1",
        tmp_path / "a.h5",
        tmp_path / "a.dm4",
        tmp_path / "a.tif",
    ]
    np.save(files[0], data)
    np.savez_compressed(files[1], data)
    write_ndata(files[2], data, {}, compress=True)
    with h5py.File(files[3], "w") as file:
        file.create_dataset("movie", data=data, chunks=(1, 128, 128))
    write_dm(files[4], data, steps(3), version=4)
    tifffile.imwrite(files[5], data, imagej=True)
    for path in files:
        tracemalloc.start()
        total = sum(float(frame.image[0, 1]) for frame in read_sequence(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == shape[0]
        assert peak < 0.3 * data.nbytes, f"{path.name}: {peak / 1e6:.1f} MB at once"


def test_files_are_given_back(tmp_path):
    """Reading leaves no handle open: on Windows the file could not even be removed."""
    for name in ("imagej.tif", "plain.h5", "export.ndata1", "gatan.dm3"):
        path = CALIBRATED[name](tmp_path / name, image(FRAME))
        read_frame(path)
        handles = (
            [link.resolve() for link in Path("/proc/self/fd").glob("*")]
            if Path("/proc/self/fd").exists()
            else []
        )
        assert path.resolve() not in handles


def test_real_image_reads(shared_data):
    frame = read_frame(shared_data / "graphene_si_haadf" / "frames.npy", frame=1, fov_nm=2.0)
    assert frame.shape == (256, 256)
    assert frame.pixel_size.nm == pytest.approx(0.0078125)
