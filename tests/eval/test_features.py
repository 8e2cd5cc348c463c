import dataclasses

import pytest
import torch

from dinov2.data.stats import Normalisation
from eval.datasets import build_dataset
from eval.encoders import load_model
from eval.features import Trial, extract
from eval.joining import joined_normalisation

CPU = torch.device("cpu")


def pooled(model, dataset, **options):
    return extract(Trial.of(model, dataset, CPU, **options))


@pytest.fixture
def dataset(shards):
    return build_dataset({"name": "shards", "root": str(shards), "label": "scene", "images": ["sentinel2_l2a"]})


def test_pixel_statistics_of_the_stored_numbers(dataset):
    trial = Trial.of(load_model("pixelstats"), dataset, CPU, batch_size=7)
    assert (trial.joined.words, trial.example["imgs"].shape) == ("dataset", (1, 3, 16, 16))
    norm, test = dataset.normalisation().table["sentinel2_l2a"], dataset.splits["test"]
    found = extract(trial)["test"]["pixels"]
    assert found.shape == (len(test), 6)
    for i in range(len(test)):
        image = torch.from_numpy(test[i].images["sentinel2_l2a-10m"].astype("float64")) / 1e4
        for c, band in enumerate(("B02", "B03", "B04")):
            mean, std = norm[band]
            assert found[i, c].item() == pytest.approx((image[c].mean().item() - mean) / std, abs=1e-3)
            assert found[i, 3 + c].item() == pytest.approx(image[c].std(correction=0).item() / std, rel=1e-3)


def test_batch_size_and_workers_do_not_matter(dataset, run):
    model = load_model(str(run))
    one, two = pooled(model, dataset, batch_size=64), pooled(model, dataset, batch_size=5, workers=1)
    for split in dataset.splits:
        for pooling, x in one[split].items():
            torch.testing.assert_close(two[split][pooling], x, rtol=1e-4, atol=1e-5)


def test_statistics_travel_with_the_checkpoint(dataset, run, shards):
    model = load_model(str(run))
    norm, word = joined_normalisation(model, dataset)
    assert (norm, word) == (model.normalisation, "checkpoint")
    stranger = Normalisation({"landsat8": {"B2": (0.1, 0.1)}}, {"landsat8": "reflectance"})
    norm, word = joined_normalisation(dataclasses.replace(model, normalisation=stranger), dataset)
    assert word == "dataset"
    assert norm.table["sentinel2_l2a"] == dataset.normalisation().table["sentinel2_l2a"]
    both = build_dataset({"name": "shards", "root": str(shards), "label": "scene"})
    known = Normalisation({"sentinel2_l2a": norm.table["sentinel2_l2a"]}, {"sentinel2_l2a": "reflectance"})
    _, word = joined_normalisation(dataclasses.replace(model, normalisation=known), both)
    assert word == "checkpoint; dataset for sentinel1_rtc"


def test_normalisation_reaches_the_pixels(dataset, run):
    model = load_model(str(run))
    norm = model.normalisation
    shifted = Normalisation(
        {s: {b: (m + 0.1, d) for b, (m, d) in t.items()} for s, t in norm.table.items()}, norm.units
    )
    one = pooled(model, dataset)["val"]["cls"]
    two = pooled(dataclasses.replace(model, normalisation=shifted), dataset)["val"]["cls"]
    assert not torch.allclose(one, two, atol=1e-3)


def test_a_model_that_gives_nan_is_named(dataset, run):
    model = load_model(str(run))
    model.network.encoder.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="model run: the cls features of sample 's0.*' are not finite"):
        pooled(model, dataset)


def test_a_reader_that_mixes_samples_up_is_caught(dataset):
    val = dataset.splits["val"]
    wrong = type(val)(val.keys, val.labels.tolist(), lambda i: val[(i + 1) % len(val)])
    with pytest.raises(AssertionError, match="asked for"):
        pooled(load_model("pixelstats"), dataclasses.replace(dataset, splits={**dataset.splits, "val": wrong}))
