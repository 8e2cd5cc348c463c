import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_prep import footprints
from data_prep.common import Plan, write
from data_prep.main import main
from data_prep.split import Blocks
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import ShardSet

SPEC = ImageSpec("dem", 30, ("elevation",), "int16", "metre", nodata=-32768)
SIDE = 2  # pixels; chips of 660 m lie in rows of 60


def chip(number: int, zone: str = "EPSG:32631", shift: float = 0.0, value: int | None = None, place=True) -> Sample:
    x, y = 400_000 + 660 * (number % 60) + shift, 5_000_000 + 660 * (number // 60)
    image = np.full((1, SIDE, SIDE), number if value is None else value, np.int16)
    image[0, 0, 0] += 1
    box = (x, y, x + 660, y + 660) if place else None
    return Sample(f"c{number:05d}", {SPEC.key: image}, {SPEC.key: SPEC}, {}, box, zone if place else None)


def dataset(out: Path, count: int, **options) -> Path:
    plan = Plan(range(count), lambda i: chip(i, **options), {}, {"options": repr(options)}, "CC0-1.0")
    write(plan, out, samples_per_shard=500, compression=None, workers=1)
    return out


def test_parts_are_blocks_with_a_gap(tmp_path, capsys):
    src = dataset(tmp_path / "all", 3600)  # 40 km x 40 km
    words = ["--block-km", "6", "--gap-km", "0.5", "--fractions", "0.6", "0.2", "0.2"]
    assert main(["split", str(src), "--out", str(tmp_path / "parts"), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    corners, total = {}, 0
    for part in ("train", "val", "test"):
        shards = ShardSet.open(tmp_path / "parts" / part)
        samples = [shards.read(s, i) for s, n in enumerate(shards.counts) for i in range(n)]
        assert {s.meta["split"] for s in samples} == {part} and shards.parts[0].licence == "CC0-1.0"
        original = chip(int(samples[0].key[1:]))
        assert np.array_equal(samples[0].images[SPEC.key], original.images[SPEC.key])
        assert f"{len(samples)} {part}" in said
        corners[part] = np.array([s.footprint[:2] for s in samples])
        total += len(samples)
    assert f"{3600 - total} left out: within --gap-km of another part" in said and total > 1800
    assert len(corners["train"]) > max(len(corners["val"]), len(corners["test"]))
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        apart = np.abs(corners[a][:, None] - corners[b][None]) - 660  # [A, B, 2] between the chips' edges
        assert apart.max(-1).min() > 400  # metres, of the 500 asked for: a degree is not as long in UTM


def test_the_part_of_a_place_does_not_depend_on_the_other_samples():
    blocks = Blocks(10.0, 0.0, (0.5, 0.25, 0.25), 3)
    rng = np.random.default_rng(0)
    where = [(rng.uniform(-180, 180), math.degrees(math.asin(rng.uniform(-1, 1)))) for _ in range(4000)]
    found = [blocks.part(*point) for point in where]
    assert found == [blocks.part(*point) for point in where]
    for part, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
        assert found.count(part) / len(found) == pytest.approx(share, abs=0.03)  # 4 sigma of 4000 draws
    assert found != [Blocks(10.0, 0.0, (0.5, 0.25, 0.25), 4).part(*point) for point in where]
    assert blocks.part(180, 0) == blocks.part(-180, 0) and blocks.part(0, 90) and blocks.part(0, -90)
    with pytest.raises(ValueError, match="--block-km 10 is smaller than a sample with its --gap-km 0"):
        blocks.part_of((0, 0, 1, 1))


def test_leakage_is_found_and_neighbours_are_not(tmp_path, capsys):
    a, b = dataset(tmp_path / "a", 120), dataset(tmp_path / "b", 10, shift=220.0)
    assert main(["leakage", str(a), str(b)]) == 2
    said = capsys.readouterr().out
    assert f"11 of 120 samples of {a} show ground of {b}" in said and f"10 of 10 samples of {b} are shown" in said
    assert "c00000 shows c00000\n" in said and "c00001 shows c00000\n" in said
    beside = dataset(tmp_path / "beside", 10, shift=660.0 * 60)
    assert main(["leakage", str(a), str(beside)]) == 0
    assert f"0 of 120 samples of {a} show ground of {beside}" in capsys.readouterr().out
    nowhere = dataset(tmp_path / "nowhere", 3, place=False)
    for pair in ((a, nowhere), (nowhere, a)):
        with pytest.raises(ValueError, match=f"{nowhere}: no sample has a position, so nothing can be compared"):
            main(["leakage", *map(str, pair)])
    with pytest.raises(ValueError, match=f"{nowhere}: no sample is left for any part: 3 left out: without a position"):
        main(["split", str(nowhere), "--out", str(tmp_path / "none")])
    (nowhere / footprints.NAME).unlink()
    with pytest.raises(ValueError, match="footprints.parquet is absent: prepare the set with this version"):
        main(["leakage", str(a), str(nowhere)])


def test_statistics_that_drift(tmp_path, capsys):
    good, shifted = dataset(tmp_path / "good", 600), dataset(tmp_path / "shifted", 600, value=5000)
    assert main(["verify", str(good), "--workers", "2"]) == 0
    assert main(["verify", str(good), "--reference", str(shifted)]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"dem, band elevation: 299.8 +- 173 metre, in {shifted} 5000 +- 0.433 metre: another scale" in said
    fragment = json.loads((good / "shard-000000.json").read_text())
    fragment["stats"][0][2]["mean"] += 1
    (good / "shard-000000.json").write_text(json.dumps(fragment))
    dataset(good, 600)  # shards are kept, the index is written again
    assert main(["verify", str(good)]) == 2
    assert "the pixels do not have the statistics of the index" in " ".join(capsys.readouterr().out.split())
