import pytest
import torch

from dinov2.data.stats import Normalisation
from dinov2.models import build_encoder
from dinov2.models.export import save_export
from dinov2.models.zoo import ZOO
from eval.encoders import expand_models, home_of, load_model, name_of, seeded


def view(b=3, c=4, size=16):
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor([493, 559, 664, 827])[:c].repeat(b, 1)
    return {"imgs": torch.randn(b, c, size, size, generator=draw), "chn_ids": ids}


@torch.no_grad()
def test_a_run_gives_the_encoder_it_exported(run, tools):
    x, encoder, model = view(), tools.encoder().eval(), load_model(str(run))
    assert (model.name, model.role) == ("run", "pretrained")
    assert model.normalisation is not None
    torch.testing.assert_close(model.embed(x), encoder(x))
    file = load_model(str(run / "model_final.safetensors"))
    assert file.digest == model.digest
    torch.testing.assert_close(file.embed(x), encoder(x))


@torch.no_grad()
def test_poolings_by_hand(run, tools):
    x, encoder = view(), tools.encoder().eval()
    found = load_model(str(run)).features(x)
    one, two = encoder.get_intermediate_layers(x, n=2, return_class_token=True)
    mean = encoder.forward_features(x)["patches"].mean(1)
    torch.testing.assert_close(found["cls"], encoder(x))
    torch.testing.assert_close(found["mean"], mean)
    torch.testing.assert_close(found["cls+mean"], torch.cat([encoder(x), mean], 1))
    torch.testing.assert_close(found["cls4"], torch.cat([one[1], two[1]], 1))
    torch.testing.assert_close(found["cls4+mean"], torch.cat([one[1], two[1], mean], 1))


@torch.no_grad()
def test_maps_are_the_patches_in_place(run, tools):
    x, encoder = view(), tools.encoder().eval()
    maps = load_model(str(run)).maps(x)
    assert maps[-1].shape == (3, 32, 2, 2)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), encoder.forward_features(x)["patches"])


@torch.no_grad()
def test_random_floor_depends_on_the_seed_alone(run):
    x = view()
    a, again, b = (load_model(f"random:{run}", seed=s) for s in (0, 0, 1))
    assert (a.name, a.role) == ("random:run", "floor")
    assert a.normalisation == load_model(str(run)).normalisation
    assert torch.equal(a.embed(x), again.embed(x))
    assert a.digest == again.digest != b.digest
    assert not torch.allclose(a.embed(x), b.embed(x))
    assert not torch.allclose(a.embed(x), load_model(str(run)).embed(x))


def test_random_floor_leaves_the_generator_alone(run):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_model(f"random:{run}", seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_architecture_with_options():
    model = load_model("random:vit_tiny?patch_size=8&depth=1&embed_dim=24&num_heads=2&attn_dim=32&attn_heads=2")
    assert model.embed(view()).shape == (3, 24)
    assert model.normalisation is None


def test_an_exported_unet_is_a_model_with_a_pyramid(tmp_path):
    encoder = build_encoder("phileo_cnn", img_size=16, in_chans=4, embed_dim=8, dims=[8, 12], depths=[1, 2]).eval()
    norm = Normalisation({}, {}).to_dict()
    save_export(tmp_path / "encoder.safetensors", encoder, normalisation=norm, info={})
    model, x = load_model(f"{tmp_path}/encoder.safetensors"), view()
    torch.testing.assert_close(model.embed(x), encoder(x))
    assert model.pyramid and model.native == 16 and [m.shape[1:] for m in model.maps(x)] == [(8, 16, 16), (12, 8, 8)]
    floor = load_model(f"random:{tmp_path}/encoder.safetensors", seed=1)
    assert floor.pyramid and not torch.equal(floor.embed(x), model.embed(x))


def test_pixel_statistics_by_hand():
    x = view(c=2)
    x["spec_masks"] = torch.tensor([[False, True]]).repeat(3, 1)
    model = load_model("pixelstats")
    shown = x["imgs"][:, 0].flatten(1)
    zero = torch.zeros(3)
    expected = torch.stack([shown.mean(1), zero, shown.std(1, correction=0), zero], 1)
    torch.testing.assert_close(model.embed(x), expected)
    hidden = x["imgs"] * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert [torch.equal(m, hidden) for m in model.maps(x)] == [True]


def test_lists_folders_and_globs(tmp_path, shards, tools, monkeypatch):
    for name in ("b", "a"):
        tools.write_run(tmp_path / "runs" / name, shards)
    monkeypatch.chdir(tmp_path)
    assert expand_models("runs;pixelstats;random:runs/a") == ["runs/a", "runs/b", "pixelstats", "random:runs/a"]
    assert expand_models("runs/*") == ["runs/a", "runs/b"]
    assert expand_models("runs/a; runs/a;") == ["runs/a"]
    assert name_of("runs/a") == "a"
    assert name_of("random:runs/a") == "random:a"
    assert home_of("runs/a") == tmp_path / "runs/a/eval_model_final"
    assert home_of("pixelstats") is None


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ("nowhere", "model 'nowhere': there is no file nowhere; give a run folder"),
        ("random:vit_mini", "unknown encoder 'vit_mini'"),
        ("random:vit_tiny?patch_size", "write options as"),
        ("random:vit_tiny?patchsize=8", "has no option 'patchsize'; did you mean 'patch_size'\\? Known: "),
        ("pixelstats:3", "takes no option"),
    ],
)
def test_bad_models(obj, message):
    with pytest.raises(ValueError, match=message):
        load_model(obj)


