import copy
import dataclasses

import pytest
import torch

from eval.encoders import load_model
from eval.features import Trial
from eval.scoring import score, states_of
from eval.tasks.course import Course
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store
from eval.tasks.heads import Wanted, factor
from tests.dense import COUNTS, dataset

VIT = "patch_size=4&img_size=16&embed_dim=32&depth=4&num_heads=2&attn_dim=32&attn_heads=2"
CPU = torch.device("cpu")
QUICK = {"decoder": "linear", "epochs": 4, "batch_size": 4, "learning_rates": (1e-2,), "evaluate_every": 2}


def trial_of(data, model=f"random:vit_tiny?{VIT}", **options):
    return Trial.of(load_model(model), data, CPU, **{"batch_size": 4, **options})


def run(trial, *, rows=None, store=None, seed=0, **options):
    rows = range(len(trial.dataset.splits["train"])) if rows is None else rows
    (outcome,) = decoder(trial, store or Store(1 << 30), [Wanted(seed, rows)], Options(**{**QUICK, **options}))
    return outcome, list(outcome.logits)


def value(trial, logits):
    data = trial.dataset
    return score(data.kind, states_of(data, "test", logits), len(data.classes))["value"]


@pytest.mark.parametrize("name", ["linear", "mlp", "fcn", "segformer", "upernet", "muster", "unet"])
def test_every_decoder_learns_blocks_that_a_pixel_tells_apart(name):
    trial = trial_of(dataset(), f"random:vit_tiny?{VIT}")
    small = {"fcn": {"channels": 16, "convs": 1}, "segformer": {"channels": 16}, "upernet": {"channels": 16}}
    small |= {"muster": {"channels": 16, "window": 4, "heads": [8, 4, 2, 1]}, "mlp": {"hidden": [16]}}
    _, logits = run(trial, decoder=name, decoder_options=small.get(name), epochs=25, learning_rates=(3e-3,))
    assert value(trial, logits) > 0.7


@pytest.mark.parametrize(("crop", "windows"), [("none", 4), ("random", 1)])
def test_whole_images_are_learnt_from_in_the_windows_of_the_test(crop, windows):
    trial = trial_of(dataset(size=(24, 24)), sizing="tile")
    course = Course(trial, Store(1 << 30), Options(**{**QUICK, "crop": crop}), "frozen")
    (shown,), tested = course.shown([[0, 1]], [1]), next(iter(course.encodings("val")))
    assert shown.features[0].shape[1] == windows and tested.features[0].shape[1] == 4
    assert crop == "random" or (shown.window == tested.window == 16 and shown.size == tested.size == (24, 24))


def test_an_encoder_that_learns_does_so_through_windows():
    trial = trial_of(dataset(size=(24, 24)), sizing="tile")
    _, logits = run(trial, train="finetune", epochs=2)
    assert all(x.shape[2:] == (24, 24) for x in logits)


def test_pixels_separate_all_of_them_and_random_maps_stay_at_chance():
    data = dataset(counts={"train": 24, "val": 8, "test": 24}, size=(8, 8))
    trial = trial_of(data, "pixelstats")
    _, logits = run(trial, epochs=20, learning_rates=(0.1,))
    assert value(trial, logits) == 1.0
    draw = torch.Generator().manual_seed(0)
    splits = {
        name: type(split)(split.keys, None, split.__getitem__, maps_at_random(len(split), draw))
        for name, split in data.splits.items()
    }
    trial = trial_of(dataclasses.replace(data, splits=splits), "pixelstats")
    _, logits = run(trial, epochs=5)
    found = score("segmentation", states_of(trial.dataset, "test", logits), 3, resamples=200)
    accuracy = found["metrics"]["overall_accuracy"]
    assert abs(accuracy - 1 / 3) < 0.05


def maps_at_random(count, draw):
    maps = torch.randint(3, (count, 8, 8), generator=draw).numpy()
    return lambda i: maps[i]


def weights(model):
    return {k: x.clone() for k, x in model.network.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"crop": "random", "crop_size": 8}])
def test_frozen_means_frozen(options):
    trial = trial_of(dataset(), "unet?width=4&depth=2")
    frozen = dataclasses.replace(trial, model=dataclasses.replace(trial.model, role="floor"))  # with batch statistics
    before = weights(frozen.model)
    outcome, _ = run(frozen, decoder="unet", **options)
    after = frozen.model.network.state_dict()
    assert outcome.trained[0] is frozen.model
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in frozen.model.network.parameters())


