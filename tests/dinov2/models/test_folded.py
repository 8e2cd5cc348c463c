import pytest
import torch

from dinov2.models import build_encoder, fold_encoder

IDS = [493, 559, 664, 827, -1, -6]
SIZES = {"depth": 1, "embed_dim": 16, "num_heads": 2, "attn_dim": 24, "attn_heads": 4}


def encoder(**options):
    torch.manual_seed(0)
    made = build_encoder("vit_tiny", 4, 8, **SIZES, **options).eval()
    for p in made.parameters():  # tables and tokens start at zero, which would hide them
        torch.nn.init.normal_(p, std=0.2)
    return made


def view(ids, masks=None):
    x = {"imgs": torch.randn(2, len(ids), 8, 8), "chn_ids": torch.tensor([ids] * 2)}
    return x if masks is None else x | {"spec_masks": torch.tensor([masks] * 2)}


@pytest.mark.parametrize("options", [{}, {"attn_bias": True}, {"attn_norm": True}, {"opt_coarsity": 10}])
@torch.no_grad()
def test_folded_equals_the_original(options):
    original = encoder(**options)
    folded = fold_encoder(original, IDS)
    for x in (view([664, -6, 493]), view([559]), view([0, 827, -1], [True, False, False])):
        wanted, found = original.forward_features(x), folded.forward_features(x)
        for name in ("cls", "patches"):
            torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=0)
    pairs = view([664, 493]) | {"chn_ids": torch.tensor([[[664, 12], [493, 30]]] * 2)}  # only the centres count
    torch.testing.assert_close(folded(pairs), original(pairs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_kept_patches_are_embedded_alone():
    folded, x = fold_encoder(encoder(), IDS), view([664, 493])
    every = folded.patch_embed(x)
    torch.testing.assert_close(folded.patch_embed(x, torch.tensor([[3, 1]] * 2)), every[:, [3, 1]])


def test_at_published_sizes_a_fifth_is_left():
    def count(**options) -> int:
        with torch.device("meta"):
            embed = build_encoder("vit_base", depth=1, **options).patch_embed
        return sum(x.numel() for x in embed.state_dict().values())

    for channels in (10, 202):  # Sentinel-2, EnMAP
        assert count(embed="folded", channels=list(range(channels))) < 0.22 * count()


def test_a_channel_that_is_not_folded_is_refused():
    folded = fold_encoder(encoder(), IDS)
    with pytest.raises(ValueError, match="channel 842 is not folded: known are -6, -1, 493, 559, 664, 827"):
        folded(view([493, 842]))


def test_what_cannot_be_folded():
    for other in (build_encoder("vit_tiny", 4, 8, embed="conv", depth=1), encoder(full_spectra=True)):
        with pytest.raises(ValueError, match="only an encoder with a spectral patch embedding that reads channel ids"):
            fold_encoder(other, IDS)
    with pytest.raises(ValueError, match="embedding 'folded': .* missing 1 required keyword-only argument: 'channels'"):
        build_encoder("vit_tiny", 4, 8, embed="folded")
    with pytest.raises(ValueError, match="unknown channel id -13"):
        fold_encoder(encoder(), [-13])


@torch.no_grad()
def test_terrain_is_folded_where_the_encoder_has_it():
    original, x = encoder(terrain=True), view([-13, 493])
    torch.testing.assert_close(fold_encoder(original, [-13, 493])(x), original(x), atol=1e-5, rtol=0)
