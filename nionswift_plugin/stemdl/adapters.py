"""Between Nion Swift's data and stemdl's: the only code that knows Swift's calibrations and coordinates.

Swift places graphics relative to the image's edges: 0 is the outer edge of the first pixel and 1 the outer
edge of the last. stemdl counts pixel centres from zero. Every conversion between the two is in this module.
"""

from __future__ import annotations

import math
import typing

import numpy

if typing.TYPE_CHECKING:
    from nion.data import Calibration, DataAndMetadata

    from stemdl_core.analysis import Defect, FrameAnalysis
    from stemdl_core.calibration import PixelSize
    from stemdl_core.corrections import Correction
    from stemdl_core.frames import Frame

#: Nanometres in one unit of a calibrated axis, by the spellings that microscopes write.
UNITS_NM = {
    "nm": 1.0,
    "pm": 1e-3,
    "um": 1e3,
    "\N{MICRO SIGN}m": 1e3,
    "\N{GREEK SMALL LETTER MU}m": 1e3,
    "A": 0.1,
    "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}": 0.1,
    "\N{ANGSTROM SIGN}": 0.1,
    "angstrom": 0.1,
    "Angstrom": 0.1,
    "mm": 1e6,
    "m": 1e9,
}
#: Units of axes that do not run through real space; such images are diffraction patterns or spectra.
_OTHER_SPACES = ("1/", "rad", "mrad", "eV", "keV", "s", "ms", "us", "ns", "deg", "Hz")
#: Anisotropy below this is rounding in the file, not a property of the scan.
_SAME_SCALE = 1e-3
#: Defects larger than this [nm] are marked by an ellipse in their own box instead of a circle.
_WIDEST_CIRCLE_NM = 0.6

#: Columns of the atoms table, each with its unit.
COLUMNS = (
    ("id", ""),
    ("y_px", "px"),
    ("x_px", "px"),
    ("y_nm", "nm"),
    ("x_nm", "nm"),
    ("Z", ""),
    ("score", ""),
    ("sigma_pm", "pm"),
    ("intensity", "host columns"),
    ("edge", ""),
    ("defect", ""),
)
#: Columns of the defects table; ``name`` counts in the metadata's ``names``.
DEFECT_COLUMNS = (
    ("id", ""),
    ("name", ""),
    ("y_px", "px"),
    ("x_px", "px"),
    ("y_nm", "nm"),
    ("x_nm", "nm"),
    ("atoms", ""),
    ("missing_atoms", ""),
    ("probability", ""),
    ("mean_bond_pm", "pm"),
    ("shortest_bond_pm", "pm"),
    ("longest_bond_pm", "pm"),
)
#: What a person has corrected stands with the image itself, under this key: it outlives every result.
CORRECTIONS_KEY = "stemdl_corrections"
#: The table's key in the metadata of a data item, and the version of what stands there.
METADATA_KEY = "stemdl"
SCHEMA = 1
#: Swift copies and stores metadata often: bonds and angles of more defects than this stay out of it.
MOST_DEFECTS_WITH_GEOMETRY = 100
#: The same for a live image, whose metadata is copied some twenty times a frame.
MOST_LIVE_DEFECTS_WITH_GEOMETRY = 24


#: Properties of a computation that change when a run has ended: of Swift 16.16, and of 16.18.
RUN_PROPERTIES = ("status", "last_computed_status", "error_text")


def check_selection(xdata: DataAndMetadata.DataAndMetadata | None) -> None:
    """Refuse what is not an image or a sequence of images, before anything is created.

    Raises
    ------
    StemdlError
        With one line that says what was selected and what to select.
    """
    from stemdl_core.errors import StemdlError

    if xdata is None:
        raise StemdlError("select an image: nothing with data is selected")
    descriptor = xdata.data_descriptor
    if METADATA_KEY in xdata.metadata:
        raise StemdlError("select the microscope image: this is already a result of stemdl")
    if xdata.is_data_rgb_type:
        raise StemdlError("this is a colour (RGB) picture: select the grey-scale detector image")
    if descriptor.datum_dimension_count == 1:
        raise StemdlError("this is a line plot or spectrum: select an image")
    if descriptor.datum_dimension_count != 2:
        raise StemdlError("this is a single value, not an image: select an image")
    if descriptor.collection_dimension_count > (0 if descriptor.is_sequence else 1):
        raise StemdlError("this is a map with an image at each point (4D): select or pick one image of it")
    if xdata.is_data_complex_type:
        raise StemdlError("this image is complex: select a real image, for instance its magnitude")


