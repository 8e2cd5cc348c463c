import pytest
import torch

from dinov2.models.patch import ConvPatchEmbed, patchify


def test_patches_are_row_major() -> None:
    imgs = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patchify(imgs, 2)  # [2, 6, 3, 4]
    assert torch.equal(patches[1, 4, 2], imgs[1, 2, 2:4, 2:4].flatten())  # second row, second column


def test_kept_patches() -> None:
    imgs, keep = torch.randn(2, 3, 4, 6), torch.tensor([[5, 0], [2, 3]])
    kept = patchify(imgs, 2, keep)
    for b in range(2):
        assert torch.equal(kept[b], patchify(imgs, 2)[b, keep[b]])


def test_equals_the_convolution() -> None:
    embed = ConvPatchEmbed(8, 4, in_chans=5)
    imgs = torch.randn(2, 5, 8, 12)
    torch.testing.assert_close(embed(imgs), embed.proj(imgs).flatten(2).mT)


def test_dictionary_with_padding_counts_hidden_channels_as_zero() -> None:
    embed = ConvPatchEmbed(8, 4, in_chans=3)
    x = {"imgs": torch.randn(2, 3, 8, 8), "spec_masks": torch.tensor([[False, True, False], [False] * 3])}
    zeroed = x["imgs"].clone()
    zeroed[0, 1] = 0
    torch.testing.assert_close(embed(x), embed(zeroed))


def test_other_number_of_bands_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 3 fixed bands, the image has 4"):
        ConvPatchEmbed(8, 4)(torch.randn(1, 4, 8, 8))


def test_patch_must_divide() -> None:
    with pytest.raises(ValueError, match="8 x 10 pixels: the patch size 4"):
        patchify(torch.zeros(1, 1, 8, 10), 4)