@pytest.mark.parametrize("what", ["finetune", "patch_embed"])
def test_what_is_trained_changes_and_the_callers_encoder_stays(what):
    trial = trial_of(dataset())
    before = weights(trial.model)
    outcome, _ = run(trial, train=what, learning_rates=(1e-3, 1e-2))
    after = outcome.trained[0].network.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and (what == "finetune" or all("patch_embed" in k for k in changed))
    assert all(torch.equal(x, trial.model.network.state_dict()[k]) for k, x in before.items())


def test_the_encoders_rate_has_its_factor():
    trial = trial_of(dataset())
    before = weights(trial.model)
    outcome, _ = run(trial, train="finetune", encoder_lr=0.0)
    assert all(torch.equal(x, outcome.trained[0].network.state_dict()[k]) for k, x in before.items())


@pytest.mark.parametrize("memory", [1 << 30, 0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop": "random", "crop_size": 8},
        {"flip": True},
        {"decoder": "fcn", "decoder_options": {"channels": 8, "convs": 1}},
    ],
)
def test_heads_side_by_side_are_those_that_learn_alone(options, memory):
    trial, given = trial_of(dataset()), Options(**{**QUICK, **options, "learning_rates": (1e-3, 1e-2)})
    wanted = [Wanted(3, range(12)), Wanted(4, range(12)), Wanted(3, [0, 4, 5, 8, 11])]  # seeds, and few labels
    together = decoder(trial, Store(memory), wanted, given)
    for one, beside in zip(wanted, together, strict=True):
        (alone,) = decoder(trial, Store(memory), [one], given)
        assert alone.chosen == beside.chosen and alone.curve == beside.curve
        (_, a), (_, b) = alone.trained, beside.trained
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    rates = [dataclasses.replace(given, learning_rates=(rate,)) for rate in given.learning_rates]
    single = [decoder(trial, Store(memory), wanted[:1], one)[0] for one in rates]
    best = max(single, key=lambda outcome: outcome.chosen["val_miou"])
    assert best.chosen == together[0].chosen and best.curve == together[0].curve


def test_the_encoder_looks_once_at_a_training_image_in_an_epoch():
    trial, seen = trial_of(dataset()), []
    maps = trial.model.network.maps
    trial.model.network.maps = lambda x: seen.append(len(x["imgs"])) or maps(x)
    wanted = [Wanted(seed, range(12)) for seed in range(3)]
    given = Options(**{**QUICK, "learning_rates": (1e-3, 1e-2), "crop": "random", "crop_size": 8, "evaluate_every": 9})
    decoder(trial, Store(1 << 30), wanted, given)
    assert sum(seen) == 1 + 4 * 12 + 5  # widths, four epochs, one validation


@pytest.mark.parametrize(
    "options", [{}, {"neck": "ltae", "neck_options": {"heads": 4}}, {"crop": "random", "crop_size": 8}]
)
def test_what_is_kept_in_memory_changes_nothing(options):
    data = dataset(frames=3) if "neck" in options else dataset()
    trial = trial_of(data)
    kept, without = Store(1 << 30), Store(0)
    (a, x), (b, y) = (run(trial, store=store, **options) for store in (kept, without))
    assert a.chosen == b.chosen and all(torch.allclose(p, q, atol=1e-5) for p, q in zip(x, y, strict=True))
    assert {key[-2] for key in kept.held} == {"val", "test", "crops" if "crop" in options else "train"}
    assert not without.held


def test_the_best_by_validation_is_tested_and_ties_go_to_the_first():
    trial = trial_of(dataset(), "pixelstats")
    outcome, logits = run(trial, epochs=10, learning_rates=(1e-9, 0.1, 0.2))
    assert outcome.chosen["learning_rate"] == 0.1 and outcome.chosen["epoch"] < 10
    curve = outcome.curve["val_miou"]
    assert outcome.chosen["val_miou"] == max(curve) and outcome.curve["epoch"] == [2, 4, 6, 8, 10]
    assert value(trial, logits) == 1.0


def test_a_rate_that_diverges_leaves_the_race_and_all_of_them_end_it():
    trial = trial_of(dataset("regression"), "pixelstats")
    outcome, _ = run(trial, learning_rates=(1e30, 1e-2))
    assert outcome.chosen["learning_rate"] == 1e-2
    with pytest.raises(FloatingPointError, match=r"learning_rates \[1e\+30\]: the loss was not finite"):
        run(trial, learning_rates=(1e30,))


