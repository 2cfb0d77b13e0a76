"""Soak: a live scan for many frames. Drops, latency, the main thread's longest step, memory, disk.

Sixty frames in the suite; ``STEMDL_SOAK=1000`` measures the numbers of the README, with the real analysis if
there is a model, and prints them (``pytest -s``).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from nion.swift.model import DataItem
from swift_support import (
    add_image,
    application,
    done,
    image_with,
    lattice_stand_in,
    live_image,
    press,
    select,
    swift,
    wait_for,
)

from nionswift_plugin.stemdl import actions, adapters, computations, engine, live, marks, microscope, panel, session
from stemdl_core.analysis import Defects
from stemdl_core.calibration import PixelSize
from stemdl_core.frames import Frame

pytestmark = pytest.mark.filterwarnings("ignore")

program = application(small_pictures=False)
FRAMES = int(os.environ.get("STEMDL_SOAK", "0"))
FRAME_S = 0.2
#: As delivered; the tests set it to zero.
TABLE_S = live._TABLE_S
#: Field of view of 512 pixels with 2,000 atoms of graphene [nm].
FOV_NM = 7.2


def engine_has_a_model() -> bool:
    """Whether the default model has been trained."""
    from stemdl_core._paths import weights_folders

    return any((f / engine.DEFAULT_MODEL / "model.safetensors").exists() for f in weights_folders())


def rss_mb() -> float:
    """Memory of this process [MB]."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def busy_s() -> float:
    """How long the cores of this machine have been busy, all together [s]; 0 where it is not told."""
    if not os.path.exists("/proc/stat"):
        return 0.0
    with open("/proc/stat") as file:
        user, nice, system = (int(n) for n in file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def crowded(count):
    """Images and what is found in them: 2,000 atoms of graphene that drift, with 50 defects.

    Every atom moves in every frame, and one of the defects changes its name.
    """
    spots = [(40 + 60 * (i // 7), 40 + 70 * (i % 7)) for i in range(50)]
    first = lattice_stand_in(Frame(image_with(*spots, size=512), PixelSize(FOV_NM / 512)))
    images, found = [], []
    for k in range(count):
        image = image_with(*spots, size=512)
        image[0, 0] = k
        step = 0.7 * k
        sites = dataclasses.replace(first.sites, x_px=first.sites.x_px + step)
        defects = Defects(
            tuple(
                dataclasses.replace(
                    d, center_px=(d.center_px[0], d.center_px[1] + step),
                    name="Si-C4" if d.id == k else d.name,
                )
                for d in first.defects
            )
        )  # fmt: skip
        images.append(image)
        found.append(dataclasses.replace(first, sites=sites, defects=defects))
    return images, lambda frame, **_: found[int(frame.image[0, 0])]


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="memory is read from /proc, which only Linux has"
)
@pytest.mark.parametrize("tracked", [False, True])
def test_soak(scan, monkeypatch, tracked):
    """Many frames with 2,000 atoms: nothing grows, nothing is written, the main thread's steps stay short."""
    frames, analyze = crowded(3)
    monkeypatch.setattr(engine, "analyze", analyze)
    scan.parameters.fov_nm = FOV_NM
    with swift() as dc:
        handler = panel.PanelHandler(dc)
        item = live_image(dc, 512)
        press(dc)
        select(dc, item)
        running = live.find(item)
        if tracked:
            actions.track(dc, dc.document_model.get_display_item_for_data_item(item))
        items = len(dc.document_model.data_items)
        written = []
        monkeypatch.setattr(DataItem.DataItem, "write_external_data", lambda item, *_: written.append(item.title))
        memory, steps = [], []
        for index in range(40):
            scan.finish(frames[index % 3], index)
            longest, begin = 0.0, time.perf_counter()
            while running.status.analysed <= index and time.perf_counter() < begin + 60:
                start = time.thread_time()
                dc.periodic()
                longest = max(longest, time.thread_time() - start)
                time.sleep(0.002)
            steps.append(longest)
            if index % 10 == 9:
                memory.append(rss_mb())
        known = computations.find(dc.document_model, item)
        assert known.table.metadata["stemdl"]["atoms"] > 1900
        assert len(known.table.metadata["stemdl"]["defects"]) == 50
        assert len(dc.document_model.get_display_item_for_data_item(item).graphics) == marks.MOST_LIVE_MARKS
        assert len(dc.document_model.data_items) == items
        assert written == [], "nothing is written to the disk"
        assert running.status.dropped == 0
        if tracked:
            assert session.find(item).status.tracks == 50
        # A session keeps small pictures for an animation, and rows of its newest frames.
        assert memory[-1] - memory[0] < (80 if tracked else 30)
        print(f"\nmain thread, longest step a frame: median {1e3 * np.median(steps[1:]):.0f} ms CPU, "
              f"longest {1e3 * max(steps[1:]):.0f} ms, of the first frame {1e3 * steps[0]:.0f} ms")  # fmt: skip
        # The first frame makes the marks, each later one moves them. CPU time, but on a busy or slower machine that is
        # longer, too: the bar of 50 ms is for a machine of one's own, where the long soak is run.
        bar = 0.05 if "STEMDL_SOAK" in os.environ else 0.10
        assert np.median(steps[1:]) < bar
        assert sorted(steps[1:])[-2] < 2 * bar
        session.stop_all()
        live.stop_all()
        assert {"Scan (Overlay)", "Scan (Atoms)", "Scan (Defects)"} <= set(written), "now it is"
        handler.close()


@pytest.mark.slow
@pytest.mark.skipif(not FRAMES, reason="measures for minutes: set STEMDL_SOAK to a number of frames")
def test_numbers_of_a_long_live_session(scan, monkeypatch):
    """512 x 512 over 4 nm at 5 frames/s through the real analysis, in a process of its own as delivered."""
    if "STEMDL_SOAK_HERE" not in os.environ:
        monkeypatch.delenv("STEMDL_IN_PROCESS")
    rng = np.random.default_rng(5)
    generator = microscope.Generator(microscope.Specimen(rng=rng), rng)
    scan.parameters.fov_nm = 4.0
    engine.models.get("graphene")
    # Simulated beforehand: a microscope does not take its frames from the computer's own time.
    parameters = scan.get_current_frame_parameters()
    parameters.size = (512, 512)
    pool = []
    for _ in range(min(FRAMES, 40)):
        pool.append((generator.generate_scan_data(None, parameters), generator.truth))
    truths = {zlib.crc32(np.ascontiguousarray(image)): truth for image, truth in pool}
    monkeypatch.setattr(live, "_TABLE_S", TABLE_S)
    ages, steps = [], []
    with swift() as dc:
        item = live_image(dc, 512)
        press(dc)
        running = live.find(item)
        listener = running.status_changed_event.listen(lambda: ages.append(running.status.age_s))
        stop = threading.Event()

        def acquire():
            begin = time.perf_counter()
            for index in range(FRAMES):
                time.sleep(max(begin + (index + 1) * FRAME_S - time.perf_counter(), 0.0))
                scan.finish(pool[index % len(pool)][0], index)
            stop.set()

        thread = threading.Thread(target=acquire, daemon=True)
        thread.start()
        memory, found, right = 0.0, [0, 0, 0], [0, 0]
        began = time.perf_counter(), busy_s(), time.process_time()
        last = -1
        while not stop.is_set():
            cpu, wall = time.thread_time(), time.perf_counter()
            dc.periodic()
            steps.append((time.thread_time() - cpu, time.perf_counter() - wall))
            status = running.status
            if status.frame_index != last and running.latest is not None and not status.error:
                last = status.frame_index
                image, analysis = running.latest
                # At once: what a thousand tables take would be taken for the program's.
                compare(*adapters.table_of(analysis), truths[zlib.crc32(image.image)], found, right)
            if not memory and running.status.analysed > 100:
                memory = rss_mb()
            time.sleep(0.02)
        grown = rss_mb() - memory if memory else 0.0
        wall, busy, own = (b - a for a, b in zip(began, (time.perf_counter(), busy_s(), time.process_time())))
        status = running.status
        listener.close()
        items = len(dc.document_model.data_items)
        live.stop_all()
        running.join()
    f1 = 2 * found[0] / max(2 * found[0] + found[1] + found[2], 1)
    print(
        f"\nframes {status.seen}, dropped {status.dropped} ({100 * status.dropped / max(status.seen, 1):.1f} %), "
        f"end of frame to overlay: median {1e3 * np.median(ages):.0f} ms, 95 % {1e3 * np.percentile(ages, 95):.0f} ms; "
        f"main thread: longest {1e3 * max(s[0] for s in steps):.0f} ms CPU, "
        f"{1e3 * max(s[1] for s in steps):.0f} ms wall; memory {grown:+.0f} MB; items {items}; "
        f"sites F1 {f1:.4f}, names right {right[0]} of {right[1]}; "
        f"CPU {1e3 * own / max(status.analysed, 1):.0f} ms a frame shown; of {os.cpu_count()} cores "
        f"{own / wall:.2f} for this program, {(busy - own) / wall:.2f} for others"
    )
    assert items == 4
    assert 0 <= status.seen - status.analysed - status.dropped <= 2
    assert grown < 30
    assert f1 >= 0.98
    assert right[0] >= 0.97 * right[1]


@pytest.mark.slow
@pytest.mark.skipif(not engine_has_a_model(), reason="no trained model here")
def test_one_click_on_a_stored_image():
    """1024 x 1024 pixels with a few thousand atoms: from the press to the overlay, the model being loaded."""
    rng = np.random.default_rng(8)
    generator = microscope.Generator(microscope.Specimen(rng=rng, size_nm=14.0), rng)
    parameters = SimpleNamespace(
        size=(1024, 1024), fov_nm=8.0, rotation_rad=0.0, center_nm=(0.0, 0.0), pixel_time_us=8.0
    )
    first, second = (generator.generate_scan_data(None, parameters) for _ in range(2))
    with swift() as dc:
        add_image(dc, first, scale=8.0 / 1024, title="First")
        press(dc)
        wait_for(done(dc), dc)
        item = add_image(dc, second, scale=8.0 / 1024, title="Second")
        wall, cpu, main = time.perf_counter(), time.process_time(), time.thread_time()
        press(dc)
        known = computations.find(dc.document_model, item)
        wait_for(lambda: not known.table.metadata["stemdl"].get("pending"), dc)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        main = time.thread_time() - main
        assert known.table.metadata["stemdl"]["atoms"] > 2000
        assert known.overlay.data.shape == (1024, 1024, 3)
    print(f"\none click, 1024 x 1024: {wall:.2f} s, CPU {cpu:.2f} s, of it {main:.2f} s on the main thread")
    # A second is the bar for a machine of one's own; others' work makes CPU time longer, too.
    assert cpu < (1.0 if "STEMDL_SOAK" in os.environ else 2.5)


def compare(rows, metadata, truth, found, right):
    """Add one frame's sites (matched within 50 pm) and names of whole defects to the sums."""
    from scipy.spatial import cKDTree

    names = metadata["columns"]
    step = metadata["pixel_size_nm"]
    inner = 6.0
    yx = rows[:, [names.index("y_px"), names.index("x_px")]]
    true = np.stack([truth.y_px, truth.x_px], axis=1)
    keep, kept = (((p > inner) & (p < 511 - inner)).all(axis=1) for p in (yx, true))
    species = np.array([metadata["species"][str(int(z))] for z in rows[:, names.index("Z")]])
    distance, nearest = cKDTree(true).query(yx)
    good = (distance * step < 0.05) & (species == truth.species[nearest])
    met = np.zeros(len(true), bool)
    met[nearest[good]] = True
    found[0] += int((good & keep).sum())
    found[1] += int((~good & keep).sum())
    found[2] += int((~met & kept).sum())
    for name, y, x in truth.defects:
        if min(y, x, 511 - y, 511 - x) * step < 0.3:
            continue
        near = [d["name"] for d in metadata["defects"]
                if np.hypot(d["center_px"][0] - y, d["center_px"][1] - x) * step < 0.12]  # fmt: skip
        right[0] += name in near
        right[1] += 1
