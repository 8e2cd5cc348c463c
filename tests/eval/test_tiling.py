import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.tiling import corners, crop, slide, starts, stitch, taper

SHAPES = [(24, 40), (40, 24), (16, 16), (7, 50), (50, 7), (5, 3), (17, 33)]


@given(size=st.integers(1, 300), tile=st.integers(1, 64), data=st.data())
def test_starts_cover_evenly_with_as_few_tiles_as_possible(size, tile, data):
    stride = data.draw(st.integers(1, tile))
    found = starts(size, tile, stride)
    covered = {p for s in found for p in range(s, s + tile)}
    assert covered >= set(range(size))
    assert found[0] == 0 and (size <= tile or found[-1] == size - tile)
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert all(0 < gap <= stride for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert len(found) == 1 + -(-max(size - tile, 0) // stride)


def test_starts_by_hand():
    assert starts(40, 16) == [0, 12, 24] and starts(35, 16) == [0, 10, 19] and starts(30, 16, 8) == [0, 7, 14]


@pytest.mark.parametrize("stride", [0, 9])
def test_stride_that_leaves_gaps_is_an_error(stride):
    with pytest.raises(ValueError, match=f"stride {stride} must lie between 1 and the tile's size, 8"):
        starts(20, 8, stride)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [None, 5, 1])
@pytest.mark.parametrize("weight", [None, taper(16, 4)])
def test_what_leaves_every_pixel_alone_comes_back_in_place(shape, stride, weight):
    image = torch.randn(2, 3, *shape)
    out = slide(lambda tiles, which: tiles, image, 16, stride, batch=3, weight=weight)
    torch.testing.assert_close(out, image)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_changes_nothing(shape):
    image = torch.randn(3, 2, *shape)

    def position(tiles, which):  # depends on the place in the tile, so overlaps differ
        return tiles.cumsum(-1).cumsum(-2)

    one = slide(position, image, 16, 7, batch=1)
    for batch in (2, 5, 1000):
        assert torch.equal(slide(position, image, 16, 7, batch=batch), one)


def test_each_tile_knows_its_image_and_no_batch_is_larger_than_asked():
    sizes = []

    def index(tiles, which):
        sizes.append(len(tiles))
        return which.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float()

    out = slide(index, torch.zeros(3, 1, 20, 12), 8, batch=4)
    assert out.flatten(1).unique(dim=1).tolist() == [[0.0], [1.0], [2.0]]
    assert sizes == [4, 4, 4, 4, 2]  # 3 images of 3 x 2 windows


def test_overlap_is_the_mean_by_hand():
    calls = iter([0.0, 1.0])
    out = slide(lambda tiles, which: torch.full((1, 1, 4, 4), next(calls)), torch.zeros(1, 1, 4, 6), 4, batch=1)
    assert out[0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_taper_has_no_seam():
    weight = taper(8, 3)
    assert weight.min() > 0 and weight.max() == 1 and torch.equal(weight, weight.flip(0, 1)) and weight[0, 0] == 1 / 16

    def row(weight):
        calls = iter([0.0, 1.0])
        fn = lambda tiles, which: torch.full((1, 1, 8, 8), next(calls))  # noqa: E731
        return slide(fn, torch.zeros(1, 1, 8, 12), 8, batch=1, weight=weight)[0, 0, 4]

    assert row(weight).diff().abs().max() < 0.25 < row(None).diff().abs().max()
    assert (row(weight).diff() >= 0).all()


def test_border_pixels_are_repeated_beyond_the_image():
    image = torch.arange(6.0).view(1, 2, 3)
    assert crop(image, (0, 0), 4)[0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert crop(image, (1, 1), 2)[0].tolist() == [[4, 5], [4, 5]]


def test_time_series_are_tiled_too():
    image = torch.randn(2, 4, 3, 20, 10)  # [B, T, C, H, W]
    out = slide(lambda tiles, which: tiles[:, -1], image, 8, 6)
    torch.testing.assert_close(out, image[:, -1])


def test_strips_leave_as_soon_as_they_are_finished():
    height, width, tile = 40, 16, 8
    given_out = []

    def tiles():
        for corner in corners(height, width, tile, 4):
            given_out.append(corner)
            yield corner, torch.ones(1, tile, tile)

    rows, seen = [], []
    for strip in stitch(tiles(), height, width, tile):
        rows.append(strip.shape[1])
        seen.append(len(given_out))
        assert strip.shape[::2] == (1, width) and (strip == 1).all()
    assert sum(rows) == height and max(rows) <= tile
    # the first strip leaves at the first window of the second row: memory holds one row of tiles whatever the height
    assert seen[0] == len(starts(width, tile, 4)) + 1 and seen == sorted(set(seen))


def test_half_precision_is_summed_in_full():
    out = slide(lambda tiles, which: tiles.bfloat16(), torch.ones(1, 1, 9, 9), 8, 1)
    assert out.dtype == torch.float32 and (out == 1).all()


def test_output_of_another_size_is_an_error():
    with pytest.raises(AssertionError, match="outputs of \\(4, 4\\) for tiles of 8 pixels"):
        slide(lambda tiles, which: tiles[..., :4, :4], torch.ones(1, 1, 9, 9), 8)
