"""Recipes: everything that determines a trained model, and the frames that it is trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError
from .materials import get_material
from .network import DEFAULT_FILTERS
from .simulate.conditions import Ranges, draw_conditions
from .simulate.dataset import simulate_frame, training_pair
from .simulate.stm import random_stm
from .simulate.structures import random_specimen


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a trained model.

    Attributes
    ----------
    name : str
        Name of the model.
    materials : tuple of str
        Host materials, drawn with equal probability.
    architecture, filters, classes
        The network; the first class is the background.
    pixel_size_nm, radius_nm, vacancy_radius_nm : float
        Grid of the network and radii of the discs that stand for atoms and missing atoms [nm].
    crop_px : int
        Side of the training images on the network's grid.
    n_train, n_validation : int
        Number of simulated frames.
    epochs, batch, learning_rate, patience
        Of the loop; it stops early after `patience` epochs without a better validation loss.
    ranges : Ranges
        Imaging conditions of the training set.
    dopant : str
        Default element of the dopant class.
    class_weights : tuple of (str, float)
        Weight of rare classes in the loss; 1 for the others.
    seed : int
        Of everything random.
    kinds : tuple of (str, float)
        Weights of the kinds of defects in the specimens; empty: those of `random_specimen`.
    unrelaxed : float
        Part of the defects whose surroundings are not, or not wholly, relaxed.
    imaging : str
        'stem', or 'stm' for scanning tunnelling microscopy, whose conditions are drawn by `simulate.stm`.
    labels_move : bool
        Whether labels are where the disturbed scan shows the columns, as they should be.
    """

    name: str
    materials: tuple[str, ...]
    classes: tuple[str, ...]
    architecture: str = "unet"
    filters: tuple[int, ...] = ()
    pixel_size_nm: float = 0.020
    radius_nm: float = 0.025
    vacancy_radius_nm: float = 0.045
    crop_px: int = 128
    n_train: int = 6000
    n_validation: int = 300
    epochs: int = 14
    batch: int = 16
    learning_rate: float = 3e-3
    patience: int = 6
    ranges: Ranges = field(default_factory=Ranges)
    dopant: str = ""
    class_weights: tuple[tuple[str, float], ...] = (("dopant", 4.0), ("vacancy", 2.0))
    seed: int = 12742
    kinds: tuple[tuple[str, float], ...] = ()
    unrelaxed: float = 0.0
    imaging: str = "stem"
    labels_move: bool = True

    def __post_init__(self) -> None:
        if self.imaging not in ("stem", "stm"):
            raise ModelError(f"imaging of a recipe is 'stem' or 'stm', not {self.imaging!r}")
        if not self.filters:
            object.__setattr__(self, "filters", DEFAULT_FILTERS[self.architecture])

    @property
    def host(self) -> tuple[str, ...]:
        """Species that belong to the lattice class."""
        return tuple({s: None for m in self.materials for s in get_material(m).species})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the model card."""
        data = asdict(self)
        # Entries that came later are left out where they say nothing, so that older cards hold the same recipe.
        for name, nothing in (("kinds", ()), ("unrelaxed", 0.0), ("imaging", "stem"), ("labels_move", True)):
            if data[name] == nothing:
                del data[name]
        for name, nothing in (("pair_coherence", 0.0), ("hiding", 1.0)):
            if data["ranges"][name] == nothing:
                del data["ranges"][name]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """A recipe from a model card or a JSON file."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise ModelError(f"recipe has unknown entries {sorted(unknown)}")
        values = dict(data)
        for name in ("materials", "classes", "filters"):
            values[name] = tuple(values.get(name, ()))
        for name in ("class_weights", "kinds"):
            if name in values:
                values[name] = tuple((str(n), float(w)) for n, w in values[name])
        if "ranges" in values:
            ranges: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["ranges"].items()}
            values["ranges"] = Ranges(**ranges)
        return cls(**values)


