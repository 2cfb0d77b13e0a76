"""The panel: what it says about a result, and that it follows the selection and changes the parameters."""

from __future__ import annotations

import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from swift_support import (
    add_image,
    annotation,
    application,
    done,
    image_with,
    press,
    select,
    stand_in,
    swift,
    wait_for,
)

from nionswift_plugin.stemdl import actions, adapters, computations, engine, panel, summary
from stemdl_core.calibration import PixelSize
from stemdl_core.frames import Frame

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

program = application(analyze=stand_in)


@pytest.fixture
def metadata():
    frame = Frame(image_with((20, 30), (40, 10)), PixelSize(0.02, "metadata", 0.02))
    return adapters.table_of(stand_in(frame))[1]


def test_counts_and_names(metadata):
    assert summary.headline(metadata) == "6 C, 2 Si"
    assert summary.defect_summary(metadata) == "2 Si-C3"
    assert summary.defect_lines(metadata)[1] == "1   Si-C3   (0.20, 0.80) nm"
    assert summary.headline({"counts": {}}) == "No atoms found"
    assert summary.defect_summary({"defects": []}) == "No defects"
    assert summary.alloy_summary({"alloy": {"W": [0.183, 0.021]}}) == "W 18.3 ± 2.1 %"


def test_chemistry_of_a_defect(metadata):
    text = summary.chemistry(metadata, 0)
    assert text.split("\n")[:2] == ["Si1 C3", "Bonds (pm): 160, 160, 160"]
    assert summary.chemistry(metadata, None) == summary.chemistry(metadata, 9) == ""
    unsure = {
        "defects": [
            {
                "composition": {"C": 4},
                "missing_atoms": 2,
                "probability": 0.6,
                "alternatives": [["SV", 0.3]],
                "angles": [[0, 1, 2, 119.6]],
            }
        ]
    }
    assert summary.chemistry(unsure, 0).split("\n") == [
        "C4   missing atoms: 2",
        "Angles (°): 120",
        "Probability of the name: 60 %",
        "or SV (30 %)",
    ]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            {"pixel_size_nm": 0.015625, "pixel_size_source": "metadata"},
            "15.62 pm/px, from the image's calibration",
        ),
        (
            {"pixel_size_nm": 0.015, "pixel_size_source": "lattice"},
            "15.00 pm/px, from the lattice: the image has no calibration",
        ),
        (
            {"pixel_size_nm": 0.015, "nominal_pixel_size_nm": 0.016, "pixel_size_source": "lattice"},
            "15.00 pm/px, from the lattice: the image says 16.00",
        ),
    ],
)
def test_whose_pixel_size(entry, line):
    assert adapters.calibration_statement(entry) == line


def test_models_are_listed_without_the_network_code():
    assert computations.DEFAULT_MODEL in engine.models.names()


def test_panel_opens_and_closes_as_a_dock_panel():
    panel.register()
    try:
        with swift() as dc:
            dock = dc.find_dock_panel(panel.PANEL_ID)
            assert isinstance(dock, panel.AtomsPanel)
            assert dock.handler.atoms.state.value == "Select an image and press Annotate."
    finally:
        panel.unregister()


def test_button_and_display_of_the_result():
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            image = add_image(dc, image_with((20, 30), (40, 10)))
            handler.annotate_clicked(None)
            assert handler.atoms.state.value.startswith("Finding atoms")
            wait_for(done(dc), dc)
            dc.periodic()
            assert handler.atoms.found.value == "6 C, 2 Si"
            assert handler.atoms.names.value == "2 Si-C3"
            assert handler.atoms.scale.value == "20.00 pm/px, from the image's calibration"
            assert len(handler.atoms.defects.value) == 2
            # Clicking a defect tells its chemistry and selects its mark.
            handler.atoms.defect_index.value = 1
            assert handler.atoms.detail.value.startswith("Si1 C3\nBonds (pm)")
            display_item = dc.document_model.get_display_item_for_data_item(image)
            (mark,) = display_item.selected_graphics
            assert mark.center.as_tuple() == pytest.approx((40.5 / 64, 10.5 / 64))
            # Another image has no result; going back shows this one's again.
            add_image(dc, image_with(), title="Other")
            assert handler.atoms.found.value == ""
            assert handler.atoms.defects.value == []
            select(dc, image)
            assert handler.atoms.found.value == "6 C, 2 Si"
            dc.document_model.remove_data_item(annotation(dc.document_model)[1])
            assert handler.atoms.found.value == ""
        finally:
            handler.close()


def test_choices_in_the_panel_change_the_result():
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            add_image(dc, image_with((20, 30)))
            press(dc)
            wait_for(done(dc), dc)
            _, _, computation = annotation(dc.document_model)
            values = {v.name: v for v in computation.variables}
            handler.atoms.draw_names.value = False
            assert values["names"].value is False
            dc.handle_undo()
            assert values["names"].value is True
            assert handler.atoms.draw_names.value is True
            actions.set_variable(dc, computation, values["model"], "mine")
            assert handler.atoms.models.value[handler.atoms.model_index.value] == "mine"
        finally:
            handler.close()


def test_error_is_said_in_the_panel():
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        try:
            image = add_image(dc, image_with((20, 30)))
            press(dc)
            wait_for(done(dc), dc)
            image.set_data(image_with() * 0)
            wait_for(lambda: "constant" in handler.atoms.state.value, dc)
        finally:
            handler.close()
