"""Splits of our own, where the publishers give none: by place, and the same ones for ever."""

import hashlib

import pytest

from eval.datasets import defaults
from eval.datasets.splits import divide, entries, read_table

SPACENET7 = [f"L15-{300 + 20 * i:04d}E-{1200 - 7 * i:04d}N_{1300 + 80 * i}_{3100 + i}_13" for i in range(60)]
PLACES = {  # names in the form of the published ones: the column that holds them, names, a hash of their splits
    "spacenet7": ("aoi", SPACENET7, "376a73392cd6"),
    "spacenet7_change": ("aoi", SPACENET7, "376a73392cd6"),
    "dynamic_earthnet": ("aoi", [f"{1311 + 80 * i}_{3077 + 11 * i}_13" for i in range(75)], "e9d68bc67378"),
    "five_billion_pixels": ("id", [f"GF2_PMS{1 + i % 2}__L1A{564539 + 3001 * i:010d}-MSS{1 + i % 2}"
                                   for i in range(150)], "fb281d149835"),
    "mtbs": ("id", [f"ca{3600 + 13 * i}{11800 + 7 * i}2019" for i in range(100)], "a64fab36d74b"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_places_stay_together_in_splits_that_never_change(name):
    column, places, known = PLACES[name]
    options = defaults(name)
    parts = {part: options.get(part, 0.2) for part in ("val", "test")}
    assert options["split_by"] == column and "train" not in options
    rows = [place for place in places for _ in range(3)]  # months, tiles
    fields = dict.fromkeys(parts, column)
    splits = {part: {rows[i] for i in found} for part, found in divide({column: rows}, parts, fields).items()}
    assert sum(map(len, splits.values())) == len(places) == len(set().union(*splits.values()))
    assert all(len(splits[part]) == round(share * len(places)) for part, share in parts.items())
    text = "\n".join(f"{part}\t{place}" for part in sorted(splits) for place in sorted(splits[part]))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == known
    back = divide({column: rows[::-1]}, parts, fields)
    assert {part: {rows[::-1][i] for i in found} for part, found in back.items()} == splits  # whatever their order


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,split\na,train\nb\n", "has 2 columns, but a row ends after 'b'"),
        ("a.json", '[{"a": 1}, {"a"', r"a\.json is damaged .* get it again"),
        ("a.json", "[]", r"a\.json has no record"),
        ("a.json", '[{"a": 1}, {"b": 2}]', r"a\.json has a record without 'a'"),
        ("a.geojson", '{"type": "FeatureCollection"}', r"a\.geojson has a record without 'features'"),
    ],
)
def test_damaged_tables_are_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_damaged_lists_are_named(tmp_path):
    (tmp_path / "train.json").write_text('["a", "b')
    with pytest.raises(ValueError, match=r"train\.json is damaged .* get it again"):
        entries(tmp_path / "train.json", 0)
