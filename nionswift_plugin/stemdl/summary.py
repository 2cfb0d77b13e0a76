"""What was found, in words: from the metadata of a table item to the lines of the panel."""

from __future__ import annotations

import gettext
import typing

_ = gettext.gettext


def headline(metadata: typing.Mapping[str, typing.Any]) -> str:
    """How many atoms of each element, for instance "612 C, 1 Si"; host first."""
    counts = sorted(metadata.get("counts", {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{n} {symbol}" for symbol, n in counts) or _("No atoms found")


def defect_summary(metadata: typing.Mapping[str, typing.Any]) -> str:
    """Names of the defects with their numbers, for instance "2 Si-C3, 1 DV(5-8-5)"; most frequent first."""
    names: dict[str, int] = {}
    for defect in metadata.get("defects", ()):
        names[defect["name"]] = names.get(defect["name"], 0) + 1
    if not names:
        return _("No defects")
    return ", ".join(f"{n} {name}" for name, n in sorted(names.items(), key=lambda item: (-item[1], item[0])))


def alloy_summary(metadata: typing.Mapping[str, typing.Any]) -> str:
    """Fractions of foreign elements on their sublattice; empty where there are none."""
    return ", ".join(
        f"{symbol} {100 * f:.1f} \N{PLUS-MINUS SIGN} {100 * s:.1f} %"
        for symbol, (f, s) in metadata.get("alloy", {}).items()
    )


def defect_lines(metadata: typing.Mapping[str, typing.Any]) -> list[str]:
    """One line a defect: number, name, position."""
    step = float(metadata.get("pixel_size_nm", 0.0))
    return [
        f"{d['id']}   {d['name']}   ({d['center_px'][1] * step:.2f}, {d['center_px'][0] * step:.2f}) nm"
        for d in metadata.get("defects", ())
    ]


def chemistry(metadata: typing.Mapping[str, typing.Any], index: int | None) -> str:
    """Composition, bonds and angles of one defect."""
    defects = metadata.get("defects", ())
    if index is None or not 0 <= index < len(defects):
        return ""
    defect = defects[index]
    lines = [" ".join(f"{symbol}{n}" for symbol, n in defect["composition"].items())]
    if defect.get("missing_atoms"):
        lines[0] += _("   missing atoms: {}").format(defect["missing_atoms"])
    if "misorientation_deg" in defect:
        lines[0] += _("   grains turned by {:.1f}\N{DEGREE SIGN}").format(defect["misorientation_deg"])
    if defect.get("bonds"):
        lengths = sorted(length for _a, _b, length in defect["bonds"])
        lines.append(_("Bonds (pm): ") + _few([f"{length:.0f}" for length in lengths]))
    if defect.get("angles"):
        angles = sorted(angle for _a, _at, _b, angle in defect["angles"])
        lines.append(_("Angles (\N{DEGREE SIGN}): ") + _few([f"{angle:.0f}" for angle in angles]))
    if defect.get("probability", 1.0) < 0.995:
        lines.append(_("Probability of the name: {:.0f} %").format(100 * defect["probability"]))
    for name, probability in defect.get("alternatives", ()):
        lines.append(_("or {} ({:.0f} %)").format(name, 100 * probability))
    return "\n".join(lines)


def _few(values: list[str], most: int = 12) -> str:
    return ", ".join(values[:most]) + (", \N{HORIZONTAL ELLIPSIS}" if len(values) > most else "")