def displayed_index(display_data_channel: typing.Any) -> int:
    """Number of the frame of a sequence that Swift shows (0 for a plain image)."""
    data_item = display_data_channel.data_item
    if data_item.is_sequence:
        return int(display_data_channel.sequence_index)
    if data_item.is_collection:
        return int(display_data_channel.collection_index[0])
    return 0


def is_movie(xdata: DataAndMetadata.DataAndMetadata) -> bool:
    """Whether this is a sequence of images; stacks from other programs arrive as collections of them."""
    descriptor = xdata.data_descriptor
    return descriptor.datum_dimension_count == 2 and (
        descriptor.is_sequence + descriptor.collection_dimension_count == 1
    )


def frame_of(xdata: DataAndMetadata.DataAndMetadata, *, index: int = 0, source: str = "") -> Frame:
    """The image, or frame `index` of a movie, as a stemdl frame.

    Raises
    ------
    StemdlError
        If the data is not an image that can be analysed (see `check_selection` and `Frame`).
    """
    from stemdl_core.frames import Frame

    check_selection(xdata)
    image = xdata.data
    if is_movie(xdata):
        index = min(max(index, 0), len(image) - 1)
        image = image[index]
    return Frame(image, pixel_size_of(xdata.dimensional_calibrations[-2:]), index, None, source)


def pixel_size_of(calibrations: typing.Sequence[Calibration.Calibration]) -> PixelSize | None:
    """Pixel size from the calibrations of the (y, x) axes; None where they have no unit of length.

    Raises
    ------
    StemdlError
        If the axes are calibrated in something that is not a length.
    """
    from stemdl_core.calibration import PixelSize
    from stemdl_core.errors import CalibrationError

    steps = []
    for calibration in calibrations:
        units = (calibration.units or "").strip()
        if units.startswith("1/") or units in _OTHER_SPACES:
            raise CalibrationError(
                f"the image's axes are in {units}, not in nm: this is not a real-space image"
            )
        scale = abs(calibration.scale) * UNITS_NM.get(units, 0.0)
        if not (math.isfinite(scale) and scale > 0):
            return None
        steps.append(scale)
    nm = math.sqrt(steps[0] * steps[1])
    distortion = ((1.0, 0.0), (0.0, 1.0))
    if abs(steps[0] / steps[1] - 1) > _SAME_SCALE:
        distortion = ((steps[0] / nm, 0.0), (0.0, steps[1] / nm))
    return PixelSize(nm, "metadata", nm, distortion)


def is_partial(metadata: typing.Mapping[str, typing.Any], rows: int) -> bool:
    """Whether a live frame is still being scanned: its lower rows belong to the frame before."""
    valid_rows = metadata.get("hardware_source", {}).get("valid_rows")
    return valid_rows is not None and int(valid_rows) < rows


def to_relative(yx_px: typing.Any, shape: tuple[int, int]) -> numpy.ndarray:
    """Positions (..., 2) in (y, x) px to Swift's relative positions."""
    return (numpy.asarray(yx_px, dtype=float) + 0.5) / numpy.asarray(shape, dtype=float)


def from_relative(yx: typing.Any, shape: tuple[int, int]) -> numpy.ndarray:
    """Swift's relative positions (..., 2) in (y, x) to px."""
    return numpy.asarray(yx, dtype=float) * numpy.asarray(shape, dtype=float) - 0.5


