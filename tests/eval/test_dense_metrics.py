import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import multilabel_average_precision

from eval.dense_metrics import (
    bootstrap,
    bootstrap_precision,
    confusions,
    interval,
    multilabel_scores,
    predicted_classes,
    regression_scores,
    resampled,
    residuals,
    segmentation_scores,
    top_k_accuracy,
)

# one image of 8 pixels: class 3 is nowhere, class 2 is predicted only
TRUE = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 255]])
GUESS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3]])


def test_scores_by_hand():
    confusion = confusions(GUESS, TRUE, 4, ignore_index=255)[0]
    assert confusion.tolist() == [[3, 1, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = segmentation_scores(confusion)
    nan = torch.nan
    expected = {
        "iou": [3 / 4, 1 / 4, 0, nan],
        "f1": [6 / 7, 2 / 5, 0, nan],
        "precision": [1, 1 / 2, 0, nan],
        "recall": [3 / 4, 1 / 3, nan, nan],
        "support": [4, 3, 0, 0],
        "miou": (3 / 4 + 1 / 4 + 0) / 3,  # class 2 was predicted: wrong; class 3 is absent: left out
        "mean_f1": (6 / 7 + 2 / 5 + 0) / 3,
        "mean_accuracy": (3 / 4 + 1 / 3) / 2,
        "overall_accuracy": 4 / 7,
    }
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), value, err_msg=name)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_scikit_learn(classes):
    draw = torch.Generator().manual_seed(classes)
    true, guess = (torch.randint(classes, (3, 6, 7), generator=draw) for _ in range(2))
    scores = segmentation_scores(confusions(guess, true, classes).sum(0))
    flat = true.flatten().numpy(), guess.flatten().numpy()
    for name, score in {"iou": "jaccard", "f1": "f1", "precision": "precision", "recall": "recall"}.items():
        np.testing.assert_allclose(scores[name], getattr(sklearn_metrics, f"{score}_score")(*flat, average=None))
    assert scores["overall_accuracy"].item() == pytest.approx(sklearn_metrics.accuracy_score(*flat))
    assert scores["mean_accuracy"].item() == pytest.approx(sklearn_metrics.balanced_accuracy_score(*flat))


def test_a_class_that_is_ignored_leaves_the_means_but_its_predictions_stay_wrong():
    true, guess = torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[0, 1, 1, 0, 0]])
    scores = segmentation_scores(confusions(guess, true, 3, ignore_index=0)[0], ignore_index=0)
    np.testing.assert_allclose(scores["iou"], [np.nan, 1 / 2, 0])
    assert scores["miou"].item() == pytest.approx(1 / 4) and scores["overall_accuracy"].item() == pytest.approx(1 / 3)


def test_one_logit_is_a_threshold_and_several_a_choice():
    assert predicted_classes(torch.tensor([[[-1.0, 0.3, 0.0]]])).tolist() == [[0, 1, 0]]
    assert predicted_classes(torch.tensor([[[1.0, 0.0], [0.5, 3.0]]])).tolist() == [[0, 1]]


def test_bad_masks_are_named():
    with pytest.raises(ValueError, match=r"shape \(1, 4\) for a mask of shape \(1, 8\)"):
        confusions(GUESS[:, :4], TRUE, 4)
    with pytest.raises(ValueError, match="labels run from 0 to 255, but there are 4 classes"):
        confusions(GUESS, TRUE, 4)


def test_regression_is_that_of_scikit_learn_without_the_unknown():
    draw = torch.Generator().manual_seed(0)
    target = 100 + torch.randn(4, 5, 6, generator=draw)
    guess = target + torch.randn(4, 5, 6, generator=draw)
    target[0, 0], target[3] = torch.nan, torch.nan
    scores = regression_scores(residuals(guess, target).sum(0))
    known = target.isfinite()
    pair = target[known].double().numpy(), guess[known].double().numpy()
    assert scores["mse"].item() == pytest.approx(sklearn_metrics.mean_squared_error(*pair), rel=1e-5)
    assert scores["rmse"].item() == pytest.approx(sklearn_metrics.mean_squared_error(*pair) ** 0.5, rel=1e-5)
    assert scores["mae"].item() == pytest.approx(sklearn_metrics.mean_absolute_error(*pair), rel=1e-5)
    assert scores["r2"].item() == pytest.approx(sklearn_metrics.r2_score(*pair), rel=1e-5)


