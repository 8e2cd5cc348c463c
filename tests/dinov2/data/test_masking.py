import numpy as np
import pytest

from dinov2.data.batch import MaskSpec
from dinov2.data.masking import block_mask, draw_mask, random_mask


@pytest.mark.parametrize("side,ratio,hidden", [(14, 0.75, 147), (8, 0.75, 48), (7, 0.6, 29), (4, 0.0, 0), (4, 1.0, 16)])
def test_random_hides_exactly_the_ratio(side, ratio, hidden):
    for seed in range(5):
        assert random_mask(side, ratio, np.random.default_rng(seed)).sum() == hidden


def test_random_hides_every_patch_equally_often():
    rng = np.random.default_rng(0)
    share = np.mean([random_mask(4, 0.75, rng) for _ in range(4000)], 0)
    assert np.abs(share - 0.75).max() < 5 * np.sqrt(0.75 * 0.25 / 4000)


def test_block_masks_the_given_share_of_samples_within_the_ratios():
    rng = np.random.default_rng(0)
    hidden = np.array([block_mask(16, 0.5, (0.1, 0.5), rng).mean() for _ in range(2000)])
    masked = hidden[hidden > 0]
    assert abs(len(masked) / 2000 - 0.5) < 5 * 0.5 / np.sqrt(2000)
    assert masked.max() <= 0.5
    assert 0.27 < masked.mean() < 0.31  # uniform in 0.1 .. 0.5 has mean 0.3; what does not fit is left out
    assert np.quantile(masked, 0.02) > 0.08


def test_overlapping_blocks_are_counted_once():
    """The ratio is reached although blocks overlap; now and then the last patches find no place in ten attempts."""
    rng = np.random.default_rng(0)
    hidden = [block_mask(16, 1.0, (0.5, 0.5), rng).sum() for _ in range(100)]
    assert max(hidden) == 128 and np.mean(hidden) > 127


@pytest.mark.parametrize("side", [2, 4, 7])
def test_small_grids_are_masked_too(side):
    rng = np.random.default_rng(side)
    counts = [block_mask(side, 1.0, (0.3, 0.5), rng).sum() for _ in range(100)]
    assert min(counts) >= 1 and max(counts) <= 0.5 * side * side


def test_blocks_are_blocks():
    """Hidden patches of a block mask touch one another far more often than those of a random one."""

    def neighbours(mask):
        square = mask.reshape(16, 16)
        return (square[1:] & square[:-1]).sum() / square.sum()

    rng = np.random.default_rng(0)
    assert np.mean([neighbours(block_mask(16, 1.0, (0.3, 0.3), rng)) for _ in range(50)]) > 0.6
    assert np.mean([neighbours(random_mask(16, 0.3, rng)) for _ in range(50)]) < 0.35


def test_unknown_kind_and_patch_size_that_does_not_divide_are_errors():
    with pytest.raises(ValueError, match="'rows' is neither 'random' nor 'block'"):
        draw_mask(MaskSpec("rows", 8), 64, np.random.default_rng(0))
    with pytest.raises(ValueError, match="64 is not a multiple of the mask's patch size 14"):
        draw_mask(MaskSpec("random", 14), 64, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"ratio": 0.0}, {"probability": 1.5}, {"ratio_range": (0.5, 0.1)}])
def test_shares_that_leave_nothing_or_make_no_sense_are_one_sentence(wrong):
    with pytest.raises(ValueError, match=r"mask_ratio.* below 1.*mask_probability"):
        MaskSpec("random", 8, **wrong)
