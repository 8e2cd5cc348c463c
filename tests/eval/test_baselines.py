import copy

import pytest
import torch
import torch.nn.functional as F

from eval.baselines import BIAS, CELL, WHITENING
from eval.decoders import build_decoder
from eval.encoders import fresh, load_model, seeded
from eval.engine import evaluate

VIT = "arch=vit_tiny&patch_size=8&embed_dim=16&depth=2&num_heads=2"


def view(b=4, c=3, size=16, seed=0):
    imgs = torch.randn(b, c, size, size, generator=torch.Generator().manual_seed(seed))
    return {"imgs": imgs, "chn_ids": torch.arange(500, 500 + c).repeat(b, 1)}


def made(obj, x=None, seed=0):
    return load_model(obj, seed=seed).fitted(view() if x is None else x)


def test_random_features_by_hand():
    x, model = view(), made("rcf?features=6")
    filters = model.network.filters
    y = F.conv2d(x["imgs"], filters) + BIAS  # [4, 3, 14, 14]
    torch.testing.assert_close(model.embed(x), torch.cat([y.clamp(min=0), (-y).clamp(min=0)], 1).mean((2, 3)))
    torch.testing.assert_close(model.embed(x)[:, :3] - model.embed(x)[:, 3:], y.mean((2, 3)), atol=1e-5, rtol=0)
    assert filters.shape == (3, 3, 3, 3) and (model.name, model.role) == ("rcf?features=6", "floor")


def test_random_features_in_place():
    """Each cell is the mean of the responses inside it; borders see the image's last pixels again."""
    x, model = view(size=17), made("rcf?features=6")
    (found,) = model.maps(x)
    assert found.shape == (4, 6, 5, 5) and model.widths(x) == [6]  # 17 pixels are 5 cells of 4
    y = F.conv2d(F.pad(x["imgs"], (1, 1, 1, 1), mode="replicate"), model.network.filters) + BIAS
    torch.testing.assert_close(found[:, :3, 1, 2], y[:, :, CELL : 2 * CELL, 2 * CELL : 3 * CELL].relu().mean((2, 3)))
    torch.testing.assert_close(found[:, 3:, 4, 4], (-y[:, :, 16, 16]).relu())