def defect_bounds(
    defect: Defect, analysis: FrameAnalysis, bond: float | None = None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Swift bounds ((top, left), (height, width)) of the circle around a defect's sites; `bond` in px.

    What is larger than `_WIDEST_CIRCLE_NM` (a grain boundary is as long as the image) gets an ellipse in its own box.
    """
    center = numpy.asarray(defect.center_px, dtype=float)
    rim = 0.8 * (bond_px(analysis) if bond is None else bond)
    half = numpy.full(2, rim)
    if defect.site_ids:
        yx = analysis.sites.yx_px[list(defect.site_ids)]
        reach = float(numpy.hypot(*(yx - center).T).max())
        if reach * analysis.pixel_size.nm > _WIDEST_CIRCLE_NM:
            center = 0.5 * (yx.min(axis=0) + yx.max(axis=0))
            half += 0.5 * (yx.max(axis=0) - yx.min(axis=0))
        else:
            half += reach
    origin = to_relative(center, analysis.shape) - half / numpy.asarray(analysis.shape, dtype=float)
    size = 2 * half / numpy.asarray(analysis.shape, dtype=float)
    return (float(origin[0]), float(origin[1])), (float(size[0]), float(size[1]))


def bond_px(analysis: FrameAnalysis) -> float:
    """Typical distance between bonded atoms [px]; a plausible one where nothing was found."""
    if len(analysis.bonds):
        return float(numpy.median(analysis.bonds.length_pm)) * 1e-3 / analysis.pixel_size.nm
    return 0.15 / analysis.pixel_size.nm


def table_of(
    analysis: FrameAnalysis, *, with_geometry: int = MOST_DEFECTS_WITH_GEOMETRY
) -> tuple[numpy.ndarray, dict[str, typing.Any]]:
    """The atoms as a table, and what does not fit into its columns.

    Parameters
    ----------
    analysis : FrameAnalysis
        What was found.
    with_geometry : int
        Defects whose bonds and angles are told.

    Returns
    -------
    (max(N, 1), K) float64 ndarray
        One row an atom, columns as in `COLUMNS`. Swift has no data items without elements, so "no atoms" is
        one row of NaN; the metadata's ``atoms`` is the true number of rows.
    dict
        Metadata for the data item, all of it JSON: column names and units, model, pixel size, defects,
        rings, warnings.
    """
    from stemdl_core.materials import element

    sites = analysis.sites
    defect_of = numpy.full(len(sites), -1.0)
    for defect in analysis.defects:
        defect_of[list(defect.site_ids)] = defect.id
    numbers = {symbol: element(symbol) for symbol in sorted(set(sites.species.tolist()))}
    yx_nm = analysis.pixel_size.to_nm(sites.yx_px)
    columns = (
        numpy.arange(len(sites)),
        sites.y_px,
        sites.x_px,
        yx_nm[:, 0],
        yx_nm[:, 1],
        [numbers[s] for s in sites.species.tolist()],
        sites.score,
        sites.sigma_pm,
        sites.intensity,
        sites.edge,
        defect_of,
    )
    table = numpy.stack([numpy.asarray(c, dtype=float) for c in columns], axis=1)
    if not len(table):
        table = numpy.full((1, len(COLUMNS)), numpy.nan)
    metadata = {
        "schema": SCHEMA,
        "atoms": len(sites),
        "columns": [name for name, _ in COLUMNS],
        "units": [unit for _, unit in COLUMNS],
        "species": {str(z): symbol for symbol, z in numbers.items()},
        "counts": {s: int((sites.species == s).sum()) for s in numbers},
        "model": analysis.model,
        "material": analysis.material,
        "shape": [int(n) for n in analysis.shape],
        "frame": int(analysis.frame),
        "pixel_size_nm": float(analysis.pixel_size.nm),
        "nominal_pixel_size_nm": analysis.pixel_size.nominal_nm,
        "pixel_size_source": analysis.pixel_size.source,
        "bonds": len(analysis.bonds),
        "rings": {str(n): int(count) for n, count in sorted(analysis.rings.items())},
        "alloy": {k: [float(f), float(s)] for k, (f, s) in analysis.alloy.items()},
        "masked_fraction": float(analysis.masked_fraction),
        "warnings": list(analysis.warnings),
        "defects": [
            _defect_entry(d, geometry=i < with_geometry) for i, d in enumerate(analysis.defects)
        ],
    }
    return table, metadata


def defect_table_of(analysis: FrameAnalysis) -> tuple[numpy.ndarray, dict[str, typing.Any]]:
    """The defects as a table, columns as in `DEFECT_COLUMNS`, and its metadata; one row of NaN for none."""
    defects = list(analysis.defects)
    names = sorted({d.name for d in defects})
    table = numpy.full((max(len(defects), 1), len(DEFECT_COLUMNS)), numpy.nan)
    for row, defect in zip(table, defects):
        bonds = [b.length_pm for b in defect.bonds] or [numpy.nan]
        yx = numpy.asarray(defect.center_px, dtype=float)
        row[:] = (
            defect.id, names.index(defect.name), *yx, *analysis.pixel_size.to_nm(yx), len(defect.site_ids),
            defect.missing_atoms, defect.probability, numpy.mean(bonds), min(bonds), max(bonds),
        )  # fmt: skip
    metadata = {
        "schema": SCHEMA,
        "defect_rows": len(defects),
        "columns": [name for name, _ in DEFECT_COLUMNS],
        "units": [unit for _, unit in DEFECT_COLUMNS],
        "names": names,
        "frame": int(analysis.frame),
    }
    return table, metadata


def corrections_of(metadata: typing.Mapping[str, typing.Any]) -> tuple[Correction, ...]:
    """What a person has corrected in an image or movie, from its metadata."""
    entries = metadata.get(CORRECTIONS_KEY, {}).get("corrections", ())
    if not entries:
        return ()
    from stemdl_core.corrections import Correction

    return tuple(Correction.from_dict(dict(entry)) for entry in entries)


def _defect_entry(defect: Defect, *, geometry: bool) -> dict[str, typing.Any]:
    entry: dict[str, typing.Any] = {
        "id": int(defect.id),
        "name": defect.name,
        "composition": {k: int(n) for k, n in defect.composition.items()},
        "center_px": [round(float(v), 3) for v in defect.center_px],
        "missing_atoms": int(defect.missing_atoms),
        "probability": round(float(defect.probability), 4),
        "site_ids": [int(i) for i in defect.site_ids],
    }
    if math.isfinite(defect.misorientation_deg):
        entry["misorientation_deg"] = round(float(defect.misorientation_deg), 2)
    if defect.alternatives:
        entry["alternatives"] = [[n, round(float(p), 4)] for n, p in defect.alternatives]
    if geometry:
        entry["bonds"] = [[int(b.a), int(b.b), round(float(b.length_pm), 2)] for b in defect.bonds]
        entry["angles"] = [[int(g.a), int(g.at), int(g.b), round(float(g.deg), 2)] for g in defect.angles]
    return entry


def calibration_statement(metadata: typing.Mapping[str, typing.Any]) -> str:
    """One line that says which pixel size was used and where it came from."""
    used = 1e3 * float(metadata["pixel_size_nm"])
    nominal = metadata.get("nominal_pixel_size_nm")
    if metadata.get("pixel_size_source") == "lattice":
        if nominal is None:
            return f"{used:.2f} pm/px, from the lattice: the image has no calibration"
        return f"{used:.2f} pm/px, from the lattice: the image says {1e3 * nominal:.2f}"
    return f"{used:.2f} pm/px, from the image's calibration"


def other_warnings(metadata: typing.Mapping[str, typing.Any]) -> tuple[str, ...]:
    """The core's warnings, without the one that `calibration_statement` says as well."""
    from stemdl_core.calibration import beyond_pixel_size

    return beyond_pixel_size(metadata.get("warnings", ()), metadata.get("pixel_size_source"))


def overlay_calibrations(
    calibrations: typing.Sequence[Calibration.Calibration],
    zoom: float,
    metadata: typing.Mapping[str, typing.Any],
) -> list[Calibration.Calibration]:
    """Calibrations for a picture of the image that is `zoom` times as large.

    Both start at the outer edge of the first pixel, so that the offset stays. An image without calibration
    gets the one that the lattice gave.
    """
    from nion.data import Calibration

    if any(UNITS_NM.get((c.units or "").strip()) is None for c in calibrations):
        nm = float(metadata["pixel_size_nm"]) / zoom
        return [Calibration.Calibration(0.0, nm, "nm") for _ in calibrations]
    return [Calibration.Calibration(c.offset, c.scale / zoom, c.units) for c in calibrations]
