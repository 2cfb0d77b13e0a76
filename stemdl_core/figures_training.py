"""Pictures of a training run: loss and accuracy of training and validation by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .train import EpochLog


def training_curves(history: Sequence[EpochLog], *, title: str = "") -> Figure:
    """Loss and pixel accuracy by epoch, training and validation, as in the paper's supplement."""
    figure = Figure(figsize=(8, 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [h.epoch + 1 for h in history]
    loss.plot(epochs, [h.train_loss for h in history], "o-", ms=3, color="#0072B2", label="training")
    loss.plot(epochs, [h.validation_loss for h in history], "s-", ms=3, color="#D55E00", label="validation")
    loss.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy.plot(epochs, [100 * h.train_accuracy for h in history], "o-", ms=3, color="#0072B2", label="training")
    accuracy.plot(epochs, [100 * h.validation_accuracy for h in history], "s-", ms=3, color="#D55E00",
                  label="validation")
    accuracy.set(xlabel="epoch", ylabel="pixel accuracy [%]")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save_training_curves(history: Sequence[EpochLog], path: Path, *, title: str = "") -> None:
    """Write the curves as PNG; the file appears whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    training_curves(history, title=title).savefig(temporary, format="png")
    temporary.replace(path)