def test_means_of_images_and_what_exceeds_a_threshold_by_hand():
    nan = torch.nan
    target = torch.tensor([[0.0, 0.9, 0.6, nan], [0.0, 0.0, 0.0, 0.4], [nan] * 4])
    guess = torch.tensor([[0.1, 0.8, 0.2, 9.0], [0.6, 0.0, 0.0, 0.4], [1.0] * 4])
    found = regression_scores(residuals(guess, target, 0.5).sum(0))
    # images 1 and 2: means 1.1 / 3 for 1.5 / 3, and 1.0 / 4 for 0.4 / 4; one right, one wrong, one missed
    assert found["image_mae"].item() == pytest.approx((0.4 / 3 + 0.6 / 4) / 2)
    assert [found[k].item() for k in ("precision", "recall", "f1")] == pytest.approx([0.5, 0.5, 0.5])
    assert found["zero_mse"].item() == pytest.approx((0.9**2 + 0.6**2 + 0.4**2) / 7)
    swapped = regression_scores(residuals(guess, torch.where(target == 0.6, 0.0, target), 0.5).sum(0))
    assert (swapped["precision"].item(), swapped["recall"].item()) == pytest.approx((0.5, 1.0))


def test_r2_of_a_constant_target_is_undefined():
    constant = torch.linspace(0.1, 300, 500)[:, None].expand(500, 9)  # one of 500 images is the whole set at a time
    scores = regression_scores(residuals(torch.randn(500, 9), constant))
    assert scores["r2"].isnan().all() and scores["mae"].isfinite().all()


def test_several_labels_are_those_of_the_libraries():
    draw = np.random.default_rng(0)
    logits, target = draw.normal(size=(40, 6)), draw.integers(0, 2, (40, 6))
    target[:, 5] = 0  # a label that never occurs
    logits[:, 5] = -1  # and is never predicted
    found = multilabel_scores(torch.tensor(logits), torch.tensor(target))
    guess = (logits > 0).astype(int)
    expected = {
        "map": multilabel_average_precision(torch.tensor(logits[:, :5]), torch.tensor(target[:, :5]), 5).item(),
        "micro_f1": sklearn_metrics.f1_score(target, guess, average="micro"),
        "macro_f1": sklearn_metrics.f1_score(target[:, :5], guess[:, :5], average="macro"),
        "exact_match": sklearn_metrics.accuracy_score(target, guess),
    }
    assert found == pytest.approx(expected)


def test_average_precision_by_hand():
    # one label, images from the highest score down: right, wrong, right -> (1/1 + 2/3) / 2
    scores = multilabel_scores(torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]]))
    assert scores["map"] == pytest.approx(5 / 6)


def test_top_k_by_hand():
    scores, target = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), torch.tensor([2, 2])
    assert [top_k_accuracy(scores, target, k) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]


# ---- states


def accuracy_interval(right, **options):
    hits = torch.as_tensor(right, dtype=torch.float64)
    return bootstrap(torch.stack([hits, torch.ones_like(hits)], 1), lambda s: s[:, 0] / s[:, 1], **options)


def test_interval_of_two_images_by_hand():
    # two images, one right: a resample's mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4
    assert accuracy_interval([0, 1], level=0.95) == (0.0, 1.0)
    assert accuracy_interval([0, 1], level=0.4) == (0.5, 0.5)
    assert accuracy_interval([1] * 7) == (1.0, 1.0)
    assert all(np.isnan(x) for x in accuracy_interval([0, 1], resamples=0))


def test_interval_has_the_width_of_the_binomial():
    right = np.arange(400) < 300
    low, high = accuracy_interval(right, resamples=4000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)
    assert accuracy_interval(right, seed=1) == accuracy_interval(right, seed=1) != accuracy_interval(right, seed=2)


def test_interval_of_the_average_precision_is_that_of_repeated_images():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=draw)
    target = torch.rand(30, 3, generator=draw) < 0.4
    resamples = list(resampled(30, 7, 40))
    repeated = [torch.arange(30).repeat_interleave(times.long()) for times in resamples]
    values = torch.tensor([multilabel_scores(logits[rows], target[rows])["map"] for rows in repeated])
    found = bootstrap_precision(logits, target, seed=7, resamples=40)
    assert found == pytest.approx(interval(values.double()), rel=1e-6)


def test_interval_of_miou_holds_it_and_shrinks_with_more_images():
    draw = torch.Generator().manual_seed(0)
    true = torch.randint(3, (400, 50), generator=draw)
    guess = torch.where(torch.rand(400, 50, generator=draw) < 0.7, true, torch.randint(3, (400, 50), generator=draw))
    states = confusions(guess, true, 3)
    wide, narrow = (
        bootstrap(states[:n], lambda sums: segmentation_scores(sums)["miou"], resamples=200) for n in (25, 400)
    )
    value = segmentation_scores(states.sum(0))["miou"].item()
    assert narrow[0] < value < narrow[1] and narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])
