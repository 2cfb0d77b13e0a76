"""Networks, training, resuming, and models on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from stemdl_core.errors import ModelError
from stemdl_core.infer import OVERLAP_PX, probability_maps
from stemdl_core.network import ARCHITECTURES, DEFAULT_FILTERS, PaperNet, build_network, count_weights, fuse
from stemdl_core.recipes import RECIPES, Recipe, training_example
from stemdl_core.train import read_log, simulate_set, train
from stemdl_core.weights import (
    CARD_NAME,
    WEIGHTS_NAME,
    ModelCard,
    list_models,
    load_model,
    load_network,
    read_card,
    save_model,
)

TINY = Recipe("tiny", ("graphene",), ("background", "lattice", "dopant", "vacancy", "masked"), filters=(4, 8),
              crop_px=32, n_train=16, n_validation=4, epochs=3, batch=8, dopant="Si")


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_output_has_the_size_of_the_input(name):
    network = build_network(name, 5, DEFAULT_FILTERS[name]).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 1, 64, 96)).shape == (2, 5, 64, 96)
    assert count_weights(network) < 1_000_000


def test_the_paper_network_is_the_papers():
    network = PaperNet(3)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    encoder = [c.out_channels for c in (network.down1, network.down2[0], network.down2[2], network.bottom[0],
                                        network.bottom[2])]
    assert encoder == [8, 16, 16, 32, 32]
    assert {c.kernel_size for c in convolutions} == {(3, 3), (1, 1)}
    assert network.last.out_channels == network.classify.out_channels == 3
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())


def test_unknown_architecture_is_named():
    with pytest.raises(ModelError, match=r"'resnet'.*paper, unet"):
        build_network("resnet", 3, (8,))


def test_folding_normalisation_changes_nothing():
    torch.manual_seed(0)
    network = build_network("unet", 3, (4, 8)).train()
    for _ in range(3):
        network(torch.randn(2, 1, 32, 32))
    network.eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        before = network(x)
        after = fuse(network)(x)
    assert torch.allclose(before, after, atol=1e-4)


def test_examples_depend_on_their_number_alone():
    image, target = training_example(TINY, 3)
    again, _ = training_example(TINY, 3)
    assert np.array_equal(image, again)
    assert image.shape == target.shape == (32, 32)
    together, _ = simulate_set(TINY, 2, 3, workers=1)
    assert np.array_equal(together[1], image.astype(np.float16))


@pytest.mark.slow
def test_training_learns_and_resumes_to_the_same_weights(tmp_path):
    logs = list(train(TINY, tmp_path / "whole", workers=1))
    assert [log.epoch for log in logs] == [0, 1, 2]
    assert logs[-1].train_loss < logs[0].train_loss
    stopped = train(TINY, tmp_path / "parts", workers=1)
    next(stopped)
    stopped.close()
    rest = list(train(TINY, tmp_path / "parts", resume=True, workers=1))
    assert [log.epoch for log in rest] == [1, 2]
    assert rest[-1].validation_loss == pytest.approx(logs[-1].validation_loss, rel=1e-4)
    assert len(read_log(tmp_path / "parts")) == 3
    with pytest.raises(ModelError, match="another recipe"):
        next(train(replace(TINY, seed=1), tmp_path / "parts", resume=True, workers=1))
    tuned = list(train(replace(TINY, epochs=1), tmp_path / "tuned", start_from=tmp_path / "whole", workers=1))
    assert tuned[0].train_loss < logs[0].train_loss
    assert read_card(tmp_path / "tuned").parent.startswith("tiny:")


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(ModelError, match="nothing to resume"):
        next(train(TINY, tmp_path, resume=True, workers=1))


def make_model(folder) -> ModelCard:
    torch.manual_seed(3)
    card = ModelCard("tiny", ("graphene",), "unet", (4, 8), ("background", "lattice"), 0.02, 0.03)
    return save_model(folder, build_network("unet", 2, (4, 8)), card)


def test_models_survive_the_disk(tmp_path):
    card = make_model(tmp_path)
    _, loaded = load_network(tmp_path)
    assert loaded == card
    assert len(card.sha256) == 64
    model = load_model(tmp_path)
    x = np.random.default_rng(0).standard_normal((45, 51)).astype(np.float32)
    maps = probability_maps(model, x)
    assert maps.shape == (2, 45, 51)
    assert np.allclose(maps.sum(axis=0), 1, atol=1e-5)
    assert not any(p.suffix == ".part" for p in tmp_path.iterdir())


def test_damaged_or_swapped_weights_are_refused(tmp_path):
    make_model(tmp_path)
    data = bytearray((tmp_path / WEIGHTS_NAME).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS_NAME).write_bytes(data)
    with pytest.raises(ModelError, match="sha256"):
        load_model(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("filters"), "filters"),
    (lambda d: d.update(surprise=1), "surprise"),
    (lambda d: d.update(architecture="resnet"), "resnet"),
    (lambda d: d.update(filters=[4, 16]), "do not fit"),
])
def test_wrong_cards_are_refused(tmp_path, change, message):
    make_model(tmp_path)
    card = json.loads((tmp_path / CARD_NAME).read_text())
    change(card)
    (tmp_path / CARD_NAME).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


def test_unknown_models_and_devices_are_named(tmp_path):
    with pytest.raises(ModelError, match="unknown model 'nonsense'"):
        load_model("nonsense")
    make_model(tmp_path)
    with pytest.raises(ModelError, match="unknown device 'tpu'"):
        load_model(tmp_path, device="tpu")


def test_large_images_are_tiled_without_seams(tmp_path, monkeypatch):
    make_model(tmp_path)
    model = load_model(tmp_path)
    x = np.random.default_rng(1).standard_normal((500, 420)).astype(np.float32)
    whole = probability_maps(model, x)
    monkeypatch.setattr("stemdl_core.infer.TILE_PX", 2 * OVERLAP_PX + 128)
    tiled = probability_maps(model, x)
    assert np.abs(whole - tiled).max() < 1e-4


def test_shipped_models_are_found_small_and_complete():
    models = list_models()
    assert "graphene" in models
    for name, folder in models.items():
        card = read_card(folder)
        assert card.name == name
        assert (folder / WEIGHTS_NAME).stat().st_size < 5e6
        recipe = Recipe.from_dict(json.loads(json.dumps(dict(card.recipe))))
        assert recipe.architecture == card.architecture
        assert recipe == RECIPES[name]
        assert card.scores
        load_model(name)
