"""Models on disk: safetensors for the weights, JSON for the card, a checksum that ties them together.

Weights are data from strangers, so nothing here unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ._paths import weights_folders
from .errors import ModelError
from .materials import Material, get_material
from .network import build_network, fuse

CARD_NAME, WEIGHTS_NAME = "model.json", "model.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What a model is, on what scale its thresholds act, and how it was made.

    Attributes
    ----------
    name : str
        Name of the model.
    materials : tuple of str
        Host materials it was trained for; the first is the default.
    architecture, filters, classes
        The network.
    pixel_size_nm : float
        Pixel size of the network's input [nm].
    radius_nm : float
        Radius of the discs that stood for atoms in training [nm].
    dopant : str
        Default element of the class of bright foreign atoms; empty where there is no such class.
    thresholds : mapping
        ``site``: smallest response of the Laplacian of Gaussian to the probability map, 1 being the response to a
        perfect disc; ``masked``: probability above which a pixel is not analysed.
    score_knots : ((float, ...), (float, ...))
        Response of the Laplacian of Gaussian, and the measured probability that such a site is true.
    recipe : mapping
        Everything needed to train it again, seed included.
    scores : mapping
        Measured on simulated frames that were not trained on.
    version : str
        Version of the model.
    parent : str
        Model that it was fine-tuned from, with its checksum; empty for one trained from scratch.
    sha256 : str
        Checksum of the weights file.
    """

    name: str
    materials: tuple[str, ...]
    architecture: str
    filters: tuple[int, ...]
    classes: tuple[str, ...]
    pixel_size_nm: float
    radius_nm: float
    dopant: str = ""
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"site": 0.4, "masked": 0.6})
    score_knots: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0, 1.0), (0.0, 1.0))
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    version: str = "1"
    parent: str = ""
    sha256: str = ""

    @property
    def material(self) -> Material:
        """The default host material."""
        return get_material(self.materials[0])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """A card from JSON data; unknown entries are refused, missing ones named."""
        names = {f.name for f in fields(cls)}
        unknown = set(data) - names
        if unknown:
            raise ModelError(f"model card has unknown entries {sorted(unknown)}: made by a newer stemdl?")
        values = dict(data)
        for name in ("materials", "filters", "classes"):
            if name not in values:
                raise ModelError(f"model card has no entry {name!r}")
            values[name] = tuple(values[name])
        if "score_knots" in values:
            values["score_knots"] = tuple(tuple(map(float, k)) for k in values["score_knots"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ModelError(f"model card is not complete: {error}") from None


@dataclass(frozen=True)
class Model:
    """A network ready for inference with its card."""

    card: ModelCard
    network: torch.nn.Module
    device: torch.device

    @property
    def name(self) -> str:
        """Name on the card."""
        return self.card.name

    def class_index(self, name: str) -> int | None:
        """Channel of a class in the probability maps; None if the model has no such class."""
        return self.card.classes.index(name) if name in self.card.classes else None


def save_model(folder: Path, network: torch.nn.Module, card: ModelCard) -> ModelCard:
    """Write weights and card; returns the card with its checksum. Both files appear whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS_NAME + ".part")
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, str(temporary))
    card = replace(card, sha256=_sha256(temporary))
    os.replace(temporary, folder / WEIGHTS_NAME)
    write_card(folder, card)
    return card


def write_card(folder: Path, card: ModelCard) -> None:
    """Write (or replace) the card of a saved model."""
    temporary = folder / (CARD_NAME + ".part")
    temporary.write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / CARD_NAME)


def read_card(folder: Path) -> ModelCard:
    """The card of the model in a folder."""
    try:
        data = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"no model in {folder}: {CARD_NAME} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"model card {folder / CARD_NAME} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"model card {folder / CARD_NAME} is not a JSON object")
    return ModelCard.from_dict(data)


def list_models() -> dict[str, Path]:
    """Models that can be named, with their folders; a name found in several places is taken from the first."""
    found: dict[str, Path] = {}
    for parent in weights_folders():
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if (folder / CARD_NAME).is_file():
                    found.setdefault(folder.name, folder)
    return found


def model_folder(name: str | Path) -> Path:
    """Folder of a model given by name or by path."""
    models = list_models()
    if str(name) in models:
        return models[str(name)]
    folder = Path(name)
    if (folder / CARD_NAME).is_file():
        return folder
    known = ", ".join(models) or "none installed"
    raise ModelError(f"unknown model {str(name)!r}: give a folder with {CARD_NAME} or one of: {known}")


def load_network(folder: Path) -> tuple[torch.nn.Module, ModelCard]:
    """The trainable network and the card of a saved model, checksum verified."""
    card = read_card(folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise ModelError(f"no weights in {folder}: {WEIGHTS_NAME} is missing")
    if _sha256(path) != card.sha256:
        raise ModelError(f"weights {path} do not match their card (sha256 differs): damaged or swapped file")
    network = build_network(card.architecture, len(card.classes), card.filters)
    try:
        network.load_state_dict(load_file(str(path)))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelError(f"weights {path} do not fit their card: {str(error).splitlines()[0]}") from None
    return network, card


def load_model(name: str | Path = "graphene", *, device: str = "cpu") -> Model:
    """Load a model for inference.

    Parameters
    ----------
    name : str or Path
        Name of an installed model (see `list_models`) or a model's folder.
    device : {'cpu', 'cuda', 'mps', 'auto'}
        Where to run it; 'auto' takes a GPU if there is one.

    Raises
    ------
    ModelError
        Unknown model, damaged files, or a device that is not there.
    """
    network, card = load_network(model_folder(name))
    where = resolve_device(device)
    network = fuse(network).to(where)
    if where.type == "cpu":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return Model(card, network, where)


def resolve_device(device: str) -> torch.device:
    """A torch device by name, 'auto' being the fastest that is there."""
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "auto":
        device = gpu
    if device not in ("cpu", "cuda", "mps"):
        raise ModelError(f"unknown device {device!r}: choose cpu, cuda, mps or auto")
    if device != "cpu" and device != gpu:
        raise ModelError(f"device {device!r} is not available here")
    return torch.device(device)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
