import numpy as np
import pytest
import torch

from eval.metrics import class_scores, confusion_matrix, summarise

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
