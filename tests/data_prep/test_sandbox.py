import numpy as np
import pytest

from data_prep.common import write
from data_prep.main import parse
from data_prep.sandbox import SPLITS, World, drawing_step, footprint, plan
from data_prep.sandbox_world.conditions import draw_conditions, sun_position
from data_prep.sandbox_world.geometry import average
from data_prep.sandbox_world.layouts import BARE, BUILT, COVERS, FAMILIES, FOREST, SCENES, WATER
from dinov2.sensors import SENSORS

S2_S1 = ("sentinel2_l2a", "sentinel1_rtc")
SHARP = World(0, "train", ("sentinel2_l2a", "landsat8", "worldview2", "enmap", "sentinel1_rtc", "dem"), 660)


def options(*words: str):
    return parse(["sandbox", "--out", "unused", *words])


def find(scene: str) -> int:
    """Index of the first clear sample of a class in summer."""
    world = World(0, "train", S2_S1, 660)
    for index in range(2000):
        now = draw_conditions(world.rng(index, "date 0"))
        if now.cloud_cover or now.haze > 0.03 or not 150 < now.day_of_year < 250:
            continue
        if world.land(index)[0] == SCENES.index(scene):
            return index
    raise AssertionError(scene)


def best_shift(image: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """By how many pixels ``image`` must be moved to correlate best with ``reference``."""
    inner = np.s_[3:-3, 3:-3]
    moves = [(i, j) for i in range(-3, 4) for j in range(-3, 4)]
    return max(
        moves, key=lambda m: abs(np.corrcoef(np.roll(image, m, (0, 1))[inner].ravel(), reference[inner].ravel())[0, 1])
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_workers_or_on_what_was_made_before(tmp_path, workers):
    args = options("--samples", "12", "--seed", "3")
    shards, summary = write(plan(args), tmp_path, samples_per_shard=5, compression=None, workers=workers)
    assert summary.written == len(shards) == 12 and list(shards.counts) == [5, 5, 2]
    alone = World(3, "train", S2_S1, 660).sample(7)  # not made after samples 0 to 6
    stored = shards.read(1, 2)
    assert stored.key == alone.key
    assert all(np.array_equal(stored.images[k], alone.images[k]) for k in alone.images)
    assert all(np.array_equal(stored.labels[k], alone.labels[k]) for k in alone.labels)
    assert stored.meta == alone.meta and stored.times == alone.times


def test_seeds_splits_and_indices_are_different_places():
    worlds = [World(0, "train", S2_S1, 660), World(1, "train", S2_S1, 660), World(0, "test", S2_S1, 660)]
    images = [w.sample(i).images["sentinel2_l2a-10m"] for w in worlds for i in (0, 1)]
    assert len({image.tobytes() for image in images}) == 6


def test_footprints_never_overlap():
    boxes = np.array([footprint(split, i, 660) for split in SPLITS for i in (0, 1, 605, 606, 607, 100_000)])
    for k, box in enumerate(boxes):
        others = np.delete(boxes, k, 0)
        apart = (
            (others[:, 0] >= box[2]) | (others[:, 2] <= box[0]) | (others[:, 1] >= box[3]) | (others[:, 3] <= box[1])
        )
        assert apart.all()


def test_images_have_their_sensors_pixels_and_plausible_values():
    for index in range(6):
        sample = SHARP.sample(index)
        for key, image in sample.images.items():
            spec = sample.specs[key]
            assert image.shape == (len(spec.bands), round(660 / spec.gsd_m), round(660 / spec.gsd_m))
            values = spec.to_model(image)
            low, high = {"reflectance": (0, 1.2), "db": (-50, 15), "metre": (0, 1500)}[spec.model_unit]
            assert values.min() >= low and values.max() <= high, key
    assert {b for s in sample.specs.values() for b in s.bands} >= set(SENSORS["enmap"].band_names)


def test_all_optical_sensors_see_the_same_reflectance():
    """Same bands at other resolutions and widths: block means of the finer image equal the coarser one."""
    for scene in ("stands", "river", "town"):
        sample = SHARP.sample(find(scene))
        s2 = sample.images["sentinel2_l2a-10m"].astype(np.float32) * 1e-4
        red, nir = (sample.specs["sentinel2_l2a-10m"].bands.index(b) for b in ("B04", "B08"))
        landsat = sample.images["landsat8-30m"].astype(np.float32) * 1e-4
        for band, other in ((red, 3), (nir, 4)):
            seen, wanted = average(s2[band], 3), landsat[other]
            assert np.corrcoef(seen.ravel(), wanted.ravel())[0, 1] > 0.98
            assert abs(seen.mean() - wanted.mean()) < 0.02


def test_a_landmark_has_one_position_in_every_image():
    """The river of the label lies under the river of every image, to the pixel of that image."""
    sample = SHARP.sample(find("river"))
    water = (sample.labels["landcover"] == WATER).astype(np.float32)  # finest pixels: worldview2, 2 m
    assert water.shape == (330, 330)
    seen = {"worldview2-2m": "nir2", "sentinel2_l2a-10m": "B08", "sentinel2_l2a-20m": "B11", "landsat8-30m": "B6"}
    for key, band in (seen | {"enmap-30m": "B150", "sentinel1_rtc-10m": "VH"}).items():
        spec, image = sample.specs[key], sample.images[key]
        values = spec.to_model(image)[spec.bands.index(band)]
        assert best_shift(values, average(water, spec.gsd_m // 2)) == (0, 0), key


def test_the_spectra_are_those_of_their_covers():
    """Red edge of vegetation, dark water, bright dry soil in the short-wave infrared, bright buildings in radar."""
    world = World(0, "train", S2_S1, 660)

    def mean(scene: str, cover: int) -> tuple[dict[str, float], float]:
        sample = world.sample(find(scene))
        own = sample.labels["landcover"] == cover
        means = {}
        for key, image in sample.images.items():
            spec = sample.specs[key]
            factor = 66 // image.shape[-1]
            inside = average(own.astype(np.float32), factor) > 0.99
            means |= {
                b: float(spec.to_model(image)[c][inside].mean()) for c, b in enumerate(spec.bands) if inside.any()
            }
        return means

    forest, water, bare, built = mean("stands", FOREST), mean("coast", WATER), mean("wadis", BARE), mean("town", BUILT)
    assert forest["B08"] > 3 * forest["B04"] and forest["B06"] > 2 * forest["B05"] > 2 * forest["B04"]
    assert water["B11"] < 0.06 < forest["B11"] and water["B03"] > water["B08"]
    assert bare["B11"] > bare["B08"] > bare["B04"] > bare["B02"]
    assert built["VV"] > forest["VV"] > water["VV"] and forest["VH"] > bare["VH"]


def test_labels_are_what_was_rendered():
    world = World(0, "train", S2_S1, 660)
    for index in range(8):
        scene, _, land = world.land(index)
        sample = world.sample(index)
        cover = land.layout.cover.reshape(66, 2, 66, 2).transpose(0, 2, 1, 3).reshape(66, 66, 4)
        counts = (cover[..., None] == np.arange(len(COVERS))).sum(2)
        assert (
            np.take_along_axis(counts, sample.labels["landcover"][..., None].astype(int), 2)[..., 0] == counts.max(2)
        ).all()
        assert sample.labels["scene"] == scene
        assert np.isclose(sample.labels["canopy_height"].mean(), sample.labels["mean_canopy_height"], atol=1e-3)
        assert (sample.labels["canopy_height"][(counts[..., FOREST] == 0)] == 0).all()


def test_the_change_mask_is_where_the_ground_changes_and_nowhere_else():
    world = World(0, "train", ("sentinel2_l2a",), 660, dates=2)
    flags = []
    for index in range(24):
        sample = world.sample(index)
        flags.append(sample.labels["changed"])
        image = sample.images["sentinel2_l2a-10m"]
        assert image.shape == (2, 4, 66, 66) and sample.times["sentinel2_l2a-10m"] == sorted(
            sample.times["sentinel2_l2a-10m"]
        )
        assert sample.labels["change"].shape == (66, 66) and sample.labels["changed"] == sample.labels["change"].any()
        _, grid, land = world.land(index)
        views, where = world.views(index, grid, land)
        assert np.array_equal(views[0].land.layout.cover != views[-1].land.layout.cover, where)
    assert 4 < sum(flags) < 20


def test_the_sun_stands_where_astronomy_says():
    assert sun_position(172)[0] == pytest.approx(46.0 - 23.45 + 7.5, abs=2.5)  # highest in June, lower before noon
    assert sun_position(355)[0] == pytest.approx(46.0 + 23.45 + 2.5, abs=2.5)
    assert 110 < sun_position(172)[1] < 180 and sun_position(355)[1] > sun_position(172)[1]


def test_conditions_do_not_know_the_scene():
    """Nuisances are drawn from their own generator: the same index of another land has the same conditions."""
    a, b = World(0, "train", ("sentinel2_l2a",), 660), World(0, "train", ("sentinel1_rtc",), 1320)
    assert [a.sample(i).meta for i in range(3)] == [b.sample(i).meta for i in range(3)]


def test_a_finer_drawing_shows_the_same_world():
    coarse, fine = World(0, "train", ("sentinel2_l2a",), 660), World(0, "train", ("sentinel2_l2a", "worldview2"), 660)
    assert drawing_step([10, 20, 60]) == 5 and drawing_step([10, 2]) == 2 and drawing_step([30]) == 5
    for index in range(5):
        a, b = coarse.sample(index).images["sentinel2_l2a-10m"], fine.sample(index).images["sentinel2_l2a-10m"]
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_classes_of_a_family_share_their_composition():
    world, start = World(0, "train", ("sentinel2_l2a",), 660), 0
    shares: dict[int, list[np.ndarray]] = {k: [] for k in range(len(SCENES))}
    for index in range(300):
        scene, _, land = world.land(index)
        shares[scene].append(np.bincount(land.layout.cover.ravel(), minlength=len(COVERS)) / land.layout.cover.size)
    for family in FAMILIES:
        means = np.array([np.mean(shares[start + k], 0)[family.figure] for k in range(len(family.classes))])
        assert np.ptp(means) < 0.08, family
        start += len(family.classes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chip-m", "650"], "--chip-m 650 is no multiple of the 20 m pixels of sensor 'sentinel2_l2a'"),
        (["--sensors", "sentinel2"], "unknown sensor 'sentinel2'; did you mean"),
        (["--samples", "4", "--chip-m", "300000"], "do not fit on the ground of a split"),
        (["--samples", "0"], "--samples and --dates must be at least 1"),
        (["--sensors", "landsat8_thermal"], "has no band that the sandbox can render"),
    ],
)
def test_bad_options_are_one_sentence(words, message):
    with pytest.raises(ValueError, match=message):
        plan(options(*words))
