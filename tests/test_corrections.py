"""Corrections: what they accept, that files keep them, and what they do to sites, graph and names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfect_scenes import PIXEL, analysis_of

from stemdl_core.corrections import (
    Correction,
    apply_corrections,
    by_frame,
    correct_sites,
    nearest_defect,
    read_corrections,
    write_corrections,
)
from stemdl_core.errors import StemdlError
from stemdl_core.simulate.structures import add_defect, graphene
from stemdl_core.sites import Sites


@pytest.fixture
def silicon(rng):
    return analysis_of(add_defect(graphene(fov_nm=2.4), "Si-C3", (1.2, 1.2), rng=rng))


@pytest.mark.parametrize(("change", "words"), [
    ({"action": "paint"}, "unknown correction 'paint'"), ({"action": "add"}, "needs a species"),
    ({"action": "species", "species": "Xx"}, "unknown element"), ({"action": "move"}, "needs to_y_px"),
    ({"y_px": float("nan")}, "y_px"), ({"frame": -1}, "whole number"), ({"frame": 1.5}, "whole number"),
    ({"action": "rename", "name": " "}, "needs a name"),
])
def test_what_is_no_correction_is_refused(change, words):
    values = {"source": "a.npy", "frame": 0, "action": "delete", "y_px": 1.0, "x_px": 2.0, **change}
    with pytest.raises(StemdlError, match=words):
        Correction(**values)


text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12).filter(
    lambda s: s == s.strip())
places = st.floats(-1e4, 1e4, allow_nan=False)
corrections = st.one_of(
    st.builds(Correction, text, st.integers(0, 999), st.just("add"), places, places, species=st.just("Si"), who=text),
    st.builds(Correction, text, st.integers(0, 999), st.just("move"), places, places, places, places, when=text),
    st.builds(Correction, text, st.integers(0, 999), st.just("rename"), places, places,
              name=text.filter(bool), model=text),
)


@pytest.mark.parametrize("name", ["c.csv", "c.json"])
@given(items=st.lists(corrections, max_size=4))
def test_files_keep_corrections(tmp_path_factory, name, items):
    path = tmp_path_factory.mktemp("c") / name
    write_corrections(path, items)
    assert read_corrections(path) == items


@pytest.mark.parametrize(("name", "content", "words"), [
    ("c.csv", "a,b\n1,2\n", "no column 'action'"),
    ("c.csv", "source,frame,action,y_px,x_px\nf,0,delete,1,2\nf,0,delete,one,2\n", "correction 2"),
    ("c.csv", "source,frame,action,y_px,x_px\nf,0,delete,1,2,3,4\n", "more entries"),
    ("c.json", "{", "c.json"), ("c.json", "[1]", "not a list"), ("c.json", '[{"colour": 1}]', "unknown entries"),
])
def test_damaged_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(StemdlError, match=words):
        read_corrections(tmp_path / name)


def test_each_action_does_what_it_says():
    sites = Sites.from_columns(y_px=[10, 10, 10], x_px=[10, 24, 38], species=["C", "C", "C"], score=[0.5] * 3)
    done, unused = correct_sites(sites, [
        Correction("f", 0, "species", 10.5, 9, species="Si"), Correction("f", 0, "move", 10, 24, 12, 25),
        Correction("f", 0, "delete", 10, 37), Correction("f", 0, "add", 30, 30, species="N"),
        Correction("f", 0, "delete", 50, 50), Correction("f", 0, "add", 30.5, 30, species="C")], within_px=5)
    assert done.species.tolist() == ["Si", "C", "N"]
    assert done.yx_px.tolist() == [[10, 10], [12, 25], [30, 30]]
    assert done.score.tolist() == [1, 1, 1]
    assert [c.yx_px for c in unused] == [(50, 50), (30.5, 30)]


def test_a_relabelled_silicon_is_a_defect_of_another_name(silicon):
    defect = silicon.defects[0]
    assert defect.name == "Si-C3"
    at = silicon.sites.yx_px[next(i for i in defect.site_ids if silicon.sites.species[i] == "Si")]
    other = apply_corrections(silicon, [Correction("f", 0, "species", *at, species="P")])
    assert [d.name for d in other.defects] == ["P-C3"]
    assert [d.name for d in silicon.defects] == ["Si-C3"]


def test_an_atom_given_back_closes_the_hole():
    specimen = graphene(fov_nm=2.4)
    middle = int(np.argmin(np.hypot(*(specimen.yx_nm - 1.2).T)))
    holed = analysis_of(specimen, drop=[middle])
    assert [d.missing_atoms for d in holed.defects] == [1]
    at = specimen.yx_nm[middle] / PIXEL.nm - 0.5
    whole = apply_corrections(holed, [Correction("f", 0, "add", *at, species="C")])
    assert len(whole.defects) == 0
    assert whole.rings[6] > holed.rings[6]


def test_renaming_and_what_meets_nothing(silicon):
    center = silicon.defects[0].center_px
    named = apply_corrections(silicon, [Correction("f", 0, "rename", *center, name="my silicon"),
                                        Correction("f", 0, "rename", 5, 5, name="nothing"),
                                        Correction("f", 3, "delete", *center)])
    assert named.defects[0].name == "my silicon"
    assert len(named.warnings) == 1
    assert "changes nothing" in named.warnings[0]
    assert nearest_defect(silicon, (5.0, 5.0)) is None
    assert apply_corrections(silicon, [Correction("f", 3, "delete", *center)]) is silicon


def test_frames_are_kept_apart():
    items = [Correction("a", 0, "delete", 1, 1), Correction("b", 0, "delete", 1, 1), Correction("a", 0, "delete", 2, 2)]
    assert [(key, len(group)) for key, group in by_frame(items)] == [(("a", 0), 2), (("b", 0), 1)]
