"""Point defects that a single frame cannot tell from the faintest or brightest of its atoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stemdl_core.analysis import Defects
from stemdl_core.bench_movies import oracle_analysis, score_movie
from stemdl_core.hostframe import host_lattice
from stemdl_core.materials import get_material
from stemdl_core.observations import observe
from stemdl_core.simulate.movie import simulate_movie
from stemdl_core.site_field import Levels, on_one_site, site_field
from stemdl_core.tracking import Tracker

FRAMES, SIGMA = 30, 0.16


def few_counts(movie, index, rng, *, seen):
    """A frame in which columns are only known to 16 %, and few defects are recognised."""
    analysis = oracle_analysis(movie, index, rng=rng)
    sites = analysis.sites
    value = np.where(sites.species == "W", 1.6, np.where(sites.species == "Se", 1.3, 1.0))
    for defect in analysis.defects:
        if defect.name == "V_Se":
            at = np.linalg.norm(sites.yx_px - np.array(defect.center_px), axis=1).argmin()
            value[at] *= 0.5
    value = value + SIGMA * rng.normal(size=len(sites))
    species = np.where((sites.species == "W") & (rng.random(len(sites)) > seen), "Mo", sites.species)
    sites = sites.replace(species=species, intensity=value, intensity_sigma=np.full(len(sites), SIGMA))
    named = [d for d in analysis.defects if d.name != "W_Mo" or "W" in species[list(d.site_ids)]]
    shown = [d for d in named if rng.random() < seen]
    return replace(analysis, sites=sites, defects=Defects(tuple(shown)))


@pytest.mark.parametrize("seed", [1, 2])
def test_defects_of_mx2_are_followed_through_frames_that_do_not_show_them(seed):
    movie = simulate_movie("mx2-vacancy", frames=FRAMES, rng=np.random.default_rng(seed), half_way=0)
    rng, tracker = np.random.default_rng([seed, 1]), Tracker()
    for index in range(len(movie)):
        # Registered images tell the drift of such movies, while no single defect is certain.
        tracker.update(few_counts(movie, index, rng, seen=0.35), drift_nm=movie.drift_nm[index])
    score = score_movie(movie, tracker.tracks()).row()
    assert score["idf1"] > 0.9
    assert score["recall"] > 0.7
    assert score["precision"] > 0.7
    assert score["drift_rms_pm"] < 15
    assert score["branch_jumps"] == 0


def test_names_that_are_one_site():
    mose2, graphene = get_material("MoSe2"), get_material("graphene")
    assert all(on_one_site(n, mose2) for n in ("V_Se", "W_Mo"))
    assert not any(on_one_site(n, mose2) for n in ("V_Se2", "vac_Mo", "unknown", None))
    assert [on_one_site(n, graphene) for n in ("SV", "DV(5-8-5)", "Si-C3")] == [True, False, False]


def test_levels_follow_what_is_seen():
    levels = Levels(get_material("MoSe2"))
    before = levels.of("W_Mo")
    for _ in range(50):
        levels.learn("W_Mo", 1.5)
    assert before > 1.5
    assert levels.of("W_Mo") == pytest.approx(1.5, abs=0.05)
    assert levels.of("V_Se") == pytest.approx(0.5, abs=0.1)


def test_a_lattice_site_without_an_atom_speaks_for_a_vacancy(rng):
    movie = simulate_movie("vacancy", frames=4, rate=0.0, rng=np.random.default_rng(0))
    analysis = oracle_analysis(movie, 0, rng=rng)
    sites = analysis.sites
    even = sites.replace(intensity=np.ones(len(sites)), intensity_sigma=np.full(len(sites), 0.1))
    analysis = replace(analysis, sites=even)
    vacancy = next(o for o in observe(analysis) if o.name == "SV")
    field = site_field(analysis, host_lattice(analysis), Levels(get_material("graphene")))
    assert field.at("SV", vacancy.yx_nm) > 3
    others = field.evidence("SV")[np.linalg.norm(field.yx_nm - vacancy.yx_nm, axis=1) > 0.1]
    assert np.nanmax(others) < 0
