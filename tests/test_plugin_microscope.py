"""The simulated microscope: scan settings honoured, changes that follow the dose, and the truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("nion.swift", reason="Nion Swift (extra 'swift') is not installed")

from nionswift_plugin.stemdl import microscope


def everywhere(yx):
    """The whole sheet is scanned."""
    return np.ones(len(yx), bool)


class TestGraphene:
    """Graphene with silicon, and the scan."""

    @staticmethod
    def scan(generator, *, size=256, fov=4.0, center=(0.0, 0.0), rotation=0.0, time_us=4.0):
        parameters = SimpleNamespace(
            size=(size, size), fov_nm=fov, center_nm=center, rotation_rad=rotation, pixel_time_us=time_us
        )
        return generator.generate_scan_data(None, parameters)

    @staticmethod
    def generator(drift=(0.0, 0.0), now=None, name="graphene", **options):
        rng = np.random.default_rng(1)
        clock = (lambda: now[0]) if now else (lambda: 0.0)
        specimen = microscope.specimen(name, rng, drift_nm_per_s=drift, clock=clock, **options)
        return microscope.Generator(specimen, rng)

    def test_lattice_is_graphene(self):
        specimen = microscope.Specimen(rng=np.random.default_rng(0), silicon=1)
        yx, species = specimen.atoms()
        middle = yx[(np.abs(yx) < 4).all(axis=1) & (np.hypot(*yx.T) > 1)]
        distance = np.sort(np.hypot(*(middle[:, None] - yx[None]).transpose(2, 0, 1)), axis=1)
        assert distance[:, 1:4] == pytest.approx(np.full((len(middle), 3), 0.142), abs=1e-6)
        assert distance[:, 4].min() > 0.24
        assert (species == "Si").sum() == 1
        silicon = yx[species == "Si"][0]
        assert np.sort(np.hypot(*(yx - silicon).T))[1:4] == pytest.approx([0.16] * 3)

    def test_truth_is_where_the_image_is_bright(self):
        generator = self.generator()
        image = self.scan(generator)
        (silicon,) = np.flatnonzero(generator.truth.species == "Si")[:1]
        y, x = generator.truth.y_px[silicon], generator.truth.x_px[silicon]
        patch = image[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
        assert patch.mean() > 2.5 * image.mean()

    @pytest.mark.parametrize(
        "change", [{"center": (0.3, -0.2)}, {"rotation": 0.7}, {"fov": 5.0}, {"size": 200}]
    )
    def test_scan_settings_are_honoured(self, change):
        generator = self.generator()
        self.scan(generator)
        before = generator.truth
        self.scan(generator, **change)
        after = generator.truth
        size, fov, turn = change.get("size", 256), change.get("fov", 4.0), change.get("rotation", 0.0)
        center = np.array(change.get("center", (0.0, 0.0)))
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        in_nm = (np.stack([before.y_px, before.x_px], 1) - 127.5) * 4.0 / 256
        expected = (in_nm - center) @ rotation / (fov / size) + (size - 1) / 2
        visible = ((expected > 5) & (expected < size - 6)).all(axis=1)
        found = np.stack([after.y_px, after.x_px], 1)
        distance = np.hypot(*(expected[visible][:, None] - found[None]).transpose(2, 0, 1)).min(axis=1)
        assert distance.max() < 1e-6

    def test_drift_moves_the_sheet(self):
        now = [0.0]
        generator = self.generator((0.01, -0.02), now)
        self.scan(generator)
        before = generator.truth
        now[0] = 3.0
        self.scan(generator)
        moved = np.array([before.y_px + 0.03 * 64, before.x_px - 0.06 * 64]).T
        inside = ((moved > 3) & (moved < 252)).all(axis=1)
        found = np.stack([generator.truth.y_px, generator.truth.x_px], 1)
        assert np.hypot(*(moved[inside][:, None] - found[None]).transpose(2, 0, 1)).min(axis=1).max() < 1e-6

    def test_noise_follows_the_dose(self):
        generator = self.generator()
        short, long = (self.scan(generator, time_us=t) for t in (1.0, 16.0))
        background = 5.0
        assert long.mean() - background == pytest.approx(16 * (short.mean() - background), rel=0.1)
        assert long.std() / long.mean() < short.std() / short.mean()

    def test_hops_follow_the_dose_and_keep_the_silicon(self):
        specimen = self.generator().specimen
        start = specimen.atoms()
        specimen.expose(0.0, everywhere)
        assert np.array_equal(specimen.atoms()[1], start[1])
        specimen.expose(50 * microscope.HOP_DOSE_E_PER_NM2, everywhere)
        yx, species = specimen.atoms()
        assert not np.array_equal(species, start[1])
        assert (species == "Si").sum() == (start[1] == "Si").sum()
        before, after = start[0][start[1] == "Si"], yx[species == "Si"]
        step = np.hypot(*(before[:, None] - after[None]).transpose(2, 0, 1)).min(axis=1)
        assert step.max() < 0.2, "each goes to a neighbouring site"

    def test_silicon_switches_between_three_and_four_bonds_with_the_dose(self):
        specimen = self.generator(silicon=30).specimen
        carbon = (specimen.atoms()[1] == "C").sum()
        assert {name for name, _ in specimen.defects()} == {"Si-C3"}
        specimen.expose(0.4 * microscope.SWITCH_DOSE_E_PER_NM2, everywhere)
        four = [place for name, place in specimen.defects() if name == "Si-C4"]
        assert 3 <= len(four) <= 18
        yx, species = specimen.atoms()
        assert (species == "C").sum() == carbon - len(four), "one carbon atom of each is gone"
        for place in four:
            distance = np.sort(np.hypot(*(yx[species == "C"] - place).T))
            assert distance[:4] == pytest.approx([0.188] * 4, abs=0.002)
            assert distance[4] > 0.22
        still = self.generator(silicon=30, switching=False).specimen
        still.expose(10 * microscope.SWITCH_DOSE_E_PER_NM2, everywhere)
        assert {name for name, _ in still.defects()} == {"Si-C3"}

    def test_only_what_is_scanned_changes(self):
        specimen = self.generator().specimen
        before = specimen.defects()
        specimen.expose(1e12, lambda yx: yx[:, 0] > 0)
        for (name, place), (now, there) in zip(before, specimen.defects()):
            if place[0] < -0.3:
                assert (name, tuple(place)) == (now, tuple(there))

    def test_dirt_grows_under_the_beam_and_is_no_atom_of_the_truth(self):
        generator = self.generator(dirt=0.05)
        specimen = generator.specimen
        before = len(specimen.dirt())
        specimen.expose(2e9, everywhere)
        assert len(specimen.dirt()) > 1.5 * before > 0
        place = specimen.dirt().mean(axis=0)
        clean = self.generator()
        dirty, plain = (self.scan(g, center=tuple(place)) for g in (generator, clean))
        assert len(generator.truth.y_px) == len(clean.truth.y_px)
        assert dirty.mean() > plain.mean()
        assert not len(clean.specimen.dirt())

    def test_names_of_the_defects_in_view(self):
        generator = self.generator()
        self.scan(generator)
        truth = generator.truth
        silicon = truth.species == "Si"
        places = sorted(zip(truth.y_px[silicon], truth.x_px[silicon]))
        assert np.allclose(sorted((y, x) for _, y, x in truth.defects), places)
        assert {name for name, _, _ in truth.defects} == {"Si-C3"}


class TestDichalcogenide:
    """MoSe2 with tungsten and vacancies."""

    scan, generator = staticmethod(TestGraphene.scan), staticmethod(TestGraphene.generator)

    def test_atoms_and_defects(self):
        generator = self.generator(name="MoSe2")
        image = self.scan(generator, size=512)
        truth = generator.truth
        assert set(truth.species) == {"Mo", "W", "Se"}
        assert (truth.species == "Se").sum() == pytest.approx(2 * np.isin(truth.species, ["Mo", "W"]).sum(), rel=0.1)
        names = {name for name, _, _ in truth.defects}
        assert "W_Mo" in names
        bright = [image[round(y), round(x)] for n, y, x in truth.defects if n == "W_Mo" and 0 < y < 511 and 0 < x < 511]
        assert np.median(bright) > 1.5 * np.percentile(image, 90)

    def test_selenium_is_lost_and_vacancies_move_with_the_dose(self):
        specimen = self.generator(name="MoSe2", vacancies=10).specimen
        count = (specimen.atoms()[1] == "Se").sum()
        places = sorted(tuple(p) for n, p in specimen.defects() if n == "V_Se")
        specimen.expose(0.0, everywhere)
        assert (specimen.atoms()[1] == "Se").sum() == count
        specimen.expose(2e9, everywhere)
        lost = count - (specimen.atoms()[1] == "Se").sum()
        assert 0.02 < lost / count < 0.08
        assert (specimen.atoms()[1] == "Mo").sum() > 0
        assert sorted(tuple(p) for n, p in specimen.defects() if n == "V_Se") != places

    def test_unknown_specimen(self):
        with pytest.raises(ValueError, match="choose graphene or MoSe2"):
            microscope.specimen("gold", np.random.default_rng(0))

