"""Foreign atoms: what the network takes for one has to be as bright as its atomic number says."""

from __future__ import annotations

import numpy as np
import pytest

from stemdl_core.foreign import clean_surroundings, foreign_sites, told_from_dirt

SILICON = 14 / 6


def decide(intensity, *, sigma=0.08, share=0.9, measured=True, clean=False, contrast=SILICON):
    intensity = np.atleast_1d(np.asarray(intensity, dtype=float))
    n = len(intensity)
    return foreign_sites(intensity=intensity, sigma=np.full(n, sigma), measured=np.full(n, measured),
                         share=np.broadcast_to(np.asarray(share, dtype=float), n), clean=np.full(n, clean),
                         contrast=contrast)


def test_a_bright_carbon_beside_silicon_is_carbon():
    """A carbon atom under the tails of three silicon atoms is half as bright again as the others."""
    host = np.random.default_rng(0).normal(1.0, 0.1, 100)
    found = decide([*host, 6.8, 6.0, 5.8, 1.5], share=[*np.zeros(100), 1, 1, 1, 0.9])
    assert np.flatnonzero(found).tolist() == [100, 101, 102]


@pytest.mark.parametrize("exponent", [1.4, 1.64, 2.0])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.6])
def test_silicon_is_silicon_at_any_exponent_and_dose(exponent, sigma):
    intensity = SILICON**exponent
    assert decide(intensity, sigma=sigma).all()
    # The network missed the class, the brightness leaves no doubt.
    assert decide(intensity, sigma=0.05, share=0.1).all()


def test_what_the_network_takes_for_foreign_has_to_exceed_the_host():
    assert not decide(1.1, sigma=0.1).any()
    assert not decide(1.9, sigma=0.8).any()
    assert decide(1.9, sigma=0.8, measured=False).all()
    assert decide(np.nan, measured=False).all()
    assert not decide(1.2, measured=False).any()
    assert not decide(1.0, sigma=0.1, share=0.0, measured=False).any()


def test_a_thousand_noisy_columns_need_more_than_a_guess_of_the_network():
    """Two or three standard deviations are nothing among so many; where the network is sure they are enough."""
    assert decide([2.8, 3.0], sigma=0.62, share=0.9).all()
    assert not decide([2.8, 3.0], sigma=0.62, share=0.7).any()
    assert decide(3.4, sigma=0.62, share=0.7).all()


def test_the_limit_follows_the_element():
    """1.9 times the host: too weak for germanium, not for sodium."""
    assert not decide(1.9, contrast=32 / 6).any()
    assert decide(1.9, contrast=11 / 6).all()


def test_a_single_bright_column_on_a_clean_sheet_is_foreign_whatever_the_network_says():
    assert decide(2.8, sigma=0.25, share=0.05, clean=True).all()
    # Dirt may be as bright; a host column and one or two adatoms are not, nor is what is hardly measured.
    assert not decide(2.8, sigma=0.25, share=0.05).any()
    assert not decide([1.0, 1.6, 2.0], sigma=0.25, share=0.05, clean=True).any()
    assert not decide(2.8, sigma=0.6, share=0.05, clean=True).any()


def test_surroundings_are_clean_where_only_one_column_is_bright(rng):
    yx = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), indexing="ij"), -1).reshape(-1, 2)
    intensity, level = rng.normal(1.0, 0.1, 100), np.zeros(100)
    middle = 45
    intensity[middle] = 3.0
    assert clean_surroundings(yx, intensity, level)[middle]
    patch = np.hypot(*(yx - yx[middle]).T) < 2.2
    assert not clean_surroundings(yx, intensity + 0.8 * patch, level)[middle]
    assert not clean_surroundings(yx, intensity, level + 0.4 * (np.arange(100) == middle))[middle]
    assert not clean_surroundings(yx[:5], intensity[:5], level[:5]).any()


def test_a_bright_column_among_uneven_ones_has_to_look_foreign_to_the_network(rng):
    """Atoms of dirt on every third column of a patch, one of them as bright as silicon may be."""
    yx = np.stack(np.meshgrid(np.arange(14.0), np.arange(14.0), indexing="ij"), -1).reshape(-1, 2)
    middle, beside, far = 90, 91, 13
    patch = np.hypot(*(yx - yx[middle]).T) < 4
    sigma = np.full(len(yx), 0.12)
    intensity = rng.normal(1.0, sigma)
    foreign = np.isin(np.arange(len(yx)), (middle, far))
    intensity[foreign] = 2.9

    def left(intensity, *, share, foreign=foreign):
        share = np.where(foreign, share, 0.0) if np.ndim(share) == 0 else share
        kept = told_from_dirt(foreign, yx_px=yx, intensity=intensity, sigma=sigma, share=share, contrast=SILICON)
        return np.flatnonzero(kept).tolist()

    dirty = intensity + np.where(patch & ~foreign & (np.arange(len(yx)) % 3 == 0), 0.9, 0.0)
    assert left(intensity, share=0.5) == [far, middle]
    assert left(dirty, share=0.5) == [far]
    assert left(dirty, share=0.9) == [far, middle]
    # The neighbour of a sure one is of the same cluster, and a cluster does not speak against its own atoms.
    pair = np.isin(np.arange(len(yx)), (middle, beside))
    bright = np.where(pair, 2.9, dirty)
    assert left(bright, share=np.where(pair, 0.9, 0.0) - 0.4 * (np.arange(len(yx)) == middle), foreign=pair) == [
        middle, beside]
    cluster = np.isin(np.arange(len(yx)), (middle - 14, middle - 1, middle, beside, middle + 14))
    assert len(left(np.where(cluster, 2.9, intensity), share=0.5, foreign=cluster)) == 5
    # A carbon with an atom of dirt on it looks foreign to the network, too, but is fainter than silicon.
    faint = np.where(foreign, 2.4, dirty)
    assert left(faint, share=0.95) == [far]
    assert left(faint, share=0.7) == []
    assert left(faint, share=0.99) == [far, middle]
    # Beside a silicon it may be one of a cluster; not beside a second one as faint.
    assert left(np.where(pair, 2.4, dirty) + (np.arange(len(yx)) == beside), share=np.where(pair, 0.9, 0.0),
                foreign=pair) == [middle, beside]
    assert left(np.where(pair, 2.4, dirty), share=np.where(pair, 0.9, 0.0), foreign=pair) == []
