import pytest
import torch

from dinov2.models import build_encoder

TINY = dict(patch_size=4, img_size=16, embed_dim=24, depth=3, num_heads=2, attn_dim=24, attn_heads=4)


def encoder(**options):
    torch.manual_seed(0)
    return build_encoder("vit_tiny", **{**TINY, **options})


def view(size: tuple[int, int] = (16, 16), b: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"imgs": torch.randn(b, 3, *size), "chn_ids": torch.tensor([[443, 665, -1]]).repeat(b, 1)}


def test_shapes_and_law_that_every_parameter_is_used() -> None:
    """Optical batch, registers, LayerScale, drop path: every parameter gets a gradient (SAR tables: zero)."""
    model = encoder(registers=2, layer_scale=0.1, drop_path=0.3, ffn="swiglu", attn_bias=True).train()
    x = view()
    x["chn_ids"] = x["chn_ids"].abs()
    features = model.forward_features(x)
    shapes = {k: tuple(v.shape) for k, v in features.items()}
    assert shapes == {"cls": (2, 24), "registers": (2, 2, 24), "patches": (2, 16, 24), "prenorm": (2, 19, 24)}
    sum(v.square().sum() for v in features.values()).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_forward_is_the_class_token() -> None:
    model, x = encoder().eval(), view()
    assert torch.equal(model(x), model.forward_features(x)["cls"])


def test_registers_have_no_position() -> None:
    """Moving all positions moves class token and patches only."""
    model, x = encoder(registers=2), view()
    before = model.tokens(x, None, None, None)
    with torch.no_grad():
        model.pos_embed += 1
    moved = (model.tokens(x, None, None, None) - before).mean((0, 2))
    torch.testing.assert_close(moved, torch.tensor([1.0, 0, 0] + [1.0] * 16))


def test_masked_patches_do_not_reach_the_tokens() -> None:
    model, x = encoder().eval(), view()
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, 5] = True
    fill = torch.randn(24)
    features = model.forward_features(x, masks=masks, fill=fill)
    changed = {**x, "imgs": x["imgs"].clone()}
    changed["imgs"][:, :, 4:8, 4:8] += 1  # patch 5
    torch.testing.assert_close(model.forward_features(changed, masks=masks, fill=fill)["cls"], features["cls"])
    assert not torch.allclose(model(changed), model(x))


def test_mask_of_nothing_changes_nothing() -> None:
    model, x = encoder().eval(), view()
    none = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(model.forward_features(x, masks=none, fill=torch.randn(24))["cls"], model(x))


def test_keeping_every_patch_in_any_order_is_the_whole_image() -> None:
    model, x = encoder().eval().double(), view()
    x["imgs"] = x["imgs"].double()
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    whole, kept = model.forward_features(x), model.forward_features(x, keep=order)
    torch.testing.assert_close(kept["cls"], whole["cls"])
    torch.testing.assert_close(kept["patches"], whole["patches"].gather(1, order[..., None].expand(-1, -1, 24)))


def test_dropped_patches_are_not_seen() -> None:
    model, x = encoder().eval(), view()
    keep = torch.tensor([[0, 3, 9], [2, 4, 15]])
    changed = {**x, "imgs": x["imgs"].clone()}
    changed["imgs"][:, :, 4:8, 4:8] = float("nan")  # patch 5, dropped before the embedding
    torch.testing.assert_close(
        model.forward_features(changed, keep=keep)["cls"], model.forward_features(x, keep=keep)["cls"]
    )


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (32, 32)])
def test_any_size(size: tuple[int, int]) -> None:
    model, x = encoder().eval(), view(size)
    h, w = size[0] // 4, size[1] // 4
    assert model.forward_features(x)["patches"].shape == (2, h * w, 24)
    (maps, cls), *_ = model.get_intermediate_layers(x, n=[1], reshape=True, return_class_token=True)
    (patches,) = model.get_intermediate_layers(x, n=[1])
    assert maps.shape == (2, 24, h, w) and cls.shape == (2, 24)
    assert torch.equal(maps[0, :, h - 1, 0], patches[0, (h - 1) * w])


def test_intermediate_layers() -> None:
    model, x = encoder(registers=1).eval(), view()
    features = model.forward_features(x)
    (last,) = model.get_intermediate_layers(x)
    assert torch.equal(last, features["patches"])
    (raw,) = model.get_intermediate_layers(x, norm=False)
    assert torch.equal(raw, features["prenorm"][:, 2:])
    two, listed = model.get_intermediate_layers(x, n=2), model.get_intermediate_layers(x, n=[1, 2])
    assert all(torch.equal(a, b) for a, b in zip(two, listed, strict=True))
    for wrong in ([0, 3], 4, [-1]):
        with pytest.raises(ValueError, match="blocks 0..2"):
            model.get_intermediate_layers(x, n=wrong)


def test_fixed_bands_behind_the_same_interface() -> None:
    model = build_encoder("vit_tiny", 4, 16, embed="conv", in_chans=3, depth=1).eval()
    x = view()
    assert torch.equal(model(x), model(x["imgs"]))
    assert "patch_embed.proj.weight" in model.state_dict()


def test_patch_size_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="img_size 18 is not a multiple of patch_size 4"):
        encoder(img_size=18)
    with pytest.raises(ValueError, match="patch size 4 must divide"):
        encoder()(view((16, 18)))


def test_a_class_token_keeps_no_other_tokens_in_memory():
    encoder = build_encoder("vit_tiny", patch_size=4, img_size=16, embed="conv", in_chans=3, embed_dim=24, depth=1)
    token = encoder({"imgs": torch.randn(2, 3, 16, 16)})
    assert token.untyped_storage().nbytes() == 4 * token.numel()