def test_bad_lists(tmp_path):
    with pytest.raises(ValueError, match="names no model"):
        expand_models(" ; ")
    with pytest.raises(ValueError, match="holds no model_final.safetensors"):
        expand_models(str(tmp_path))


VIT = "embed_dim=16&depth=2&num_heads=2&img_size=16&patch_size=8"
TINY = {"dofa": f"{VIT}&wave_dim=8", "croma_base_optical": "embed_dim=16&depth=4", "ssl4eo_dino": VIT}
TINY |= {"phileo_cnn": "img_size=16&embed_dim=8&dims=[8,12]&depths=[1,1]", "phileo_vit": VIT}
TINY |= {"phileo_geoaware": "dims=[8,12]&depths=[1,1]"}


def released_view(name):
    """Channels as the model expects them."""
    bands = [n for b in ZOO[name].expects.bands for n in b.names]
    imgs = torch.randn(3, len(bands) or 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"imgs": imgs, "chn_ids": torch.arange(400, 400 + imgs.shape[1]).repeat(3, 1)}


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_released_encoder_gives_its_own_embedding_and_maps(name, tmp_path):
    floor = load_model(f"{name}@random?{TINY[name]}", seed=3)
    encoder, x = floor.network.encoder, released_view(name)
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    model = load_model(f"{name}@{tmp_path}/weights.pth?{TINY[name]}")
    assert (floor.role, model.role, model.name) == ("floor", "pretrained", f"{name}@weights?{TINY[name]}")
    assert floor.digest != model.digest
    torch.testing.assert_close(model.embed(x), encoder(x))
    tokens = ["cls", "mean", "cls+mean", "cls4", "cls4+mean"]
    assert list(model.features(x)) == (["latent"] if model.pyramid else tokens)
    wanted = encoder.maps(x, model.expects.layers)
    assert len(wanted) == len(model.expects.layers)
    for ours, theirs in zip(model.maps(x), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_random_weights_in_a_released_layout_depend_on_the_seed():
    obj = f"ssl4eo_dino@random?{VIT}"
    x, (a, again, b) = released_view("ssl4eo_dino"), (load_model(obj, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.embed(x), again.embed(x)) and a.digest == again.digest != b.digest
    assert seeded(obj) and seeded("random:vit_tiny") and not seeded("ssl4eo_dino@w.pth")
    assert name_of(obj) == obj and home_of(obj) is None
    assert expand_models(f"{obj};pixelstats") == [obj, "pixelstats"]


def test_released_files_are_found_in_the_folder_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("CDIR", str(tmp_path))
    state = load_model(f"ssl4eo_mae_sar@random?{VIT}").network.encoder.state_dict()
    torch.save(state, tmp_path / "radar.pth")
    one, two = (load_model(f"ssl4eo_mae_sar@{file}?{VIT}") for file in ("radar.pth", "${CDIR}/radar.pth"))
    assert one.digest == two.digest
    published = ZOO["ssl4eo_mae_sar"].url.rsplit("/", 1)[-1]
    (tmp_path / "radar.pth").rename(tmp_path / published)
    assert load_model(f"ssl4eo_mae_sar@download?{VIT}").digest == one.digest  # nothing left to download


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ("dofa", "say which weights, as dofa@FILE, dofa@download or dofa@random"),
        ("dova@random", "unknown released encoder 'dova'; did you mean 'dofa'"),
        ("dofa@nowhere.pth", "nowhere.pth: there is no such weights file"),
        ("ssl4eo_mae@download", "address of SSL4EO-S12 MAE is not confirmed"),
        ("dofa@random?depth", "write options as"),
    ],
)
def test_bad_released_models(obj, message):
    with pytest.raises(ValueError, match=message):
        load_model(obj)