@pytest.mark.parametrize("side", [None, 8])
@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        ("pixelstats", "linear"),
        ("rcf?features=4", "fcn"),
        ("unet?width=4&depth=2", "unet"),
        ("vit_scratch?arch=vit_tiny&patch_size=4&embed_dim=16&depth=1&num_heads=2", "linear"),
    ],
)
def test_floors_and_baselines_run_where_encoders_see_tiles(model, decoder, side):
    trial = trial_of(dataset(), model, sizing="tile", window=side)
    options = {"decoder_options": {"channels": 8, "convs": 1}} if decoder == "fcn" else {}
    _, logits = run(trial, decoder=decoder, crop="random", crop_size=side, epochs=1, **options)
    assert trial.joined.sizing == (f"tiles of {side}" if side else "whole images")
    assert trial.example["imgs"].shape[-1] == (side or 16) and torch.cat(logits).shape[-2:] == (16, 16)


@pytest.mark.parametrize("train", ["finetune", "scratch", "patch_embed"])
def test_a_rate_that_diverges_leaves_the_race_of_an_encoder_that_learns_too(train):
    trial = trial_of(dataset())
    outcome, logits = run(trial, train=train, epochs=1, evaluate_every=1, learning_rates=(1e30, 1e-3))
    assert outcome.chosen["learning_rate"] == 1e-3 and all(x.isfinite().all() for x in logits)
    with pytest.raises(FloatingPointError, match="the loss was not finite at any"):
        run(trial, train=train, epochs=2, learning_rates=(1e30, 1e29))


def test_poisoned_test_maps_change_nothing_that_is_chosen():
    data = dataset()
    test = data.splits["test"]
    poisoned = type(test)(test.keys, None, test.__getitem__, lambda i: (test.target(i) + 1) % 3)
    one, two = (trial_of(d) for d in (data, dataclasses.replace(data, splits={**data.splits, "test": poisoned})))
    (a, x), (b, y) = run(one, learning_rates=(1e-3, 1e-2)), run(two, learning_rates=(1e-3, 1e-2))
    assert a.chosen == b.chosen and a.curve == b.curve
    assert all(torch.equal(p, q) for p, q in zip(x, y, strict=True))
    assert value(one, x) != value(two, y)


def test_values_are_predicted_in_their_unit():
    for dense, name in ((True, "linear"), (False, "linear_classifier")):
        trial = trial_of(dataset("regression", dense=dense), "pixelstats")
        outcome, logits = run(trial, decoder=name, epochs=40, learning_rates=(0.03,))
        assert value(trial, logits) < 1.0  # metres; they run from 0 to 20
        assert outcome.chosen["val_rmse"] == pytest.approx(min(outcome.curve["val_rmse"]))


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_labels_of_images_by_a_decoder(kind):
    trial = trial_of(dataset(kind, dense=False, counts={"train": 40, "val": 20, "test": 20}), "pixelstats")
    _, logits = run(trial, decoder="linear_classifier", epochs=60, learning_rates=(0.3,))
    assert logits[0].shape == (4, 3) and value(trial, logits) > (0.6 if kind == "classification" else 0.8)


@pytest.mark.parametrize("neck", ["ltae", "linear", "stack"])
def test_series_of_different_length(neck):
    trial = trial_of(dataset(frames=3))
    options = {"heads": 4} if neck == "ltae" else None
    _, logits = run(trial, neck=neck, neck_options=options, epochs=20)
    assert value(trial, logits) > 0.7


@pytest.mark.parametrize(("neck", "loss"), [("difference", "bce"), ("concat", "cross_entropy")])
def test_change_between_two_images(neck, loss):
    trial = trial_of(dataset(frames=2, pair=True), "pixelstats")
    _, logits = run(trial, neck=neck, loss=loss, epochs=30, learning_rates=(0.1,))
    assert logits[0].shape[1] == (1 if loss == "bce" else 2) and value(trial, logits) > 0.95


def test_unet_is_trained_whole_whatever_is_said():
    trial = trial_of(dataset(), "unet?width=4&depth=2")
    outcome, logits = run(trial, decoder="unet", train="frozen", epochs=20)
    before, after = trial.model.network.state_dict(), outcome.trained[0].network.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert value(trial, logits) > 0.8


