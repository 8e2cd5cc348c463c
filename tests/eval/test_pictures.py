import base64
import io

import numpy as np
import torch
from matplotlib.image import imread

from dinov2.data.stats import Normalisation
from eval.datasets import build_dataset
from eval.encoders import load_model
from eval.pictures import chart, patch_gallery, pca_colours, png, true_colour

BANDS = ["sentinel2_l2a/B02", "sentinel2_l2a/B03", "sentinel2_l2a/B04", "sentinel2_l2a/B08"]
IDS = [493, 559, 664, 827]


def decode(address):
    return imread(io.BytesIO(base64.b64decode(address.partition(",")[2])), format="png")


def test_png_keeps_its_pixels():
    image = np.linspace(0, 1, 5 * 4 * 3).reshape(5, 4, 3)
    np.testing.assert_allclose(decode(png(image))[..., :3], image, atol=0.5 / 255 + 1e-6)


def test_true_colour_takes_red_green_blue_in_physical_units():
    norm = Normalisation({"sentinel2_l2a": {b.split("/")[1]: (0.1 * i, 0.02) for i, b in enumerate(BANDS)}},
                         {"sentinel2_l2a": "reflectance"})  # fmt: skip
    physical = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # blue, green, red
    imgs = torch.cat([(physical - torch.tensor([0, 0.1, 0.2]).view(1, 3, 1, 1)) / 0.02, torch.rand(2, 1, 8, 8)], 1)
    found = true_colour({"imgs": imgs, "chn_ids": torch.tensor([IDS, IDS])}, BANDS, norm)
    assert found.shape == (2, 8, 8, 3)
    # one increasing curve for all channels: the order of all values is that of the physical ones
    wanted = physical.flip(1).permute(0, 2, 3, 1).flatten()
    kept = (found.flatten() > 0) & (found.flatten() < 1)
    order = wanted.argsort().numpy()
    assert kept.mean() > 0.9
    assert (np.diff(found.flatten()[order]) >= -1e-5).all()


def test_radar_alone_is_grey():
    norm = Normalisation({"sentinel1_rtc": {"VV": (-10.0, 3.0)}}, {"sentinel1_rtc": "db"})
    found = true_colour({"imgs": torch.randn(1, 1, 4, 4), "chn_ids": torch.tensor([[-1]])}, ["sentinel1_rtc/VV"], norm)
    np.testing.assert_allclose(found, found[..., :1].repeat(3, -1), atol=1e-6)  # pow differs in the last bit


def test_principal_components_find_the_planted_axes():
    draw = torch.Generator().manual_seed(0)
    strengths = torch.tensor([5.0, 3.0, 1.0])
    parts = torch.randn(4, 3, 6, 6, generator=draw)
    axes = torch.linalg.qr(torch.randn(16, 3, generator=draw))[0]  # [16, 3]
    features = torch.einsum("dk,bkhw->bdhw", axes * strengths, parts) + 0.01 * torch.randn(4, 16, 6, 6, generator=draw)
    found = pca_colours(features)
    for k in range(3):
        correlation = np.corrcoef(found[..., k].ravel(), parts[:, k].numpy().ravel())[0, 1]
        assert abs(correlation) > 0.95
    assert (pca_colours(features) == found).all()
    flipped = pca_colours(-features)  # the sign is fixed by the axes alone
    assert np.corrcoef(flipped[..., 0].ravel(), found[..., 0].ravel())[0, 1] < -0.95


def test_a_chart_is_the_same_bytes_again():
    curves = {"a": ([1, 2, 3], [3.0, 2.0, 1.0]), "b": ([1, 2], [0.0, 1.0])}
    assert chart(curves, "loss") == chart(curves, "loss")
    svg = base64.b64decode(chart(curves, "loss").partition(",")[2]).decode()
    assert "<svg" in svg and "dc:date" not in svg


def test_gallery_shows_one_image_per_class_to_models_with_maps(shards, run):
    dataset = build_dataset({"name": "shards", "root": str(shards), "label": "scene", "images": ["sentinel2_l2a"]})
    models = [load_model("pixelstats"), load_model(str(run)), load_model(f"random:{run}")]
    gallery = patch_gallery(models, dataset, torch.device("cpu"))
    assert gallery.captions == ["dark", "bright", "striped"]
    assert list(gallery.columns) == ["true colour", "run", "random:run"]
    assert decode(gallery.columns["true colour"][0]).shape[:2] == (16, 16)
    assert decode(gallery.columns["run"][0]).shape[:2] == (2, 2)
