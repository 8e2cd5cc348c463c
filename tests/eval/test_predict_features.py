import numpy as np
import pytest
import rasterio
import torch
from matplotlib.image import imread

from dinov2.data.sample import Sample
from dinov2.data.shards import write_shards
from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from dinov2.sensors import SENSORS
from eval.encoders import load_model
from eval.predict import main
from eval.series.mosaic import EmbeddingMap
from tests.dense import SPEC
from tests.scenes import UTM, image, read, write

TABLE = {"sentinel2_l2a": {"B02": (0.2, 0.1), "B03": (0.25, 0.1), "B04": (0.2, 0.2)}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A run's encoder with patches of 4 and statistics of three bands of Sentinel-2."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "attn_dim": 32, "attn_heads": 2}
    made = build_encoder("vit_tiny", patch_size=4, img_size=32, **sizes)
    path = tmp_path_factory.mktemp("run") / "model_final.safetensors"
    norm = Normalisation(TABLE, {"sentinel2_l2a": "reflectance"})
    save_export(path, made, normalisation=norm.to_dict(), info={"step": 1})
    return path.parent


def embed(model, source, out, *options, sensor="sentinel2_l2a"):
    given = ["--features", "--model-obj", str(model), "--sensor", sensor, "--device", "cpu"]
    return main([*given, "--input", str(source), "--output", str(out), *options])


def test_a_tile_has_the_embeddings_of_the_encoder(encoder, tmp_path):
    pixels = image(32, 32)
    assert embed(encoder, write(tmp_path / "a.tif", pixels), tmp_path) == 0
    mean, std = np.array(list(TABLE["sentinel2_l2a"].values()))[:, :, None, None].swapaxes(0, 1)
    view = {"imgs": torch.tensor((pixels * 1e-4 - mean) / std, dtype=torch.float32)[None]}
    view["chn_ids"] = torch.tensor([SENSORS["sentinel2_l2a"].channel_ids(["B02", "B03", "B04"])])
    with torch.no_grad():
        wanted = load_model(str(encoder)).maps(view)[-1][0]
    np.testing.assert_allclose(read(tmp_path / "a_embedding.tif"), wanted, atol=1e-4)
    with rasterio.open(tmp_path / "a_embedding.tif") as file:
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(32633), UTM["transform"] @ file.transform.scale(4))
        assert file.shape == (8, 8) and file.tags()["bands"] == "B02 = 0, B03 = 1, B04 = 2"
        assert file.descriptions[:2] == ("embedding 000", "embedding 001") and np.isnan(file.nodata)
    assert imread(tmp_path / "a_embedding.png").shape[:2] == (8, 8)


def test_embeddings_of_any_raster_without_what_was_not_observed(encoder, tmp_path):
    pixels = image(45, 70)
    pixels[:, :9] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    assert embed(encoder, path, tmp_path, "--overlap", "16") == 0
    found = read(tmp_path / "a_embedding.tif")
    assert found.shape == (32, 12, 18) and np.isnan(found[:, :2]).all() and np.isfinite(found[:, 2:]).all()
    assert embed(encoder, path, tmp_path / "codes", "--overlap", "16", "--precision", "int8") == 0
    with EmbeddingMap(tmp_path / "codes" / "a_embedding.tif") as codes:
        again = codes.read().transpose(2, 0, 1)
    np.testing.assert_allclose(again, found, atol=np.nanmax(np.abs(found)) / 250)


def test_a_map_of_what_needs_no_context_does_not_depend_on_tiles(tmp_path):
    path, sensor = write(tmp_path / "a.tif", image(70, 50)), "sentinel2_l2a:B02,B03,B04"
    maps = []
    for tile in ("64", "256"):
        given = ("--tile", tile, "--statistics", str(shards(tmp_path / f"shards{tile}")))
        assert embed("pixelstats", path, tmp_path / tile, *given, sensor=sensor) == 0
        maps.append(read(tmp_path / tile / "a_embedding.tif"))
    np.testing.assert_allclose(*maps, atol=1e-5)
    assert maps[0].shape == (3, 70, 50)


def test_maps_are_kept_until_the_bands_or_statistics_change(encoder, tmp_path, capsys):
    path = write(tmp_path / "a.tif", image(32, 32), ("B02", "B03", "B04"))
    for sensor, word in (("sentinel2_l2a", "done"), ("sentinel2_l2a", "kept"), ("sentinel2_l2a:B02,B03", "done")):
        assert embed(encoder, path, tmp_path, sensor=sensor) == 0
        assert f"a.tif: {word}" in capsys.readouterr().out
    fresh = tmp_path / "fresh"
    assert embed(encoder, path, fresh, sensor=sensor) == 0
    np.testing.assert_array_equal(read(tmp_path / "a_embedding.tif"), read(fresh / "a_embedding.tif"))


def shards(folder):
    """A set whose statistics are of three bands."""
    samples = (Sample(f"s{i}", {SPEC.key: image(16, 16) + i}, {SPEC.key: SPEC}) for i in range(3))
    write_shards(samples, folder, samples_per_shard=8)
    return folder


@pytest.mark.parametrize(
    ("sensor", "options", "message"),
    [
        ("sentinel2", (), "--sensor 'sentinel2' is unknown; did you mean 'sentinel2_l"),
        ("landsat8", (), "the encoder has no statistics of landsat8 in its unit: name a shard set"),
        ("sentinel2_l2a:B02,B99", (), "B99"),
        ("sentinel2_l2a", ("--confidence",), "--features takes --sensor and neither --confidence nor"),
        ("sentinel2_l2a", ("--tile", "30"), "tiles must be whole cells of 4"),
    ],
)
def test_mistakes_are_one_sentence(encoder, sensor, options, message, tmp_path):
    path = write(tmp_path / "a.tif", image(30, 30))
    with pytest.raises(ValueError, match=message):
        embed(encoder, path, tmp_path / "out", *options, sensor=sensor)
    with pytest.raises(ValueError, match="--sensor, --statistics and --precision go with --features"):
        main(["--model-obj", "x", "--input", str(path), "--output", str(tmp_path), "--sensor", "sentinel2_l2a"])


@pytest.mark.realdata
def test_a_real_scene_by_a_released_architecture(realdata, tmp_path):
    """Prithvi's layout with random weights on an HLS chip, six of whose ten bands it takes."""
    model = "prithvi@random?img_size=64&embed_dim=48&depth=2&num_heads=4"
    chip = realdata / "hls" / "segmentation_test_0_input.tif"
    assert embed(model, chip, tmp_path, "--bands", *"123456", "--precision", "int8", sensor="hls_l30") == 0
    with rasterio.open(chip) as a, rasterio.open(tmp_path / f"{chip.stem}_embedding.tif") as b:
        assert b.shape == (14, 14) and b.crs == a.crs and b.bounds == a.bounds and b.count == 48
