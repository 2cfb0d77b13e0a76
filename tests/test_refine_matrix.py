"""The sparse normal matrix of the refinement against the one that is summed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from column_scenes import honeycomb

from stemdl_core.refine.joint import Normal
from stemdl_core.refine.model import Background, Shape
from stemdl_core.refine.picture import Patches, Picture

SIZE, PAD, REACH = (72, 80), 10, 6.0
SHAPES = (Shape(4.0, 0.3, 4.4, 0.0, 12.0), Shape(3.8, -0.2, 4.1, 0.15, 15.0))


def setting(shape: Shape) -> tuple[Normal, Patches, np.ndarray, np.ndarray, np.ndarray]:
    """Least squares around a lattice of 20 pm pixels, with its patches, heights, weights and residual."""
    rng = np.random.default_rng(3)
    y, x = 50 * honeycomb(1.1, 0.3).T + PAD
    heights = rng.uniform(0.8, 1.2, len(y))
    patches = Patches(y, x, shape, REACH, SIZE[1])
    background = Background(SIZE, PAD, 20.0)
    mean = Picture(patches, heights, shape, SIZE).columns + 0.3
    weight = np.zeros(SIZE, np.float32)
    weight[PAD:-PAD, PAD:-PAD] = 1 / mean[PAD:-PAD, PAD:-PAD]
    weight[30, 30:33] = 0
    residual = rng.normal(0, 0.1, SIZE).astype(np.float32)
    normal = Normal(patches, y, x, heights, weight, residual, background, 1e-3 * background.stiffness(),
                    np.full((len(y), 3), 0.01))
    return normal, patches, heights, weight, residual


def slopes(patches: Patches, heights: np.ndarray, shape: Shape) -> np.ndarray:
    """(3 N, H * W) slopes of the image with height, y and x of every column."""
    out = np.zeros((len(heights), 3, SIZE[0] * SIZE[1]))
    for k, index in enumerate(patches.index):
        dy = index // SIZE[1] - float(patches.middle_y[k] + patches.rest_y[k])
        dx = index % SIZE[1] - float(patches.middle_x[k] + patches.rest_x[k])
        for tail, share in ((False, 1 - shape.fraction), (True, shape.fraction)):
            yy, yx, xx = shape.inverse(tail=tail)
            uy, ux = yy * dy + yx * dx, yx * dy + xx * dx
            value = share * np.exp(-0.5 * (uy * dy + ux * dx))
            out[k][:, index] += np.stack([value, heights[k] * value * uy, heights[k] * value * ux])
    return out.reshape(-1, out.shape[2])


@pytest.mark.parametrize("shape", SHAPES, ids=("core", "core and tail"))
def test_gradient_and_own_information_are_sums_over_pixels(shape):
    normal, patches, heights, weight, residual = setting(shape)
    drawn = slopes(patches, heights, shape)
    gradient = (drawn @ (weight * residual).ravel()).reshape(-1, 3)
    np.testing.assert_allclose(normal.gradient, gradient, atol=1e-4 * np.abs(gradient).max())
    for k in range(len(heights)):
        own = (drawn[3 * k : 3 * k + 3] * weight.ravel()) @ drawn[3 * k : 3 * k + 3].T
        np.testing.assert_allclose(normal.diagonal[k], own, atol=1e-4 * max(own.max(), 1e-3))


@pytest.mark.parametrize("shape", SHAPES, ids=("core", "core and tail"))
def test_overlap_of_neighbours_is_a_sum_over_pixels_and_the_rest_is_small(shape):
    normal, patches, heights, weight, _ = setting(shape)
    drawn = slopes(patches, heights, shape)
    full = (drawn * weight.ravel()) @ drawn.T
    full += 0.01 * np.eye(len(full))
    ours = normal.couplings.matrix(normal.diagonal + 0.01 * np.eye(3), np.zeros(len(heights))).toarray()
    root = np.sqrt(np.diag(full))
    off = np.abs(ours - full) / np.outer(root, root)
    kept = (ours != 0) & (np.kron(np.eye(len(heights)), np.ones((3, 3))) == 0)
    assert kept.sum() > 9 * 2 * len(heights)
    assert off[kept].max() < 1e-4
    assert off.max() < 0.03
    assert np.linalg.eigvalsh(ours / np.outer(root, root)).min() > 0


@pytest.mark.parametrize("shape", SHAPES, ids=("core", "core and tail"))
def test_a_step_explains_what_can_be_and_covariances_are_those_of_the_whole_matrix(shape):
    normal, patches, heights, weight, residual = setting(shape)
    drawn = slopes(patches, heights, shape)
    background = Background(SIZE, PAD, 20.0)
    hats = np.stack([background.image(node).ravel() for node in np.eye(background.size)])
    everything = np.concatenate([drawn, hats])
    full = (everything * weight.ravel()) @ everything.T
    n = len(drawn)
    full[:n, :n] += 0.01 * np.eye(n)
    full[n:, n:] += 1e-3 * background.stiffness()
    gradient = everything @ (weight * residual).ravel()
    most = 0.5 * gradient @ np.linalg.solve(full, gradient)
    columns, nodes = normal.solve(np.zeros((n // 3, 3)), np.zeros(background.size), tolerance=0.02)
    step = np.concatenate([columns.ravel(), nodes])
    assert gradient @ step - 0.5 * step @ full @ step > 0.98 * most
    own, _ = normal.covariance()
    inverse = np.linalg.inv(full[:n, :n])
    exact = np.sqrt([np.diag(inverse)[3 * k : 3 * k + 3] for k in range(n // 3)])
    ratio = np.sqrt(np.einsum("naa->na", own)) / exact
    assert np.abs(np.median(ratio, axis=0) - 1).max() < 0.01
    assert np.abs(ratio - 1).max() < 0.1


@pytest.mark.parametrize("seed", range(12))
def test_columns_that_hardly_any_pixel_tells_of_leave_no_nonsense(seed):
    shape, rng = SHAPES[1], np.random.default_rng(seed)
    y, x = rng.uniform(20, 50, (2, 30))
    patches = Patches(y, x, shape, REACH, SIZE[1])
    background = Background(SIZE, PAD, 20.0)
    weight = np.zeros(SIZE, np.float32)
    # One pixel each, as far from the column as its patch reaches: hardly any slope the other way.
    for k in range(len(y)):
        weight[int(patches.middle_y[k]), int(patches.middle_x[k] + REACH)] = 1e-3
    normal = Normal(patches, y, x, np.full(30, 0.2), weight, np.zeros(SIZE, np.float32), background,
                    1e-3 * background.stiffness(), np.full((30, 3), 0.01))
    assert np.isfinite(normal.couplings.matrix(normal._own, normal._together).toarray()).all()
    assert (np.abs(normal.couplings._correlations) <= 1).all()
