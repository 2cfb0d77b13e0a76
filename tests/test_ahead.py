"""Frames analysed by other processes give what they give here."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from stemdl_core.ahead import Ahead, processors
from stemdl_core.errors import StemdlError
from stemdl_core.frames import Frame, FrameSequence

FRAMES = 12


def measure(frame: Frame) -> object:
    """A stand-in for an analysis: who made it, and what of."""
    if frame.index == 5:
        raise StemdlError("nothing to see")
    return frame.index, float(frame.image.sum()), os.getpid()


def movie(rng: np.random.Generator) -> FrameSequence:
    images = rng.normal(size=(FRAMES, 32, 32)).astype(np.float32)

    def load(index: int) -> np.ndarray:
        if index == 7:
            raise StemdlError("frame 7 is cut off")
        return images[index]

    return FrameSequence(FRAMES, load, source="movie")


@pytest.mark.skipif(sys.platform != "linux", reason="frames are analysed ahead where the system can fork")
@pytest.mark.parametrize("first", [0, 3])
def test_results_come_in_order_from_other_processes(rng, first):
    sequence = movie(rng)
    with Ahead(sequence, measure, first=first, workers=2) as ahead:
        got = [ahead.get(number) for number in range(first, FRAMES)]
    found = dict(zip(range(first, FRAMES), got))
    for number, (read, result) in found.items():
        if number == 7:
            assert result is None
            with pytest.raises(StemdlError, match="cut off"):
                read()
        elif number == 5:
            assert result == "nothing to see"
        else:
            index, total, process = result
            assert (index, process != os.getpid()) == (number, True)
            assert total == pytest.approx(float(read().image.sum()))


def test_one_worker_leaves_the_work_to_the_caller(rng):
    sequence = movie(rng)
    with Ahead(sequence, measure, workers=1) as ahead:
        read, result = ahead.get(0)
    assert result is None
    assert read().index == 0
    assert processors() >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="frames are analysed ahead where the system can fork")
def test_a_killed_process_is_replaced_by_the_caller(rng):
    sequence = FrameSequence(FRAMES, lambda i: np.eye(32) + i, source="movie")

    def dies(frame: Frame) -> object:
        os._exit(3)

    with Ahead(sequence, dies, workers=2) as ahead:
        for number in range(FRAMES):
            read, result = ahead.get(number)
            assert result is None
            assert read().index == number
