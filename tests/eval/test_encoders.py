import pytest
import torch

from eval.encoders import expand_models, home_of, load_model, name_of


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


def test_pixel_statistics_by_hand():
    x = view(c=2)
    x["spec_masks"] = torch.tensor([[False, True]]).repeat(3, 1)
    model = load_model("pixelstats")
    shown = x["imgs"][:, 0].flatten(1)
    zero = torch.zeros(3)
    expected = torch.stack([shown.mean(1), zero, shown.std(1, correction=0), zero], 1)
    torch.testing.assert_close(model.embed(x), expected)
    with pytest.raises(ValueError, match="no feature maps"):
        model.maps(x)


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
