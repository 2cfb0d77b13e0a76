"""Retraining: what is learned from, what is kept, what is turned down, and the whole loop in one go."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from perfect_scenes import analysis_of

from stemdl_core.cli import main
from stemdl_core.compare_models import Scores, judge_versions
from stemdl_core.corrections import Correction, write_corrections
from stemdl_core.errors import StemdlError
from stemdl_core.finetune import Schedule, fine_tune
from stemdl_core.imaging_conditions import Measured, measure_conditions
from stemdl_core.library import build_library, name_defects
from stemdl_core.library_store import load_library
from stemdl_core.network import build_network
from stemdl_core.pipeline import analyze_frame
from stemdl_core.recipes import RECIPES, training_example
from stemdl_core.retrain import next_version, retrain
from stemdl_core.retrain_data import corrected_crops, found_example, structures, supported
from stemdl_core.simulate.dataset import Conditions, Ranges, simulate_frame
from stemdl_core.simulate.degrade import Detector
from stemdl_core.simulate.structures import add_defect, graphene
from stemdl_core.targets import IGNORE
from stemdl_core.weights import ModelCard, load_model, model_folder, read_card, save_model

SMALL = replace(RECIPES["graphene"], crop_px=64, filters=(4, 4, 4), architecture="paper")


def small_model(folder):
    """An untrained network of a few hundred weights, with a recipe."""
    torch.manual_seed(1)
    card = ModelCard("tiny", ("graphene",), "paper", (4, 4, 4), SMALL.classes, 0.02, 0.025, "Si",
                     recipe=SMALL.to_dict())
    save_model(folder, build_network("paper", len(SMALL.classes), (4, 4, 4)), card)
    return folder


def picture(kind, rng, *, dose=200.0, side=256, fov_nm=2.8):
    specimen = graphene(fov_nm=fov_nm, rotation_deg=rng.uniform(0, 60))
    if kind:
        specimen = add_defect(specimen, kind, (fov_nm / 2, fov_nm / 2), rng=rng)
    conditions = Conditions(pixel_nm=fov_nm / side, detector=Detector(dose_e_per_atom=dose))
    return simulate_frame(specimen, conditions, rng, shape=(side, side))


def test_kept_only_if_better_and_nowhere_worse():
    before = Scores({"defects": 0.4}, {"F1": 0.99, "element": 0.99}, {"recall of x": 0.9}, {"F1": 100})
    good = replace(before, new={"defects": 0.97}, detail={"recall of x": 0.5})
    assert judge_versions(before, good, margin=0.01).kept
    worse = replace(good, old={"F1": 0.975, "element": 0.99})
    verdict = judge_versions(before, worse, margin=0.01)
    assert not verdict.kept
    assert "F1 falls from 0.9900 to 0.9750" in verdict.reason
    assert judge_versions(before, worse, margin=0.02).kept
    assert not judge_versions(before, before, margin=0.01).kept
    part = Scores({"defects": 0.9, "crops": 0.7}, before.old)
    assert not judge_versions(Scores({"defects": 0.4, "crops": 0.9}, before.old), part, margin=0.01).kept
    assert "before" in verdict.text()


def test_versions_are_counted():
    assert next_version("graphene", ["graphene", "mx2"]) == "graphene@2"
    assert next_version("graphene@2", ["graphene", "graphene@2", "graphene@5", "mx2@9"]) == "graphene@6"


def test_measured_conditions_are_those_of_the_simulation(rng):
    s = picture("Si-C3", rng, dose=150.0)
    analysis = analyze_frame(s.frame, load_model("graphene"))
    m = measure_conditions([(s.frame, analysis)])
    assert m.pixel_nm[1] == pytest.approx(s.conditions.pixel_nm, rel=0.01)
    assert m.sigma_nm[1] == pytest.approx(s.conditions.probe.sigma_nm, rel=0.1)
    assert m.dose_e_per_atom[1] == pytest.approx(150.0, rel=0.35)
    assert Measured.from_dict(json.loads(json.dumps(m.to_dict()))) == m
    ranges = m.ranges(Ranges())
    assert ranges.sigma_nm[0] < s.conditions.probe.sigma_nm < ranges.sigma_nm[1]
    assert ranges.dose_e_per_atom[0] < 150.0 < ranges.dose_e_per_atom[1]


def test_a_run_that_was_stopped_continues(tmp_path):
    parent = small_model(tmp_path / "tiny")
    images = np.random.default_rng(0).normal(size=(8, 64, 64)).astype(np.float16)
    sets = [(images, (images > 1).astype(np.uint8))]
    seen: list[int] = []

    def run(stop=None, identity="a"):
        seen.clear()
        return fine_tune(parent, sets, tmp_path / "work", Schedule(30, 5.0, batch=4, shares=(1.0,)), identity=identity,
                         class_weights={}, seed=3, progress=lambda done, of: seen.append(done), stop=stop)

    assert run(stop=lambda: len(seen) >= 12) is None
    assert seen == list(range(1, 13))
    assert run() is not None
    assert seen[0] == 13
    assert seen[-1] == 30
    run(identity="b")
    assert seen[0] == 1


def test_corrected_crops_hold_the_correction_and_claim_nothing_else(rng):
    s = picture("Si-C3", rng)
    analysis = analyze_frame(s.frame, load_model("graphene"))
    number = {name: k for k, name in enumerate(SMALL.classes)}
    silicon = analysis.sites.yx_px[analysis.sites.species == "Si"][0]
    carbon = analysis.sites.yx_px[np.argsort(np.hypot(*(analysis.sites.yx_px - silicon).T))[25]]
    crops = corrected_crops(s.frame, analysis, [Correction("f", 0, "delete", *carbon)], SMALL)
    assert crops.images.shape == crops.targets.shape == (1, 64, 64)
    target = crops.targets[0]
    middle = target[31:34, 31:34]
    assert (middle == number["vacancy"]).all()
    assert {number["lattice"], number["dopant"], 0} <= set(np.unique(target).tolist())
    # The sheet is 140 px wide on the network's grid: a crop at its border claims nothing beyond.
    edge = corrected_crops(s.frame, analysis, [Correction("f", 0, "add", 2.0, 2.0, species="C")], SMALL)
    if len(edge):
        assert (edge.targets[0][:20, :20] == IGNORE).mean() > 0.5
    assert supported(s.frame, analysis, [
        Correction("f", 0, "delete", *carbon), Correction("f", 0, "species", *carbon, species="Si"),
        Correction("f", 0, "species", *silicon, species="P"), Correction("f", 0, "rename", *silicon, name="x"),
        Correction("f", 0, "move", *carbon, *(carbon + (0.0, 9.0)))]) == [False, False, True, False]


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def test_a_poisoned_set_of_corrections_is_turned_down(tmp_path, rng):
    s = picture("Si-C3", rng)
    parent = model_folder("graphene")
    before, analysis = digest(parent), analyze_frame(s.frame, load_model("graphene"))
    inner = np.flatnonzero(~analysis.sites.edge & (analysis.sites.species == "C"))[::7]
    poison = [Correction("f", 0, "species", *analysis.sites.yx_px[i], species="Si", who="mallory") for i in inner]
    outcome = retrain(parent, tmp_path / "graphene@2", corrections=poison, frame_of=lambda f, k: (s.frame, analysis))
    assert outcome.folder is None
    assert outcome.verdict.reason.startswith("the images contradict ")
    assert outcome.verdict.rows[0]["before"] < 0.2
    assert not (tmp_path / "graphene@2").exists()
    assert digest(parent) == before


def test_nothing_to_learn_from_is_said(tmp_path, rng):
    parent = small_model(tmp_path / "tiny")
    library = build_library([("a", None, analysis_of(graphene(fov_nm=2.0)))])
    for given in ({}, {"library": library}, {"corrections": [Correction("f", 0, "rename", 1, 1, name="x")]}):
        with pytest.raises(StemdlError, match="nothing to learn from"):
            retrain(parent, tmp_path / "new", **given)
    with pytest.raises(StemdlError, match="exists already"):
        retrain(parent, parent)
    with pytest.raises(StemdlError, match="not at hand"):
        retrain(parent, tmp_path / "new", corrections=[Correction("f", 0, "delete", 1, 1)])


def test_training_images_show_the_found_structure(rng):
    analysis = analysis_of(add_defect(graphene(fov_nm=2.8), "Si4C6", (1.4, 1.4), rng=rng))
    library = build_library([("a", None, analysis)]).named("K1", "tetramer")
    found, notes = structures(library)
    assert (found[0].name, notes) == ("tetramer", [])
    number = SMALL.classes.index("dopant")
    several = [found_example(found, SMALL, None, 1, k) for k in range(3)]
    assert all(image.shape == (64, 64) for image, _ in several)
    assert sum((target == number).sum() for _, target in several) > 20
    with pytest.raises(StemdlError, match="no structure to teach"):
        structures(build_library([("a", None, analysis)]))


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """The shipped model after it was taught that silicon is nothing: it holds what it does not know for a hole."""
    folder = tmp_path_factory.mktemp("models") / "blind"
    parent = model_folder("graphene")
    card = read_card(parent)
    recipe = replace(RECIPES["graphene"], crop_px=64)
    dopant = recipe.classes.index("dopant")
    pairs = [training_example(replace(recipe, kinds=(("X3C6", 2.0), ("X-C3", 1.0))), 30_000_000 + k) for k in range(24)]
    images = np.stack([p[0] for p in pairs]).astype(np.float16)
    targets = np.stack([np.where(p[1] == dopant, 0, p[1]) for p in pairs]).astype(np.uint8)
    schedule = Schedule(60, 5.0, learning_rate=3e-3, shares=(1.0,))
    network = fine_tune(parent, [(images, targets)], folder.with_name("work"), schedule, identity="blind",
                        class_weights={}, seed=1)
    save_model(folder, network, replace(card, name="blind", recipe=recipe.to_dict()))
    return folder


def what_a_person_says(name, simulated, analysis):
    """Around the silicon, every atom in its place and of its element, and none where none is."""
    true, found, species = simulated.sites.yx_px, analysis.sites.yx_px, simulated.sites.species
    middle = true[species == "Si"].mean(axis=0)
    said = []
    for at in found[np.hypot(*(found - middle).T) < 55.0]:
        if np.hypot(*(true - at).T).min() > 4.0:
            said.append(Correction(name, 0, "delete", *map(float, at), who="ada"))
    for at, symbol in zip(true, species.tolist()):
        away = np.hypot(*(found - at).T)
        if np.hypot(*(at - middle)) > 55.0:
            continue
        if away.min() > 4.0:
            said.append(Correction(name, 0, "add", *map(float, at), species=symbol, who="ada"))
        elif analysis.sites.species[away.argmin()] != symbol:
            said.append(Correction(name, 0, "species", *map(float, found[away.argmin()]), species=symbol, who="ada"))
    return said


@pytest.mark.slow
def test_the_whole_loop(tmp_path, blind, capsys, monkeypatch):
    """Not known -> shown by a person in four frames -> a class with a name -> retrained -> found in frames to come."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMDL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("STEMDL_LIBRARY", str(tmp_path / "own"))
    rng = np.random.default_rng(7)
    frames = [picture("Si3C6", rng) for _ in range(6)]
    for k, s in enumerate(frames):
        np.save(f"image{k}.npy", s.frame.image)
    model = load_model(blind)
    fov = ["--fov-nm", "2.8"]

    def recall(network, library=None):
        found = [analyze_frame(s.frame, network) for s in frames[4:]]
        named = found if library is None else [name_defects(a, library) for a in found]
        return np.mean([any(d.name in ("rotor", "Si3C6") for d in a.defects) for a in named])

    assert recall(model) < 0.5

    # A person says where the silicon is, in four frames.
    corrections = [c for k, s in enumerate(frames[:4])
                   for c in what_a_person_says(f"image{k}.npy", s, analyze_frame(s.frame, model))]
    write_corrections("corrections.csv", corrections)

    files = [f"image{k}.npy" for k in range(4)]
    build = ["library", "build", *files, "--corrections", "corrections.csv", "--model", str(blind), *fov]
    assert main([*build, "--quiet"]) == 0
    library = load_library(tmp_path / "own")
    trimer = next(c for c in library.classes if dict(c.chemistry) == {"Si": 3})
    assert trimer.count >= 3
    assert (tmp_path / "own" / f"{trimer.id}.png").stat().st_size > 5000
    assert main(["library", "name", trimer.id, "rotor"]) == 0
    assert main(["library", "list"]) == 0
    assert "rotor" in capsys.readouterr().out

    arguments = ["retrain", "--model", str(blind), "--corrections", "corrections.csv", "--frames", "40",
                 "--test-frames", "5"]
    assert main([*arguments, "--images", *files]) == 0
    text = capsys.readouterr().out
    assert "kept " in text, text
    card = read_card(tmp_path / "models" / "blind@2")
    assert card.parent.startswith("blind:")
    assert card.scores["retrained"]["structures"][0]["name"] == "rotor"
    assert card.scores["retrained"]["corrected_by"] == ["ada"]
    assert main(["models", "--versions"]) == 0
    assert f"from blind; rotor; {len(corrections)} corrections by ada" in capsys.readouterr().out

    better = load_model("blind@2")
    assert recall(better, load_library(tmp_path / "own")) == 1.0
    # The user's own library is used without being named.
    assert main(["annotate", "image5.npy", "--model", "blind@2", *fov, "--out", "out", "--quiet"]) == 0
    names = [d["name"] for d in json.loads((tmp_path / "out" / "analysis.json").read_text())["defects"]]
    assert "rotor" in names
