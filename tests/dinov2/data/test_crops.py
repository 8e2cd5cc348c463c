import numpy as np
import pytest

from dinov2.data.crops import ASPECT, WHOLE, Box, coarsest_grid, draw_box
from dinov2.data.sample import ImageSpec, Sample


def scene(sides):
    images, specs = {}, {}
    for gsd, side in sides.items():
        spec = ImageSpec("sentinel2_l2a", gsd, ("B02",), "uint16", "reflectance")
        images[spec.key], specs[spec.key] = np.zeros((1, side, side), np.uint16), spec
    return Sample("s", images, specs)


def test_all_resolutions_see_exactly_the_same_ground():
    """Every pixel holds the ground coordinates of its upper left corner: equal corners mean equal ground."""
    gsds = (10, 20, 30, 60)
    footprint = 66 * 60  # metres
    ground = {g: np.stack(np.meshgrid(*[np.arange(0, footprint, g)] * 2, indexing="ij")) for g in gsds}
    grid = coarsest_grid(scene({g: footprint // g for g in gsds}))
    assert grid == (66, 66)
    rng = np.random.default_rng(0)
    for _ in range(200):
        box = draw_box(grid, (0.05, 1.0), rng)
        corners = set()
        for g in gsds:
            y, x = box.window(ground[g].shape)
            cut = ground[g][:, y, x]
            corners.add((*cut[:, 0, 0], *(cut[:, -1, -1] + g)))
            assert cut[0].size * g * g == box.height * box.width * 60 * 60
        assert len(corners) == 1


def test_a_landmark_falls_into_the_crops_of_all_resolutions_at_the_same_place():
    side = 12  # cells of 60 m
    for row, column in [(0, 0), (3, 9), (11, 11)]:
        cell = np.zeros((side, side))
        cell[row, column] = 1
        maps = {g: np.kron(cell, np.ones((60 // g, 60 // g))) for g in (10, 20, 60)}
        box = Box(2, 1, 9, 11, side, side)
        shares = {g: m[box.window(m.shape)].sum() * g * g for g, m in maps.items()}
        inside = 2 <= row < 11 and 1 <= column < 12
        assert set(shares.values()) == {3600.0 if inside else 0.0}
        coarse = {g: m[box.window(m.shape)].reshape(9, 60 // g, 11, 60 // g).mean((1, 3)) for g, m in maps.items()}
        assert all(np.array_equal(c, coarse[60]) for c in coarse.values())


def test_area_and_aspect_are_as_asked_for():
    rng = np.random.default_rng(0)
    boxes = [draw_box((264, 264), (0.3, 0.6), rng) for _ in range(2000)]
    area = np.array([b.height * b.width for b in boxes]) / 264**2
    assert area.min() > 0.295 and area.max() < 0.605
    assert abs(area.mean() - 0.45) < 0.01
    aspect = np.array([b.width / b.height for b in boxes])
    assert aspect.min() > 1 / ASPECT - 0.02 and aspect.max() < ASPECT + 0.02
    assert abs(np.log(aspect).mean()) < 0.02
    assert {b.top == 0 for b in boxes} == {True, False}


def test_boxes_stay_inside_and_have_at_least_one_cell():
    rng = np.random.default_rng(0)
    for grid in [(1, 1), (1, 9), (11, 11), (30, 8)]:
        for _ in range(200):
            b = draw_box(grid, (0.01, 1.0), rng)
            assert 1 <= b.height <= grid[0] - b.top and 1 <= b.width <= grid[1] - b.left
    assert WHOLE.window((3, 17, 5)) == (slice(0, 17), slice(0, 5))


@pytest.mark.parametrize("grid", [(11, 11), (8, 30), (30, 8), (1, 1)])
def test_scale_one_is_the_whole_footprint(grid):
    assert draw_box(grid, (1.0, 1.0), np.random.default_rng(0)) == (0, 0, *grid, *grid)


def test_grids_that_do_not_nest_are_an_error():
    with pytest.raises(ValueError, match="'s', image 'sentinel2_l2a-10m': 256 x 256 pixels are not a multiple"):
        coarsest_grid(scene({10: 256, 60: 43}))
