"""n images of each place, shares of whole files, and the index files that keep a choice."""

import json
from dataclasses import replace

import numpy as np
import pytest

from eval.datasets import Split
from eval.labels import Labels, limited, validated
from tests.dense import dataset

GROUPS = {"north": ["denmark", "europe"], "south": ["kenya"]}
SIZES = {"denmark-1_0": 3, "denmark-2_0": 5, "europe_7": 8, "kenya_1": 6, "kenya_2": 10}  # samples of every file


class Values:
    """Maps of one value each: row modulo 4; loader processes can pickle it."""

    def __call__(self, row):
        return np.full((4, 4), float(row % 4), np.float32)


def data(**changes):
    splits = {}
    for name, times in (("train", 1), ("val", 1), ("test", 1)):
        keys = [f"{file}_{name}_{n:05d}" for file, count in SIZES.items() for n in range(count * times)]
        splits[name] = Split(keys, None, str, Values())
    return replace(dataset("regression"), splits=splits, groups=GROUPS, **changes)


DATA = data()


def keys(rows, name="train"):
    return [DATA.splits[name].keys[row] for row in rows]


def count(found):
    return {"north": sum(not k.startswith("kenya") for k in found), "south": sum(k.startswith("kenya") for k in found)}


def test_shots_of_every_group_nested_and_seeded():
    few, more = (limited(DATA, Labels(strategy="group", shots=n)) for n in (4, 12))
    assert count(keys(few)) == {"north": 4, "south": 4} and count(keys(more)) == {"north": 12, "south": 12}
    assert set(few) < set(more) and few == sorted(few)
    assert limited(DATA, Labels(strategy="group", shots=4, seed=1)) != few


def test_validation_is_cut_with_it():
    labels = Labels(strategy="group", shots=7, val=0.2)
    part = validated(DATA, labels)
    assert count(part.splits["val"].keys) == {"north": 2, "south": 2}  # 0.2 x 7 = 1.4, rounded up
    assert part.splits["train"] is DATA.splits["train"] and part.splits["test"] is DATA.splits["test"]
    for row, key in enumerate(part.splits["val"].keys):
        np.testing.assert_array_equal(
            part.splits["val"].target(row), DATA.splits["val"].target(DATA.splits["val"].keys.index(key))
        )
    assert limited(part, labels) == limited(DATA, labels) and part.split_hash != DATA.split_hash
    assert validated(DATA, Labels()) is DATA


def test_a_quarter_of_the_empty_images_is_used():
    """Every fourth image has the value 0 and counts as empty."""
    shares = [
        np.mean([row % 4 == 0 for row in limited(DATA, Labels(strategy="group", shots=5, empty=0.0, seed=seed))])
        for seed in range(60)
    ]
    assert abs(np.mean(shares) - 0.25 / 3.25) < 0.03  # a quarter of every fourth


def test_a_share_of_whole_files_as_close_as_they_allow():
    for fraction in (0.01, 0.3, 0.5, 0.8, 1.0):
        found = keys(limited(DATA, Labels(strategy="group", fraction=fraction, whole=True)))
        files = {key.rpartition("_")[0] for key in found}
        assert len(found) == sum(SIZES[file.removesuffix("_train")] for file in files)  # no file is divided
        for group, sizes in (("north", (3, 5, 8)), ("south", (6, 10))):
            possible = {sum(s for i, s in enumerate(sizes) if which >> i & 1) for which in range(1, 1 << len(sizes))}
            assert count(found)[group] in possible
    assert len(limited(DATA, Labels(strategy="group", fraction=1.0, whole=True))) == 32


def test_a_share_of_the_images():
    found = keys(limited(DATA, Labels(strategy="group", fraction=0.25)))
    assert count(found) == {"north": 4, "south": 4}


def test_index_files_are_made_once_and_read_from_then_on(tmp_path):
    labels = Labels(strategy="group", shots=3, val=1.0, index=str(tmp_path))
    plain = replace(labels, index=None)
    assert limited(DATA, labels) == limited(DATA, plain)
    (path,) = tmp_path.iterdir()
    assert path.name == "blocks_3-shot_seed-0.json"
    told = json.loads(path.read_text())
    assert told["train"] == keys(limited(DATA, plain))
    assert told["val"] == list(validated(DATA, plain).splits["val"].keys)
    before = path.read_bytes()
    assert list(validated(DATA, labels).splits["val"].keys) == told["val"] and path.read_bytes() == before
    # more samples later: the seed would choose others, the file stays
    later = data()
    later.splits["train"] = Split([*DATA.splits["train"].keys, "kenya_9_train_00000"], None, str, Values())
    assert (
        keys(limited(later, labels))
        == told["train"]
        != [later.splits["train"].keys[row] for row in limited(later, plain)]
    )
    with pytest.raises(ValueError, match="3-shot_seed-0.json was made with labels.val=1.0, not 0.5"):
        limited(DATA, replace(labels, val=0.5))
    smaller = data()
    smaller.splits["train"] = Split(
        [k for k in DATA.splits["train"].keys if k not in told["train"]], None, str, Values()
    )
    with pytest.raises(ValueError, match=f"names '{told['train'][0]}', no train sample of dataset blocks"):
        limited(smaller, labels)
    path.write_text(path.read_text().replace(told["train"][0], told["train"][1]))
    with pytest.raises(ValueError, match="was changed after it was made: restore it, or remove it"):
        limited(DATA, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            Labels(strategy="group", shots=17),
            "group 'north' of dataset blocks has 16 usable train images, 17 are wanted",
        ),
        (Labels(whole=True, fraction=0.5), "labels.whole, labels.empty, labels.val and labels.index need"),
        (Labels(strategy="group", whole=True, shots=3), "labels.whole is of a fraction, labels.empty of shots"),
        (Labels(strategy="group", empty=0.0), "labels.whole is of a fraction, labels.empty of shots"),
    ],
)
def test_mistakes(labels, message):
    with pytest.raises(ValueError, match=message):
        limited(DATA, labels)


def test_a_group_without_images_has_too_few():
    """Else half a download would learn from fewer images than its name says."""
    lacking = replace(DATA, groups={**GROUPS, "east": ["japan"]})
    with pytest.raises(ValueError, match="group 'east' of dataset blocks has 0 usable train images, 2 are wanted"):
        limited(lacking, Labels(strategy="group", shots=2))
    assert len(limited(lacking, Labels(strategy="group", fraction=1.0))) == 32


def test_samples_without_a_group():
    with pytest.raises(ValueError, match="sample 'kenya_._train_0000.' of dataset blocks is in none of its groups"):
        limited(replace(DATA, groups={"north": GROUPS["north"]}), Labels(strategy="group", shots=1))
    with pytest.raises(ValueError, match="dataset blocks names no groups of its samples"):
        limited(replace(DATA, groups={}), Labels(strategy="group", shots=1))