def test_few_rows_are_all_that_is_learnt_from():
    data = dataset()
    train = data.splits["train"]
    seen = set()

    def target(i):
        seen.add(i)
        return train.target(i)

    watched = type(train)(train.keys, None, train.__getitem__, target)
    trial = trial_of(dataclasses.replace(data, splits={**data.splits, "train": watched}))
    seen.clear()
    run(trial, rows=[1, 5, 7], crop="random", crop_size=8, loss="weighted_cross_entropy")
    assert seen == {1, 5, 7}


def test_windows_cover_images_of_several_sizes():
    sizes = [(16, 24), (16, 24), (24, 16), (40, 16), (16, 16)]
    data = dataset(sizes=sizes, counts=dict.fromkeys(COUNTS, 5))
    trial = trial_of(data, sizing="tile")
    assert trial.joined.window == 16
    _, logits = run(trial, crop="focus", epochs=40)
    assert [tuple(x.shape[2:]) for x in logits] == [(16, 24), (24, 16), (40, 16), (16, 16)]
    assert value(trial, logits) > 0.6
    with pytest.raises(ValueError, match="cannot be one batch: set task.crop=random"):
        run(trial_of(data), batch_size=5)


def test_the_same_seed_is_the_same_run_and_another_is_another():
    trial = trial_of(dataset())
    options = {"crop": "random", "crop_size": 8}
    (_, a), (_, b), (_, c) = (run(trial, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[0], c[0])


def test_a_deep_copy_of_the_encoder_learns_alone():
    trial = trial_of(dataset())
    twin = dataclasses.replace(trial, model=copy.deepcopy(trial.model))
    (_, a), (_, b) = (run(t, train="finetune") for t in (trial, twin))
    assert torch.equal(a[0], b[0])


def test_rates_follow_the_schedule_by_hand():
    steps = [factor(i, schedule="steps", steps=10, warmup=0) for i in range(10)]
    assert steps == pytest.approx([1.0] * 6 + [0.1] * 3 + [0.01])
    linear = [factor(i, schedule="linear", steps=10, warmup=4) for i in range(11)]
    warm = [(1 - i / 10) * (1 - (1 - i / 4) * (1 - 1e-6)) for i in range(4)]  # mmcv's poly of power 1 and its warm-up
    assert linear == pytest.approx([*warm, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_optimiser_and_schedule_are_those_asked_for():
    trial = trial_of(dataset(), "pixelstats")
    given = {"optimizer": "adam", "weight_decay": 0.0, "schedule": "linear", "epochs": 2}
    course = Course(trial, Store(1 << 30), Options(**{**QUICK, **given}), "frozen")
    (learner,) = course.run([Wanted(0, range(12))], [1e-2])
    assert type(learner.optimizer) is torch.optim.Adam and learner.schedule.get_last_lr() == [0.0]  # 6 steps of 6
    plain = Course(trial, Store(), Options(**QUICK), "frozen").group(Wanted(0, range(4)), [1e-2])
    assert type(plain.learners[0].optimizer) is torch.optim.AdamW


def test_overlapping_windows_are_as_far_apart_as_said():
    trial = trial_of(dataset(size=(24, 24)), sizing="tile", stride=4)
    course = Course(trial, Store(1 << 30), Options(**QUICK), "frozen")
    assert next(iter(course.encodings("val"))).features[0].shape[1] == 9  # from 0, 4 and 8 in both directions
    with pytest.raises(ValueError, match="model.stride is 17: it goes with model.size=tile and is at most"):
        trial_of(dataset(size=(24, 24)), sizing="tile", stride=17)
    with pytest.raises(ValueError, match="model.stride is 8: it goes with model.size=tile"):
        trial_of(dataset(size=(24, 24)), stride=8)


def test_statistics_are_those_asked_for():
    data = dataset()
    assert trial_of(data, normalisation="dataset").joined.norm == data.normalisation()
    with pytest.raises(ValueError, match="model.normalisation is 'data'; did you mean 'dataset'"):
        trial_of(data, normalisation="data")
    with pytest.raises(ValueError, match="model.normalisation=dataset: .* takes no standardised values, but 0 to 1"):
        trial_of(data, "ssl4eo_moco@random?depth=1", normalisation="dataset", missing="zero")
