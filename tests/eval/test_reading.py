import dataclasses

import numpy as np
import pytest
import torch

from eval.encoders import load_model
from eval.features import Trial, extract
from eval.reading import TARGET, VIEW, batches, steps
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store, encode
from eval.tasks.heads import Wanted
from tests.dense import COUNTS, SPEC, dataset

CPU = torch.device("cpu")
VIT = "random:vit_tiny?patch_size=4&img_size=16&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"


def trial_of(data, model="pixelstats", **options):
    return Trial.of(load_model(model), data, CPU, **{"batch_size": 2, **options})


def standardised(data, image):
    mean, std = np.array([data.normalisation().table["sentinel2_l2a"][b] for b in SPEC.bands]).T[:, :, None, None]
    return (image / 1e4 - mean) / std


@pytest.mark.parametrize("workers", [0, 1])
def test_pixels_and_maps_of_every_sample_in_order(workers):
    data = dataset()
    trial = trial_of(data, workers=workers)
    at = 0
    for batch in trial.batches("val"):
        for x, target in zip(batch.views[VIEW]["imgs"], batch.labels[TARGET], strict=True):
            sample = data.splits["val"][at].images[SPEC.key]
            np.testing.assert_allclose(x, standardised(data, sample), atol=1e-4)
            assert np.array_equal(target, data.splits["val"].target(at))
            at += 1
    assert at == 5


def test_a_series_has_its_dates_in_days_and_its_padding():
    data = dataset(frames=3)
    (batch,) = next(steps(data.splits["train"], trial_of(data).joined, CPU, [[3, 1]], frames=3))
    assert batch.keys == ["s0-003", "s0-001"] and batch.views[VIEW]["imgs"].shape == (2, 3, 3, 16, 16)
    lengths = [len(data.splits["train"][i].images[SPEC.key]) for i in (3, 1)]
    assert batch.meta["padding"].tolist() == [[t >= n for t in range(3)] for n in lengths]
    days = batch.meta["days"][~batch.meta["padding"]]
    assert set(days.tolist()) <= {7305.0, 7336.0, 7365.0}  # 1 January, February and March 2020, since 2000
    for row, (i, n) in enumerate(zip((3, 1), lengths, strict=True)):
        image = data.splits["train"][i].images[SPEC.key]
        for t in range(3):  # the last date goes on
            wanted = standardised(data, image[min(t, n - 1)])
            np.testing.assert_allclose(batch.views[VIEW]["imgs"][row, t], wanted, atol=1e-4)


def test_pooled_features_of_series_are_means_over_their_dates_and_of_pairs_both():
    series = dataset("classification", dense=False, frames=3)
    found = extract(trial_of(series))["val"]["pixels"]
    for i in range(5):
        image = series.splits["val"][i].images[SPEC.key]
        each = [standardised(series, date).mean((1, 2)) for date in image]
        np.testing.assert_allclose(found[i, :3], np.mean(each, 0), atol=1e-4)
    pair = dataset("classification", dense=False, frames=2, pair=True)
    found = extract(trial_of(pair))["val"]["pixels"]
    before, after = (standardised(pair, date).mean((1, 2)) for date in pair.splits["val"][0].images[SPEC.key])
    np.testing.assert_allclose(found[0, [0, 1, 2, 6, 7, 8]], [*before, *after], atol=1e-4)


def head_and_predictions(data, neck, **options):
    trial = trial_of(data, VIT)
    (outcome,) = decoder(
        trial,
        Store(),
        [Wanted(0, range(12))],
        Options(decoder="linear", neck=neck, epochs=1, neck_options=options),
    )
    head = outcome.trained[1].eval()

    def predict(trial):
        made = (encode(trial.model, b.views[VIEW], (16, 16), **b.meta).predict(head) for b in trial.batches("test"))
        return torch.cat(list(made))

    return head, trial, predict


def test_more_padding_changes_nothing():
    data = dataset(frames=2)
    longer = dataclasses.replace(data, frames=4)  # of which no sample has more than two
    _, trial, predict = head_and_predictions(data, "ltae", heads=4)
    torch.testing.assert_close(predict(trial), predict(trial_of(longer, VIT)), rtol=1e-4, atol=1e-4)
    head, trial, predict = head_and_predictions(longer, "linear")
    before = predict(trial)
    head.neck.over_time.weight.data[:, 2:] += 9.0
    torch.testing.assert_close(predict(trial), before)
    head.neck.over_time.weight.data[:, :2] += 9.0
    assert not torch.allclose(predict(trial), before)


def test_an_encoder_of_series_gets_all_dates_at_once():
    data = dataset(frames=3)
    trial = trial_of(data, "prithvi@random?embed_dim=48&depth=2&num_heads=2&img_size=16&patch_size=8", missing="zero")
    seen = []
    maps = trial.model.network.maps
    trial.model.network.maps = lambda x: seen.append(tuple(x["imgs"].shape)) or maps(x)
    (outcome,) = decoder(trial, Store(), [Wanted(0, range(12))], Options(decoder="linear", neck="linear", epochs=1))
    assert {shape[1:] for shape in seen[1:]} == {(6, 3, 16, 16)}
    assert next(iter(outcome.logits)).shape == (2, 3, 16, 16)


def test_images_of_several_sizes_come_in_groups_of_neighbours():
    sizes = [(16, 16), (16, 16), (24, 16), (16, 16), (16, 16)]
    data = dataset(sizes=sizes, counts=dict.fromkeys(COUNTS, 5))
    found = [
        (batch.size, tuple(batch.views[VIEW]["imgs"].shape[2:]))
        for batch in batches(data.splits["val"], trial_of(data).joined, CPU, batch_size=4, workers=0)
    ]
    assert found == [(2, (16, 16)), (1, (24, 16)), (1, (16, 16)), (1, (16, 16))]


def test_coarse_bands_are_seen_on_the_maps_grid():
    data = dataset()
    half = dataclasses.replace(SPEC, gsd_m=20)

    def coarse(split):
        def read(i):
            sample = split[i]
            small = {half.key: np.ascontiguousarray(sample.images[SPEC.key][:, ::2, ::2])}
            return dataclasses.replace(
                sample, images={**sample.images, **small}, specs={SPEC.key: SPEC, half.key: half}
            )

        return type(split)(split.keys, None, read, split.target)

    splits = {name: coarse(split) for name, split in data.splits.items()}
    trial = trial_of(dataclasses.replace(data, splits=splits, specs=(half,)))
    assert next(trial.batches("val")).views[VIEW]["imgs"].shape == (2, 3, 16, 16)
