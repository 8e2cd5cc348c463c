import pytest
import torch
from torchmetrics.functional import r2_score
from torchmetrics.functional.classification import multiclass_jaccard_index, multilabel_average_precision

from eval.scoring import merit, score, state, states_of
from tests.dense import dataset


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_segmentation_is_torchmetrics():
    data = dataset(size=(16, 24))
    logits = [random(2, 3, 16, 24), random(2, 3, 16, 24, seed=1), random(1, 3, 16, 24, seed=2)]
    found = score("segmentation", states_of(data, "test", logits), 3, resamples=50)
    target = torch.stack([torch.from_numpy(data.splits["test"].target(i)) for i in range(5)])
    expected = multiclass_jaccard_index(torch.cat(logits), target, 3, ignore_index=-1)
    assert found["value"] == pytest.approx(expected.item()) and found["metric"] == "miou"
    assert sum(map(sum, found["confusion"])) == (target >= 0).sum() and found["n"] == 5
    assert found["ci_low"] < found["value"] < found["ci_high"]


@pytest.mark.parametrize("dense", [True, False])
def test_regression_is_torchmetrics_in_the_targets_unit(dense):
    data = dataset("regression", dense=dense)
    logits = [10 * random(5, 1, 16, 16)] if dense else [10 * random(5, 1)]
    found = score("regression", states_of(data, "test", logits), 1)
    split = data.splits["test"]
    target = torch.stack([torch.from_numpy(split.target(i)) for i in range(5)]) if dense else split.labels
    known = target.isfinite()
    x, y = logits[0].view_as(target)[known], target[known]
    assert found["value"] == pytest.approx((x - y).square().mean().sqrt().item(), rel=1e-5)
    assert found["metrics"]["r2"] == pytest.approx(r2_score(x, y).item(), rel=1e-4)
    assert merit("regression", states_of(data, "test", logits), 1) == -found["value"]


def test_several_labels_and_top_five():
    data = dataset("multilabel", dense=False, counts={"train": 3, "val": 3, "test": 40})
    logits = random(40, 3)
    found = score("multilabel", states_of(data, "test", [logits]), 3, resamples=30)
    expected = multilabel_average_precision(logits, data.splits["test"].labels.long(), 3)
    assert found["value"] == pytest.approx(expected.item(), rel=1e-4) and len(found["per_class"]["f1"]) == 3
    assert found["ci_low"] < found["value"] < found["ci_high"]
    target = torch.arange(40) % 8
    ranked = score("classification", state("classification", random(40, 8), target, 8), 8)["metrics"]
    top = random(40, 8).topk(5).indices
    assert ranked["top5_accuracy"] == pytest.approx((top == target[:, None]).any(1).double().mean().item())


def test_images_lost_or_counted_twice_are_found():
    data = dataset()
    for count in (4, 6):
        with pytest.raises((AssertionError, IndexError)):
            states_of(data, "test", [random(1, 3, 16, 16)] * count)


def test_batches_do_not_matter():
    data, logits = dataset(), random(5, 3, 16, 16)
    whole = states_of(data, "test", [logits])
    assert torch.equal(whole, states_of(data, "test", logits.split(2)))
