"""Where the shipped models lie: in a wheel, an editable install or a checkout."""

from __future__ import annotations

import os
from pathlib import Path

#: Name of the folder of models in a checkout, and of the package of data files that a wheel makes of it.
CHECKOUT_FOLDER, INSTALLED_FOLDER = "weights", "stemdl_weights"


#: Names another place for the user's own models.
MODELS_VARIABLE = "STEMDL_MODELS"


def user_models_folder() -> Path:
    """Where versions that were retrained lie: $STEMDL_MODELS, or ``stemdl/models`` in the user's data folder."""
    given = os.environ.get(MODELS_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "stemdl" / "models"


def weights_folders() -> list[Path]:
    """The existing folders that hold models, one sub-folder each, in the order in which they are searched.

    A checkout (and an editable install, which points into one) keeps them in ``weights/`` beside the
    package; an installed wheel in ``stemdl_weights/`` beside it. A folder ``weights`` counts only beside our
    own ``setup.py``: in ``site-packages`` it would be some other package's. Versions that the user has
    retrained come last.
    """
    parent = Path(__file__).resolve().parent.parent
    folders = []
    if (parent / "setup.py").is_file():
        folders.append(parent / CHECKOUT_FOLDER)
    folders.append(parent / INSTALLED_FOLDER)
    folders.append(user_models_folder())
    return [folder for folder in folders if folder.is_dir()]
