"""Fine-tuning on arrays: a short run from a parent's weights, with a checkpoint that survives any interruption."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional

from .network import build_network
from .retrain_data import Arrays
from .targets import IGNORE
from .weights import load_network

CHECKPOINT, STATE = "checkpoint.safetensors", "state.json"
#: Steps between two checkpoints.
CHECKPOINT_STEPS = 20


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes
    ----------
    steps : int
        Most optimiser steps.
    minutes : float
        Longest time; the learning rate follows whichever of the two is used up first.
    batch : int
    learning_rate : float
        Its peak: a tenth to a third of that of a training from scratch.
    shares : tuple of float
        Part of every batch taken from each set.
    """

    steps: int
    minutes: float
    batch: int = 16
    learning_rate: float = 1.5e-3
    shares: tuple[float, ...] = (0.5, 0.5)


def fine_tune(parent: Path, sets: Sequence[Arrays], work: Path, schedule: Schedule, *, identity: str,
              class_weights: dict[str, float], seed: int, progress: Callable[[int, int], None] | None = None,
              stop: Callable[[], bool] | None = None) -> torch.nn.Module | None:
    """Train a copy of a model on a mixture of sets.

    Parameters
    ----------
    parent : Path
        Folder of the model to start from.
    sets : sequence of (images, targets)
        Empty ones are passed over, and their share goes to the others.
    work : Path
        Folder for the checkpoint; a run of the same `identity` continues there.
    schedule : Schedule
    identity : str
        Stands for everything that the run depends on.
    class_weights : mapping
        Weight of classes in the loss, 1 for those not named.
    seed : int
    progress : callable, optional
        ``progress(steps done, steps)``; steps saved by the time limit count as done.
    stop : callable, optional
        Asked before every step; True ends the run after a checkpoint.

    Returns
    -------
    torch.nn.Module or None
        Running average of the weights; None when stopped.
    """
    torch_threads = torch.get_num_threads()
    network, card = load_network(parent)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=1e-4)
    weight = torch.tensor([float(class_weights.get(name, 1.0)) for name in card.classes])
    step, elapsed = _restore(work, identity, network, average)
    used = [(s, share) for s, share in zip(sets, schedule.shares) if len(s[0])]
    total_share = sum(share for _, share in used)
    last = time.monotonic()

    def done() -> float:
        return max(step / schedule.steps, elapsed / (60.0 * schedule.minutes))

    network.train()
    while done() < 1.0:
        if stop is not None and stop():
            _save(work, identity, network, average, step, elapsed)
            return None
        rng = np.random.default_rng([seed, 3, step])
        x, y = _mixed([(s, share / total_share) for s, share in used], schedule.batch, rng)
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * _rate(done())
        optimiser.zero_grad(set_to_none=True)
        logits = network(x.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, y, weight=weight, ignore_index=IGNORE)
        if torch.isfinite(loss):
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        step += 1
        # Over about the last quarter of what was done: neither a single step nor the parent.
        decay = min(0.98, max(0.0, 1.0 - 4.0 / (step + 3)))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                if value.dtype.is_floating_point:
                    average[key].lerp_(value, 1.0 - decay)
                else:
                    average[key].copy_(value)
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        if step % CHECKPOINT_STEPS == 0:
            _save(work, identity, network, average, step, elapsed)
        if progress:
            progress(min(math.ceil(done() * schedule.steps), schedule.steps), schedule.steps)
    torch.set_num_threads(torch_threads)
    result = build_network(card.architecture, len(card.classes), card.filters)
    result.load_state_dict(average)
    return result


def _rate(done: float) -> float:
    """Factor on the learning rate: a short rise, then a cosine to nearly zero."""
    if done < 0.1:
        return 0.1 + 9.0 * done
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * (done - 0.1) / 0.9))


def _mixed(sets: Sequence[tuple[Arrays, float]], batch: int,
           rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch with each set's share, every image under its own symmetry and a small change of contrast."""
    images: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.int64]] = []
    counts = rng.multinomial(batch, [share for _, share in sets])
    for (arrays, _), count in zip(sets, counts.tolist()):
        for k in rng.integers(len(arrays[0]), size=count).tolist():
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            x, y = np.rot90(arrays[0][k].astype(np.float32), turns), np.rot90(arrays[1][k].astype(np.int64), turns)
            if flip:
                x, y = x[::-1], y[::-1]
            images.append(x * rng.uniform(0.9, 1.1) + rng.uniform(-0.1, 0.1))
            targets.append(y)
    x32 = np.ascontiguousarray(np.stack(images), dtype=np.float32)
    return torch.from_numpy(x32)[:, None], torch.from_numpy(np.ascontiguousarray(np.stack(targets)))


def _save(work: Path, identity: str, network: torch.nn.Module, average: dict[str, torch.Tensor], step: int,
          elapsed: float) -> None:
    work.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{k}": v.detach().contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    save_file(tensors, str(work / (CHECKPOINT + ".part")))
    os.replace(work / (CHECKPOINT + ".part"), work / CHECKPOINT)
    state = {"identity": identity, "step": step, "elapsed_s": elapsed}
    (work / (STATE + ".part")).write_text(json.dumps(state))
    os.replace(work / (STATE + ".part"), work / STATE)


def _restore(work: Path, identity: str, network: torch.nn.Module,
             average: dict[str, torch.Tensor]) -> tuple[int, float]:
    """Step and time of an interrupted run of the same identity; (0, 0) where there is none."""
    try:
        state = json.loads((work / STATE).read_text())
        if state["identity"] != identity:
            return 0, 0.0
        tensors = load_file(str(work / CHECKPOINT))
    except (OSError, ValueError, KeyError):
        return 0, 0.0
    network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
    average.update({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
    return int(state["step"]), float(state["elapsed_s"])
