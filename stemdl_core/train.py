"""Training: the training set, the loop, its log, and resuming.

A recipe and its seed determine the training set completely; the loop yields a record per epoch and keeps a
checkpoint, so that it can be shown, interrupted and resumed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional

from .errors import ModelError
from .network import build_network
from .recipes import Recipe, training_example
from .targets import IGNORE
from .weights import ModelCard, load_network, save_model

CHECKPOINT, LOG = "checkpoint.safetensors", "log.json"


def _examples(task: tuple[Recipe, list[int]]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    torch.set_num_threads(1)
    recipe, indices = task
    pairs = [training_example(recipe, i) for i in indices]
    return np.stack([p[0] for p in pairs]).astype(np.float16), np.stack([p[1] for p in pairs])


def simulate_set(recipe: Recipe, first: int, count: int, *, workers: int = 0,
                 progress: Callable[[int], None] | None = None) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Images (count, crop, crop) float16 and class maps (count, crop, crop) uint8 of a recipe.

    Parameters
    ----------
    recipe : Recipe
        What to simulate.
    first, count : int
        Frames `first` to `first + count - 1`: every frame depends on its number alone.
    workers : int
        Number of processes; 0 takes one per core.
    progress : callable, optional
        Called with the number of frames that were finished since the last call.
    """
    size = recipe.crop_px
    images = np.empty((count, size, size), dtype=np.float16)
    targets = np.empty((count, size, size), dtype=np.uint8)
    chunks = [list(range(first + k, first + min(k + 32, count))) for k in range(0, count, 32)]
    workers = workers or min(os.cpu_count() or 1, len(chunks))
    tasks = [(recipe, c) for c in chunks]
    done = 0

    def keep(result: tuple[NDArray[np.float16], NDArray[np.uint8]]) -> None:
        nonlocal done
        n = len(result[0])
        images[done:done + n], targets[done:done + n] = result
        done += n
        if progress:
            progress(n)

    if workers <= 1:
        for task in tasks:
            keep(_examples(task))
    else:
        import multiprocessing

        # Spawned, not forked: the parent holds the threads of a numerical library.
        with _one_thread_each(), ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for result in pool.map(_examples, tasks):
                keep(result)
    return images, targets


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Child processes started within use one thread: as many threads as cores in every process fight for them."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class EpochLog:
    """What one epoch gave. Losses are cross-entropies, accuracies fractions of pixels."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    best: bool


def train(recipe: Recipe, folder: Path, *, resume: bool = False, device: str = "cpu", start_from: Path | None = None,
          workers: int = 0, progress: Callable[[str, int, int], None] | None = None) -> Iterator[EpochLog]:
    """Train a model, epoch by epoch, into a folder.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    folder : Path
        Receives the checkpoint and the log after every epoch, and the model when an epoch is the best so far.
    resume : bool
        Continue from the folder's checkpoint.
    device : str
        'cpu', 'cuda', 'mps' or 'auto'.
    start_from : Path, optional
        Folder of a model to fine-tune.
    workers : int
        Processes for the simulation; 0 takes one per core.
    progress : callable, optional
        ``progress(stage, done, total)``.

    Yields
    ------
    EpochLog
        After each epoch.

    Raises
    ------
    ModelError
        If there is nothing to resume from, or the checkpoint is of another recipe.
    """
    from .weights import resolve_device

    where = resolve_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda stage, done, total: None)
    done_frames = 0

    def simulated(n: int) -> None:
        nonlocal done_frames
        done_frames += n
        tell("simulate", done_frames, recipe.n_train + recipe.n_validation)

    history: list[EpochLog] = []
    if resume:
        history = read_log(folder, recipe)
    images, targets = simulate_set(recipe, 0, recipe.n_train, workers=workers, progress=simulated)
    check_images, check_targets = simulate_set(recipe, 10_000_000, recipe.n_validation, workers=workers,
                                               progress=simulated)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.architecture, len(recipe.classes), recipe.filters)
    if start_from is not None:
        network, _ = load_network(start_from)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    network = network.to(where)
    if where.type == "cpu":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    steps_per_epoch = max(recipe.n_train // recipe.batch, 1)
    if history:
        _load_checkpoint(folder, network, average, optimiser)
    parent = "" if start_from is None else f"{load_network(start_from)[1].name}:{load_network(start_from)[1].sha256}"
    weight = torch.ones(len(recipe.classes))
    for name, value in recipe.class_weights:
        if name in recipe.classes:
            weight[recipe.classes.index(name)] = value
    weight = weight.to(where)
    best = min((h.validation_loss for h in history), default=math.inf)
    since_best = 0
    for epoch in range(len(history), recipe.epochs):
        started = time.perf_counter()
        rng = np.random.default_rng([recipe.seed, 1, epoch])
        order = rng.permutation(recipe.n_train)
        total_loss = total_right = total_pixels = 0.0
        network.train()
        for step in range(steps_per_epoch):
            rate = _one_cycle(epoch * steps_per_epoch + step, recipe.epochs * steps_per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate
            chosen = np.sort(order[step * recipe.batch:(step + 1) * recipe.batch])
            x, y = _batch(images[chosen], targets[chosen], rng)
            x, y = x.to(where), y.to(where)
            if where.type == "cpu":
                x = x.contiguous(memory_format=torch.channels_last)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(where.type, torch.bfloat16, enabled=where.type != "mps"):
                logits = network(x)
            loss = functional.cross_entropy(logits.float(), y, weight=weight, ignore_index=IGNORE)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            _update_average(average, network, decay=min(0.998, 1 - 1 / (epoch * steps_per_epoch + step + 2)))
            counted = y != IGNORE
            total_loss += loss.item() * float(counted.sum())
            total_right += float(((logits.argmax(1) == y) & counted).sum())
            total_pixels += float(counted.sum())
            tell("train", epoch * steps_per_epoch + step + 1, recipe.epochs * steps_per_epoch)
        smooth = build_network(recipe.architecture, len(recipe.classes), recipe.filters)
        smooth.load_state_dict(average)
        check_loss, check_accuracy = evaluate(smooth.to(where), check_images, check_targets, batch=recipe.batch)
        is_best = check_loss < best
        log = EpochLog(epoch, total_loss / total_pixels, total_right / total_pixels, check_loss, check_accuracy,
                       time.perf_counter() - started, is_best)
        history.append(log)
        if is_best:
            best, since_best = check_loss, 0
            card = ModelCard(name=recipe.name, materials=recipe.materials, architecture=recipe.architecture,
                             filters=recipe.filters, classes=recipe.classes, pixel_size_nm=recipe.pixel_size_nm,
                             radius_nm=recipe.radius_nm, dopant=recipe.dopant, recipe=recipe.to_dict(),
                             parent=parent)
            save_model(folder, smooth, card)
        else:
            since_best += 1
        _save_checkpoint(folder, network, average, optimiser)
        _write_log(folder, recipe, history)
        yield log
        if since_best >= recipe.patience:
            return


def evaluate(network: torch.nn.Module, images: NDArray[np.floating[Any]], targets: NDArray[np.uint8], *,
             batch: int = 16) -> tuple[float, float]:
    """Mean cross-entropy and pixel accuracy over the pixels whose truth is defined."""
    network.eval()
    device = next(network.parameters()).device
    loss = right = pixels = 0.0
    with torch.inference_mode():
        for k in range(0, len(images), batch):
            x = torch.from_numpy(images[k:k + batch].astype(np.float32))[:, None].to(device)
            y = torch.from_numpy(targets[k:k + batch].astype(np.int64)).to(device)
            logits = network(x)
            counted = y != IGNORE
            loss += float(functional.cross_entropy(logits, y, ignore_index=IGNORE, reduction="sum"))
            right += float(((logits.argmax(1) == y) & counted).sum())
            pixels += float(counted.sum())
    return loss / max(pixels, 1.0), right / max(pixels, 1.0)


def _batch(images: NDArray[np.float16], targets: NDArray[np.uint8],
           rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch under a random symmetry of the square, with small random changes of contrast and zero."""
    x, y = images.astype(np.float32), targets.astype(np.int64)
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    x, y = np.rot90(x, turns, (1, 2)), np.rot90(y, turns, (1, 2))
    if flip:
        x, y = x[:, ::-1], y[:, ::-1]
    n = len(x)
    varied = x * rng.uniform(0.9, 1.1, (n, 1, 1)) + rng.uniform(-0.1, 0.1, (n, 1, 1))
    return (torch.from_numpy(np.ascontiguousarray(varied, dtype=np.float32))[:, None],
            torch.from_numpy(np.ascontiguousarray(y)))


