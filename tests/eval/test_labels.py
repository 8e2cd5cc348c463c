import numpy as np
import pytest
import torch

from eval.labels import Labels, labels_hash, limited, strata
from tests.dense import dataset

DATA = dataset("classification", dense=False, counts={"train": 60, "val": 5, "test": 5})


def classes(rows):
    return torch.bincount(DATA.splits["train"].labels[rows], minlength=3).tolist()


def test_everything_is_the_default():
    assert limited(DATA, Labels()) == list(range(60))


def test_fractions_are_nested_seeded_and_hashed():
    some, more = (limited(DATA, Labels(fraction=f)) for f in (0.1, 0.5))
    assert (len(some), len(more)) == (6, 30) and set(some) < set(more) and some == sorted(some)
    assert limited(DATA, Labels(fraction=0.1)) == some != limited(DATA, Labels(fraction=0.1, seed=1))
    assert labels_hash(DATA, some) == labels_hash(DATA, list(some)) != labels_hash(DATA, more)


def test_shots_and_strata_of_classes():
    assert classes(limited(DATA, Labels(shots=4))) == [4, 4, 4]
    half = classes(limited(DATA, Labels(fraction=0.5, strategy="stratified")))
    assert half == [round(n / 2) for n in classes(list(range(60)))]


def test_strata_of_maps_by_hand():
    data = dataset()
    for row, alike in enumerate(strata(data)):
        target = data.splits["train"].target(row)
        shares = np.bincount(target[target >= 0], minlength=3) / (target >= 0).sum()
        assert list(alike) == [0 if s == 0 else 1 if s <= 1 / 3 else 2 if s <= 2 / 3 else 3 for s in shares]


def test_strata_of_values_are_equally_filled():
    data = dataset("regression", size=(64, 64), counts={"train": 30, "val": 5, "test": 5})
    assert set(strata(data)) == {0, 1, 2} and max(np.bincount(strata(data))) <= 12


def test_keys_from_a_file(tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("s0-007\ns0-002\n")
    assert limited(DATA, Labels(strategy="file", file=str(file))) == [2, 7]
    file.write_text("s0-007\nelsewhere\n")
    with pytest.raises(ValueError, match="few.txt: 'elsewhere' is no training sample of dataset blocks"):
        limited(DATA, Labels(strategy="file", file=str(file)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Labels(fraction=0), "give a fraction above 0"),
        (Labels(fraction=0.5, shots=3), "or at least one of shots"),
        (Labels(strategy="file"), "labels.strategy=file and labels.file=FILE go together"),
        (Labels(strategy="file", file="/nowhere.txt"), "labels.file /nowhere.txt does not exist"),
        (Labels(strategy="some"), "labels.strategy 'some' is not one of random, stratified, group, file"),
    ],
)
def test_mistakes(labels, message):
    with pytest.raises(ValueError, match=message):
        limited(DATA, labels)


def test_more_shots_than_a_class_has_are_refused():
    rare = classes(list(range(60)))
    few = rare.index(min(rare))
    with pytest.raises(ValueError, match=f"shots is 61; class '{DATA.classes[few]}' of .* has {rare[few]} "):
        limited(DATA, Labels(shots=61))


def test_shots_are_of_classes_only():
    with pytest.raises(ValueError, match="labels.shots counts images of a class; dataset blocks is for segmentation"):
        limited(dataset(), Labels(shots=2))
