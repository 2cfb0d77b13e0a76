"""Second look: what a network would have drawn wrongly is set right by the counts, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemdl_core import analyze_frame, load_model, moves, repair
from stemdl_core.arrangement import Counts, Place
from stemdl_core.calibration import PixelSize
from stemdl_core.defects import find_defects
from stemdl_core.graph import build_graph
from stemdl_core.local_lattice import continued_lattice
from stemdl_core.materials import get_material
from stemdl_core.rearrange import BESIDE, MARGIN_NM, Search, as_found
from stemdl_core.refine import refine_sites
from stemdl_core.repair import CORE_NM, reconsider, revised
from stemdl_core.repair import second_look as second_look_of_all
from stemdl_core.simulate import degrade
from stemdl_core.simulate.dataset import Conditions, simulate_frame
from stemdl_core.simulate.imaging import Probe
from stemdl_core.simulate.structures import add_defect, graphene
from stemdl_core.sites import Sites
from stemdl_core.springs import Springs

PIXEL_NM = 0.011
SIZE = PixelSize(PIXEL_NM, "metadata", PIXEL_NM)
GRAPHENE = get_material("graphene")


def picture(specimen, rng, dose=300.0):
    conditions = Conditions(pixel_nm=PIXEL_NM, detector=degrade.Detector(dose_e_per_atom=dose))
    return simulate_frame(specimen, conditions, rng)


def second_look(image, yx_px, species, unknown=(), near_nm=None):
    """Names of the defects when the sites at first are those given, and what was revised.

    The heights of the sites `unknown` are taken to be lost, as those of columns that fall onto one spot.
    """
    valid = np.ones(image.shape, dtype=bool)
    refined = refine_sites(image, yx_px[:, 0], yx_px[:, 1], pixel_size_nm=PIXEL_NM,
                           groups=(species != "C").astype(int))
    amplitude = refined.amplitude.copy()
    amplitude[list(unknown)] = np.nan
    refined = replace(refined, amplitude=amplitude)
    unit = np.nanmedian(refined.amplitude[species == "C"])
    sites = Sites.from_columns(y_px=refined.y_px, x_px=refined.x_px, species=species, sigma_pm=refined.sigma_pm,
                               score=np.full(len(species), 0.99), intensity=refined.amplitude / unit,
                               intensity_sigma=refined.amplitude_sigma / unit)
    graph = build_graph(sites, material=GRAPHENE, pixel_size=SIZE, shape=image.shape)
    revision = reconsider(image, valid, graph, refined, vacancies_px=np.zeros((0, 2)), near_nm=near_nm)
    if revision.changed:
        graph = build_graph(revised(image, valid, graph, revision), material=GRAPHENE, pixel_size=SIZE,
                            shape=image.shape)
    return [d.name for d in find_defects(graph, vacancies_px=revision.holes_px)], revision


def sheet(turn=11.0):
    return graphene(fov_nm=2.6, rotation_deg=turn)


def drawn_perfect(shape):
    """Sites of the perfect sheet, as a network that completes lattices would draw them."""
    yx = sheet().yx_nm / PIXEL_NM - 0.5
    yx = yx[((yx > 0) & (yx < np.array(shape) - 1)).all(axis=1)]
    return yx, np.full(len(yx), "C")


@pytest.mark.parametrize("kind", ["SV", "SW(55-77)"])
def test_a_defect_drawn_as_perfect_lattice_is_found_in_the_counts(kind, rng):
    s = picture(add_defect(sheet(), kind, (1.3, 1.3), rng=rng), rng)
    names, revision = second_look(s.frame.image, *drawn_perfect(s.frame.shape))
    assert names == [kind]
    assert revision.changed


def test_one_unknown_height_does_not_blind_the_second_look(rng):
    s = picture(add_defect(sheet(), "SV", (1.3, 1.3), rng=rng), rng)
    names, _ = second_look(s.frame.image, *drawn_perfect(s.frame.shape), unknown=[3])
    assert names == ["SV"]


def test_an_overlooked_atom_is_put_back(rng):
    s = picture(sheet(), rng, dose=150.0)
    yx, species = drawn_perfect(s.frame.shape)
    lost = int(np.argmin(np.hypot(*(yx - 118).T)))
    names, revision = second_look(s.frame.image, np.delete(yx, lost, axis=0), np.delete(species, lost))
    assert names == []
    gap = np.hypot(*(revision.added_px - yx[lost]).T) * PIXEL_NM
    assert np.min(gap) < 0.03
    assert revision.added_score[int(np.argmin(gap))] > 0.9


def test_perfect_lattice_is_left_alone(rng):
    for dose in (80.0, 400.0):
        s = picture(sheet(), rng, dose=dose)
        names, revision = second_look(s.frame.image, *drawn_perfect(s.frame.shape))
        assert names == []
        assert revision.keep.all()


def test_atoms_that_are_missing_together_are_found_missing_together():
    """One by one they would not be: each would have to pay for a defect of its own. The place may have to grow."""
    right = 0
    for kind in ("DV(5-8-5)", "V3", "V4"):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            s = picture(add_defect(sheet(), kind, (1.3, 1.3), rng=rng), rng, dose=400.0)
            right += second_look(s.frame.image, *drawn_perfect(s.frame.shape))[0] == [kind]
    assert right >= 13


def test_what_is_found_rightly_stays(rng):
    for kind in ("Si-C4", "DV(5-8-5)"):
        s = picture(add_defect(sheet(), kind, (1.3, 1.3), rng=rng), rng)
        names, _ = second_look(s.frame.image, s.sites.yx_px, s.sites.species)
        assert names == [kind]


def drawn_and_analysed(s, extra_px):
    """Names of the defects when the sites at first are the true ones and some carbon more."""
    yx = np.concatenate([s.sites.yx_px, np.reshape(extra_px, (-1, 2))])
    species = np.append(s.sites.species, np.full(len(yx) - len(s.sites), "C"))
    image, valid = s.frame.image, np.ones(s.frame.shape, bool)
    refined = refine_sites(image, yx[:, 0], yx[:, 1], pixel_size_nm=PIXEL_NM, groups=(species != "C").astype(int))
    unit = np.nanmedian(refined.amplitude[species == "C"])
    sites = Sites.from_columns(y_px=refined.y_px, x_px=refined.x_px, species=species, sigma_pm=refined.sigma_pm,
                               score=np.full(len(species), 0.94), intensity=refined.amplitude / unit,
                               intensity_sigma=refined.amplitude_sigma / unit)

    def bonded(sites):
        return build_graph(sites, material=GRAPHENE, pixel_size=SIZE, shape=image.shape)

    graph, holes, weighed = second_look_of_all(image, valid, bonded(sites), refined, vacancies_px=np.zeros((0, 2)),
                                               bonded=bonded)
    return sorted(d.name for d in find_defects(graph, vacancies_px=holes, weighed=weighed)), graph


def drawn_into_the_hole(s, away_nm):
    """A place so far from a silicon, where there is most room."""
    silicon = int(np.flatnonzero(s.sites.species == "Si")[0])
    ring = s.sites.yx_px[silicon] + away_nm / PIXEL_NM * np.array([[np.sin(t), np.cos(t)]
                                                                    for t in np.linspace(0, 6.2, 60)])
    room = np.hypot(*(ring[:, None] - np.delete(s.sites.yx_px, silicon, axis=0)).transpose(2, 0, 1)).min(axis=1)
    return ring[int(np.argmax(room))]


@pytest.mark.parametrize("kind", ["Si2C5", "Si3C6"])
def test_carbon_drawn_on_the_foot_of_silicon_is_taken_out(kind):
    right = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        s = picture(add_defect(sheet(), kind, (1.3, 1.3), rng=rng), rng, dose=150.0)
        right += drawn_and_analysed(s, drawn_into_the_hole(s, 0.15))[0] == [s.defects[0].name]
    assert right == 5


def test_half_an_atom_beside_silicon_is_tried_without_whatever_is_foreseen(rng):
    s = picture(add_defect(sheet(), "Si-C3+V", (1.3, 1.3), rng=rng), rng, dose=150.0)
    _, graph = drawn_and_analysed(s, [])
    counts, unit = None, np.full(len(graph.sites), 1.0)
    near = int(np.argsort(np.hypot(*(graph.yx_nm - graph.yx_nm[graph.foreign][0]).T))[1])
    far = int(np.argmax(np.hypot(*(graph.yx_nm - graph.yx_nm[graph.foreign][0]).T)))
    for height, tried in ((0.4, True), (1.0, False)):
        intensity = graph.sites.intensity.copy()
        intensity[[near, far]] = height
        sites = graph.sites.replace(intensity=intensity, intensity_sigma=np.full(len(intensity), 0.1))
        changes = moves.Moves(replace(graph, sites=sites), counts, Place(graph.yx_nm[near], CORE_NM), host_nm=0.142,
                              unit=1.0, oddness=lambda atoms: 0.0)
        assert changes._squeezed(as_found(graph, unit), np.array([near, far])).tolist() == [tried, False]


def test_only_the_places_asked_for_are_looked_at(rng):
    s = picture(add_defect(sheet(), "SV", (1.3, 1.3), rng=rng), rng)
    yx, species = drawn_perfect(s.frame.shape)
    center = SIZE.to_nm(s.centers_px[0])
    for near, found in ((center, True), (center + 0.7, False)):
        _, revision = second_look(s.frame.image, yx, species, near_nm=near[None])
        assert revision.changed == found


def test_what_had_to_wait_is_looked_at_once_more_where_something_changed(rng, monkeypatch):
    s = picture(sheet(), rng)
    yx, _ = drawn_perfect(s.frame.shape)
    for change, expected in ((True, [None, [[0.5, 0.7]]]), (False, [None])):
        asked = []

        def answer(image, valid, graph, refined, *, vacancies_px, near_nm=None, change=change, asked=asked):
            asked.append(None if near_nm is None else near_nm.tolist())
            keep = np.ones(len(graph.sites), bool)
            keep[len(keep) // 2] = not change
            return repair.Revision(keep, np.zeros((0, 2)), np.zeros(0), np.array([[1.0, float(len(asked))]]),
                                   np.full((1, 5), float(len(asked))), np.array([[0.5, 0.7]]))

        monkeypatch.setattr(repair, "reconsider", answer)
        _, graph = drawn_and_analysed(replace(s, sites=Sites.empty()), yx)
        assert asked == expected
        assert len(graph.sites) == len(yx) - change * len(expected)


@pytest.mark.parametrize(("kind", "away_nm"), [("Si-C4", 0.095), ("Si-C3+V", 0.105), ("Si-C3+V", 0.130)])
def test_no_carbon_is_drawn_into_the_hole_beside_silicon(kind, away_nm):
    """A network puts one there, 90 to 135 pm from the silicon; then the defect is read as a plain substitution."""
    right = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        s = picture(add_defect(sheet(), kind, (1.3, 1.3), rng=rng), rng, dose=200.0)
        yx, silicon = s.sites.yx_px, int(np.flatnonzero(s.sites.species == "Si")[0])
        # Where there is most room around it.
        ring = yx[silicon] + away_nm / PIXEL_NM * np.array([[np.sin(t), np.cos(t)] for t in np.linspace(0, 6.2, 60)])
        others = np.delete(yx, silicon, axis=0)
        room = np.hypot(*(ring[:, None] - others).transpose(2, 0, 1)).min(axis=1)
        drawn = np.concatenate([yx, ring[[int(np.argmax(room))]]])
        right += second_look(s.frame.image, drawn, np.append(s.sites.species, "C"))[0] == [kind]
    assert right == 4


def test_bonds_are_counted_as_they_are_in_the_end():
    """Take an atom away, and two others bond: what that costs may not depend on where the fit began."""
    yx = sheet().yx_nm
    middle = int(np.argmin(np.hypot(*(yx - 1.3).T)))
    yx = np.delete(yx, middle, axis=0)
    dopant, free = np.zeros(len(yx), bool), np.ones(len(yx), bool)
    one, other = np.argsort(np.hypot(*(yx - sheet().yx_nm[middle]).T))[:2]
    relaxed = yx.copy()
    for a, b in ((one, other), (other, one)):
        relaxed[a] += 0.035 * (yx[b] - yx[a]) / np.hypot(*(yx[b] - yx[a]))
    before = Springs(yx, dopant, free, 0.142)
    after = Springs(relaxed, dopant, free, 0.142)
    assert before.energy(yx) == pytest.approx(0.0, abs=0.1)
    assert after.energy(relaxed) > before.energy(relaxed) + 1.0
    # Bonds give: 15 pm longer costs less than 15 pm shorter.
    pair = Springs(np.array([[0.0, 0.0], [0.0, 0.142]]), dopant[:2], free[:2], 0.142)
    longer, shorter = (pair.energy(np.array([[0.0, 0.0], [0.0, d]])) for d in (0.157, 0.127))
    assert 0.0 < longer < 0.7 * shorter


@pytest.mark.parametrize("kind", ["SV", "DV(5-8-5)", "DV(555-777)", "SW(55-77)"])
def test_relaxed_defects_are_named_at_150_electrons(kind):
    """Each of these is taken for another, or for flat sheet, where its stretched bonds are held against it."""
    right = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        specimen = add_defect(graphene(fov_nm=3.0, rotation_deg=float(rng.uniform(0, 60))), kind, (1.5, 1.5), rng=rng)
        conditions = Conditions(pixel_nm=0.028, detector=degrade.Detector(dose_e_per_atom=150.0),
                                probe=Probe(sigma_nm=0.055))
        found = analyze_frame(simulate_frame(specimen, conditions, rng).frame, load_model("graphene"))
        right += [d.name for d in found.defects] == [kind]
    assert right >= 11


def test_too_few_sites_change_nothing():
    image = np.random.default_rng(1).normal(size=(60, 60))
    empty = build_graph(Sites.empty(), material=GRAPHENE, pixel_size=SIZE, shape=image.shape)
    refined = refine_sites(image, [], [], pixel_size_nm=PIXEL_NM)
    revision = reconsider(image, np.ones(image.shape, bool), empty, refined, vacancies_px=np.zeros((0, 2)))
    assert not revision.changed
    assert revision.added_px.shape == revision.holes_px.shape == (0, 2)


def test_the_perfect_lattice_has_an_atom_on_every_site(rng):
    """Also at the rim of a place, where an atom may be inside and its site outside."""
    s = picture(sheet(), rng, dose=40.0)
    yx, _ = drawn_perfect(s.frame.shape)
    refined = refine_sites(s.frame.image, yx[:, 0], yx[:, 1], pixel_size_nm=PIXEL_NM)
    sites = Sites.from_columns(y_px=refined.y_px, x_px=refined.x_px, sigma_pm=refined.sigma_pm,
                               species=np.full(len(yx), "C"), score=np.full(len(yx), 0.99),
                               intensity=refined.amplitude / np.median(refined.amplitude))
    graph = build_graph(sites, material=GRAPHENE, pixel_size=SIZE, shape=s.frame.image.shape)
    counts = Counts(s.frame.image, np.ones(s.frame.image.shape, bool), refined, refined.imaging, SIZE)
    checked = 0
    for center in graph.yx_nm[((graph.yx_nm > 0.6) & (graph.yx_nm < 2.0)).all(axis=1)]:
        search = Search(counts, graph, as_found(graph, refined.amplitude), Place(center, CORE_NM), 10)
        lattice = continued_lattice(graph, center, radius_nm=CORE_NM, margin_nm=MARGIN_NM)
        if lattice is not None:
            perfect = search._perfect(lattice)  # None where it is what was found
            assert perfect is None or len(perfect.yx_nm) == len(search.start.yx_nm)
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("seed", range(4))
def test_the_hole_beside_silicon_is_no_second_defect(seed):
    """A carbon drawn into it costs what a change beside silicon costs, wherever the ring of the hole goes."""
    rng = np.random.default_rng(seed)
    s = picture(add_defect(sheet(), "Si-C3+V", (1.3, 1.3), rng=rng), rng, dose=150.0)
    yx, silicon = s.sites.yx_px, int(np.flatnonzero(s.sites.species == "Si")[0])
    away = 0.127 / PIXEL_NM * np.array([[np.sin(t), np.cos(t)] for t in np.linspace(0, 6.2, 60)])
    room = np.hypot(*((yx[silicon] + away)[:, None] - np.delete(yx, silicon, axis=0)).transpose(2, 0, 1)).min(axis=1)
    yx = np.concatenate([yx, yx[[silicon]] + away[[int(np.argmax(room))]]])
    species = np.append(s.sites.species, "C")
    refined = refine_sites(s.frame.image, yx[:, 0], yx[:, 1], pixel_size_nm=PIXEL_NM, prior_sigma_pm=1.0,
                           groups=(species != "C").astype(int))
    sites = Sites.from_columns(y_px=yx[:, 0], x_px=yx[:, 1], sigma_pm=refined.sigma_pm, species=species,
                               score=np.full(len(yx), 0.99), intensity=np.where(species == "C", 1.0, 4.0))
    graph = build_graph(sites, material=GRAPHENE, pixel_size=SIZE, shape=s.frame.image.shape)
    counts = Counts(s.frame.image, np.ones(s.frame.image.shape, bool), refined, refined.imaging, SIZE)
    search = Search(counts, graph, as_found(graph, np.where(species == "C", 1.0, 4.0)),
                    Place(graph.yx_nm[-1], CORE_NM), 10)
    drawn = int(np.flatnonzero(search.start.origin == len(yx) - 1)[0])
    assert search._oddness(search.start.without([drawn])) <= BESIDE
    assert search._moves._squeezed(search.start, np.array([drawn])).all()