#: Foreign atoms besides the recipe's own that the dopant class has to know.
OTHER_DOPANTS = ("P", "Al", "Ge")
GRAPHENE_CLASSES = ("background", "lattice", "dopant", "vacancy", "masked")
MX2_CLASSES = ("background", "lattice", "vacancy", "masked")
#: Filters of the shipped networks: five levels, so that the network sees the phase of the lattice over 3 nm.
FILTERS = (16, 32, 64, 96, 128)
#: Defects of graphene's training set: single silicon atoms are easy; vacancies and turned bonds are hard and would be
#: rare.
GRAPHENE_KINDS = (("X-C3", 5.0), ("X-C4", 4.0), ("X-C3+V", 2.5), ("X2C4", 0.8), ("X2C5", 2.2), ("X2C6", 0.8),
                  ("X3C6", 2.5), ("X4C6", 1.6), ("SV", 5.0), ("DV(5-8-5)", 4.0), ("DV(555-777)", 3.5), ("V3", 2.0),
                  ("V4", 1.5), ("V5", 0.7), ("V6", 1.0), ("SW(55-77)", 5.0), ("N-C3", 1.0), ("B-C3", 0.7),
                  ("GB(5-7)", 6.0))
#: The recipes of the shipped models.
RECIPES: dict[str, Recipe] = {r.name: r for r in (
    Recipe("graphene", ("graphene",), GRAPHENE_CLASSES, filters=FILTERS, dopant="Si", n_train=9000, epochs=16,
           kinds=GRAPHENE_KINDS, unrelaxed=0.2),
    # As in the paper: plain cross-entropy. Its coarse decoder does better with the smaller discs.
    Recipe("graphene-paper", ("graphene",), GRAPHENE_CLASSES, architecture="paper", dopant="Si", radius_nm=0.022,
           epochs=30, class_weights=()),
    # Exponents as low as low-angle detectors have them, on which chalcogen pairs scatter coherently.
    Recipe("mx2", ("MoSe2", "MoS2", "WS2", "WSe2"), MX2_CLASSES, filters=FILTERS, pixel_size_nm=0.025, radius_nm=0.032,
           vacancy_radius_nm=0.050, n_train=5000, ranges=Ranges(pixel_nm=(0.006, 0.045), scale_error=0.025,
                                                                exponent=(0.9, 2.0), pair_coherence=0.65)),
)}


def training_example(recipe: Recipe, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Frame number `index` of a recipe's training set: (image, class map), both (crop_px, crop_px)."""
    rng = np.random.default_rng([recipe.seed, index])
    material = recipe.materials[int(rng.integers(len(recipe.materials)))]
    fov = recipe.crop_px * recipe.pixel_size_nm
    if recipe.imaging == "stm":
        simulated = random_stm(fov, rng, pixel_nm=recipe.ranges.pixel_nm, dopant=recipe.dopant or "N",
                               kinds=dict(recipe.kinds), material=material)
    else:
        conditions = draw_conditions(rng, recipe.ranges)
        side = max(int(round(fov / conditions.pixel_nm)), 24)
        conditions = replace(conditions, pixel_nm=fov / side)
        # Mostly the default dopant, sometimes others: its class means 'brighter than the host', not one element.
        dopant = recipe.dopant if not recipe.dopant or rng.random() < 0.85 else str(rng.choice(OTHER_DOPANTS))
        specimen = random_specimen(material, fov, rng, kinds=dict(recipe.kinds) or None, dopant=dopant or "Si",
                                   unrelaxed_probability=recipe.unrelaxed)
        simulated = simulate_frame(specimen, conditions, rng, shape=(side, side), truth_moves=recipe.labels_move)
    return training_pair(simulated, classes=recipe.classes, model_pixel_nm=recipe.pixel_size_nm,
                         radius_nm=recipe.radius_nm, vacancy_radius_nm=recipe.vacancy_radius_nm, host=recipe.host)
