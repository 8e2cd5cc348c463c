import dataclasses

import numpy as np
import pytest
import torch

from eval.encoders import load_model
from eval.features import Trial
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store
from eval.tasks.heads import Wanted
from eval.tasks.targets import check, class_shares, moments
from tests.dense import dataset

EVERYTHING = [Wanted(0, range(12))]
VIT = "patch_size=4&img_size=16&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"


def trial_of(data, sizing=None):
    return Trial.of(load_model(f"random:vit_tiny?{VIT}"), data, torch.device("cpu"), sizing=sizing, batch_size=4)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({}, {"decoder": "upernett"}, "task.decoder 'upernett' is not one of linear, .*did you mean 'upernet'"),
        ({}, {"neck": "lta"}, "task.neck 'lta' is not one of none, ltae"),
        ({}, {"train": "freeze"}, "task.train 'freeze' is not one of frozen, finetune, patch_embed, scratch"),
        ({}, {"loss": "mse"}, "task.loss 'mse' is not one of cross_entropy, weighted_cross_entropy, dice, bce"),
        ({}, {"loss": "bce"}, "task.loss=bce separates two classes; dataset blocks has 3"),
        ({}, {"crop": "centre"}, "task.crop 'centre' is not one of none, random, focus, importance"),
        ({}, {"decoder": "linear_classifier"}, "linear_classifier does not fit dataset blocks, which has a map"),
        ({"dense": False, "kind": "classification"}, {}, "one target per image: set task.decoder=linear_classifier"),
        ({"frames": 3}, {}, "task.neck=none does not fit dataset blocks, which has 3 dates: ltae, linear, stack would"),
        ({}, {"neck": "ltae"}, "task.neck=ltae does not fit dataset blocks, which has one date: none would"),
        ({"frames": 2}, {"neck": "concat"}, "task.neck=concat .* has 2 dates: ltae, linear, stack would"),
        ({}, {"crop": "random"}, "task.crop=random: say how large"),
        ({}, {"optimizer": "adamax"}, "task.optimizer 'adamax' is not one of adamw, adam"),
        ({}, {"schedule": "poly"}, "task.schedule 'poly' is not one of steps, linear"),
        ({}, {"class_weights": (1.0, 2.0, 1.0)}, "task.class_weights are 3: .* with task.loss=weighted_cross_entropy"),
        ({}, {"class_weights": (1.0, 2.0), "loss": "weighted_cross_entropy"}, "one for each of the 3 classes"),
        ({"kind": "regression"}, {"crop": "importance"}, "task.crop=importance needs a map of classes per image"),
    ],
)
def test_what_does_not_fit_is_one_sentence(data, options, message):
    with pytest.raises(ValueError, match=message):
        check(trial_of(dataset(**data)), Options(**{"decoder": "linear", **options}))


def test_a_crop_of_resized_images_is_refused():
    with pytest.raises(ValueError, match="cuts images that are resized to 16: set model.size=tile"):
        check(trial_of(dataset(size=(24, 24)), "resize"), Options(crop="random", crop_size=8))


@pytest.mark.parametrize(("model", "chosen"), [("pixelstats", "upernet"), ("rcf?features=4", "segformer")])
def test_one_map_is_not_enlarged_beyond_the_pixels(model, chosen):
    trial = Trial.of(load_model(model), dataset(), torch.device("cpu"), batch_size=4)
    with pytest.raises(ValueError, match=f"task.decoder={chosen} would .* set task.decoder to linear, mlp or fcn"):
        check(trial, Options(decoder=chosen))
    check(trial, Options(decoder="fcn"))
    check(trial_of(dataset()), Options(decoder=chosen))  # an encoder has maps of several depths


def changed(data, split, target):
    old = data.splits[split]
    return dataclasses.replace(data, splits={**data.splits, split: type(old)(old.keys, None, old.__getitem__, target)})


@pytest.mark.parametrize("crop", ["none", "random"])
def test_a_class_out_of_range_names_the_sample(crop):
    data = dataset()
    train = data.splits["train"]
    wrong = changed(data, "train", lambda i: train.target(i) + 3 * (i == 7))
    options = Options(decoder="linear", epochs=1, crop=crop, crop_size=8)
    with pytest.raises(ValueError, match="the map of sample 's0-007' holds [3-5], but there are 3 classes"):
        decoder(trial_of(wrong), Store(1 << 30), EVERYTHING, options)


def test_a_map_of_another_size_names_the_sample():
    data = dataset()
    val = data.splits["val"]
    wrong = changed(data, "val", lambda i: val.target(i)[: 16 - i])
    with pytest.raises(ValueError, match="sample 's1-001': the image has 16 x 16 pixels, its map 15x16"):
        decoder(trial_of(wrong), Store(1 << 30), EVERYTHING, Options(decoder="linear", epochs=1))


def test_maps_without_labels():
    data = dataset()
    empty = changed(data, "train", lambda i: np.full((16, 16), -1))
    with pytest.raises(ValueError, match="no pixel of its 12 training maps has a label"):
        decoder(trial_of(empty), Store(1 << 30), EVERYTHING, Options(decoder="linear", loss="weighted_cross_entropy"))


def test_dates_are_needed_by_what_uses_them():
    data = dataset(frames=3, dates=False)
    options = Options(decoder="linear", neck="ltae", neck_options={"heads": 4}, epochs=1)
    with pytest.raises(ValueError, match="task.neck=ltae needs dates, but sample 's0-0.*' of blocks has none"):
        decoder(trial_of(data), Store(1 << 30), EVERYTHING, options)
    store = Store(1 << 30)  # features that a neck without dates has left
    decoder(trial_of(data), store, EVERYTHING, dataclasses.replace(options, neck="linear", neck_options=None))
    with pytest.raises(ValueError, match="ltae needs the dates of a series"):
        decoder(trial_of(data), store, EVERYTHING, options)


def test_shares_and_moments_of_the_chosen_maps_by_hand():
    data, rows = dataset(), [2, 4]
    pixels = np.concatenate([data.splits["train"].target(i).ravel() for i in rows])
    counts = np.bincount(pixels[pixels >= 0], minlength=3)
    np.testing.assert_allclose(class_shares(data, rows), counts / counts.sum(), rtol=1e-6)
    values = dataset("regression")
    every = np.concatenate([values.splits["train"].target(i).ravel() for i in rows])
    np.testing.assert_allclose(moments(values, rows), (np.nanmean(every), np.nanstd(every)), rtol=1e-5)
