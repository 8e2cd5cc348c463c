import numpy as np
import pytest
import torch

from eval.metrics import bootstrap, class_scores, confusion_matrix, score, summarise

TARGET = torch.tensor([0, 0, 0, 1, 1, 3])
PREDICTED = torch.tensor([0, 0, 1, 1, 2, 3])


def test_confusion_by_hand():
    assert confusion_matrix(PREDICTED, TARGET, 4).tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_scores_by_hand_leave_absent_classes_out():
    confusion = confusion_matrix(PREDICTED, TARGET, 4)
    scores = class_scores(confusion)
    np.testing.assert_allclose(scores["recall"], [2 / 3, 1 / 2, np.nan, 1])
    np.testing.assert_allclose(scores["precision"], [1, 1 / 2, np.nan, 1])
    np.testing.assert_allclose(scores["f1"], [4 / 5, 1 / 2, np.nan, 1])
    assert scores["support"] == [3, 2, 0, 1]
    means = {"accuracy": 4 / 6, "mean_accuracy": (2 / 3 + 1 / 2 + 1) / 3, "mean_f1": (4 / 5 + 1 / 2 + 1) / 3}
    assert summarise(confusion) == pytest.approx(means)


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match="labels run from 0 to 3, but there are 3 classes"):
        confusion_matrix(PREDICTED, TARGET, 3)


def test_interval_of_two_images_by_hand():
    # two images, one right: a resample's mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4
    assert bootstrap(np.array([0.0, 1.0]), level=0.95) == (0.0, 1.0)
    assert bootstrap(np.array([0.0, 1.0]), level=0.4) == (0.5, 0.5)
    assert bootstrap(np.ones(7)) == (1.0, 1.0)


def test_interval_has_the_width_of_the_binomial():
    values = (np.arange(400) < 300).astype(float)
    low, high = bootstrap(values, resamples=4000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_every_image_counts_once():
    fields = score(PREDICTED, TARGET, 4, resamples=50)
    assert fields["n"] == 6 == sum(map(sum, fields["confusion"]))
    assert fields["ci_low"] <= fields["value"] <= fields["ci_high"]
    with pytest.raises(AssertionError, match="predictions"):
        score(PREDICTED[:5], TARGET, 4, resamples=50)