@pytest.mark.parametrize("source", ["gaussian", "patches"])
def test_random_features_depend_on_the_seed_alone(source):
    obj, x = f"rcf?features=8&source={source}", view()
    a, again, b = (made(obj, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.embed(x), again.embed(x)) and a.digest == again.digest != b.digest
    assert not torch.allclose(a.embed(x), b.embed(x)) and seeded(obj)
    few, many = ({k: v[:b] for k, v in view(b=30).items()} for b in (20, 30))
    assert torch.equal(made(obj, few).embed(x), made(obj, many).embed(x))


def test_filters_from_patches_are_whitened_pieces_of_the_images():
    """All patches of an image of 3 x 3 pixels are p, the covariance p p^T and its inverse times p: p / (1 + e)."""
    x = view(b=1, c=2, size=3)
    p = x["imgs"][0].flatten()
    p = F.normalize(p - p.mean(), dim=0)
    filters = made("rcf?features=8&source=patches", x).network.filters.flatten(1)
    torch.testing.assert_close(filters, (p / (1 + WHITENING)).expand(4, -1), rtol=1e-3, atol=1e-4)
    # and those of many are patches of the images but for a linear map, the same for all
    x = view(b=2, c=1, size=8)
    filters = made("rcf?features=60&source=patches", x).network.filters.flatten(1)
    every = F.unfold(x["imgs"], 3).mT.flatten(0, 1)
    every = F.normalize(every - every.mean(1, keepdim=True))
    assert len(filters.unique(dim=0)) < 30  # 30 drawn of 72, some twice
    assert (every @ filters.T).argmax(0).unique().numel() > 15  # each answers most to a patch of its own


def test_unet_and_its_decoder_are_the_supervised_baseline():
    x, model = view(size=32), made("unet?width=4", view(size=32))
    assert (model.role, model.network.pyramid) == ("baseline", True)
    assert model.widths(x) == [4, 8, 16, 32, 32] and [m.shape[-1] for m in model.maps(x)] == [32, 16, 8, 4, 2]
    assert model.embed(x).shape == (4, 32)
    decoder = build_decoder("unet", model.widths(x), 2, pyramid=True)
    trained = model.unfreeze("finetune")
    assert len(trained) == len(list(model.network.parameters())) and model.network.training
    decoder(model.maps(x), (32, 32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained)


def test_vit_from_scratch_takes_the_bands_and_the_size_of_the_data():
    for size, bands in ((16, 3), (24, 7)):
        x = view(c=bands, size=size)
        model = made(f"vit_scratch?{VIT}", x)
        assert (model.role, model.network.native, model.widths(x)) == ("baseline", size, [16, 16])
        assert model.network.encoder.patch_embed.in_chans == bands
    a, again = made(f"vit_scratch?{VIT}", x), model
    assert torch.equal(a.embed(x), again.embed(x)) and fresh("unet?width=4") == "unet?width=4"


def test_made_for_one_data_set_a_model_can_be_made_for_another():
    model = load_model("rcf?features=4")
    assert model.fitted(view(c=2)).embed(view(c=2)).shape == model.fitted(view(c=5)).embed(view(c=5)).shape == (4, 4)
    with pytest.raises(ValueError, match="takes 2 fixed bands, the image has 5"):
        model.fitted(view(c=2)).embed(view(c=5))
    floor = load_model("pixelstats")
    assert floor.fitted(view()) is floor


def test_every_one_through_the_engine(config, tmp_path):
    """Three classes that differ in brightness and in stripes; filters without a mean see less of the first."""
    models = ["rcf?features=32", "rcf?features=32&source=patches", "pixelstats", "unet?width=4&depth=2"]
    rows = evaluate([*models, f"vit_scratch?{VIT}"], [config], tmp_path)
    assert [row["role"] for row in rows] == ["floor"] * 3 + ["baseline"] * 2
    assert rows[0]["value"] > 0.9 < rows[2]["value"] and rows[1]["value"] > 0.5
    assert all(row["normalisation"] == "dataset" for row in rows)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ("rcf?features=7", "features is an even number"),
        ("rcf?size=17", "size at most the image's 16 pixels"),
        ("rcf?source=noise", "one of gaussian, patches; given 512, 3 and 'noise'"),
        ("rcf?kernels=3", "model 'rcf[?]kernels=3': got an unexpected keyword argument 'kernels'"),
        ("unet?width", "write options as"),
        ("vit_scratch?patch_size=7", "img_size 16 is not a multiple of patch_size 7"),
        ("vit_scratch?arch=vit_mini", "unknown encoder 'vit_mini'"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(obj, message):
    with pytest.raises(ValueError, match=message):
        made(obj)


def test_what_is_trained():
    x = view(c=13, size=16)
    model = load_model("ssl4eo_dino@random?embed_dim=16&depth=2&num_heads=2&img_size=16&patch_size=8")
    before = copy.deepcopy(model.network.state_dict())
    assert model.unfreeze("frozen") == [] and not any(p.requires_grad for p in model.network.parameters())
    assert not any(m.requires_grad for m in model.maps(x)) and not model.network.training
    embedding = model.unfreeze("patch_embed")
    names = [n for n, p in model.network.named_parameters() if p.requires_grad]
    assert names == ["encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"] and not model.network.training
    sum(m.square().sum() for m in model.maps(x)).backward()
    torch.optim.SGD(embedding, 0.1).step()
    after = model.network.state_dict()
    assert [k for k in after if not torch.equal(after[k], before[k])] == names
    assert len(model.unfreeze("finetune")) == len(before) and model.network.training
    assert model.unfreeze("frozen") == [] and not model.network.training
    for obj, what in (("pixelstats", "finetune"), ("unet?width=4", "patch_embed")):
        with pytest.raises(ValueError, match=f"nothing to train as '{what}'; set task.train=frozen"):
            made(obj).unfreeze(what)
    with pytest.raises(ValueError, match="task.train is 'tune'; did you mean 'finetune'"):
        model.unfreeze("tune")