def _one_cycle(step: int, total: int) -> float:
    """Factor on the learning rate: linear rise over a tenth of the run, then a cosine to nearly zero."""
    rise = max(total // 10, 1)
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1)))


def _update_average(average: dict[str, torch.Tensor], network: torch.nn.Module, decay: float) -> None:
    """Running average of the weights: it scores better than any single step, and steadily."""
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                average[key].lerp_(value.detach().cpu(), 1 - decay)
            else:
                average[key].copy_(value)


def _save_checkpoint(folder: Path, network: torch.nn.Module, average: dict[str, torch.Tensor],
                     optimiser: torch.optim.Optimizer) -> None:
    tensors = {f"network.{k}": v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    for k, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{k}.{name}": torch.as_tensor(v).detach().cpu().contiguous() for name, v in state.items()}
    temporary = folder / (CHECKPOINT + ".part")
    save_file(tensors, str(temporary))
    os.replace(temporary, folder / CHECKPOINT)


def _load_checkpoint(folder: Path, network: torch.nn.Module, average: dict[str, torch.Tensor],
                     optimiser: torch.optim.Optimizer) -> None:
    tensors = load_file(str(folder / CHECKPOINT))
    network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
    average.update({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    whole = optimiser.state_dict()
    whole["state"] = state
    optimiser.load_state_dict(whole)


def _write_log(folder: Path, recipe: Recipe, history: list[EpochLog]) -> None:
    temporary = folder / (LOG + ".part")
    temporary.write_text(json.dumps({"recipe": recipe.to_dict(), "epochs": [asdict(h) for h in history]}, indent=1))
    os.replace(temporary, folder / LOG)


def read_log(folder: Path, recipe: Recipe | None = None) -> list[EpochLog]:
    """The log of a training run; with a recipe, checked to be of the same one.

    Raises
    ------
    ModelError
        If there is no run in the folder, or it is of another recipe.
    """
    if not (folder / LOG).is_file() or not (folder / CHECKPOINT).is_file():
        raise ModelError(f"nothing to resume in {folder}: no checkpoint there")
    data = json.loads((folder / LOG).read_text())
    if recipe is not None and data["recipe"] != json.loads(json.dumps(recipe.to_dict())):
        raise ModelError(f"the run in {folder} is of another recipe: train into another folder")
    return [EpochLog(**e) for e in data["epochs"]]
