"""The folded embedding is the published one: outputs, every gradient, and what may be asked of any set of bands."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.patch_embed import folded_flops, published_flops, saved_bytes
from benchmarks.patch_embed import view as benchmark_view
from dinov2.models.spectral import SpectralPatchEmbed
from tests.dinov2.models.reference import PublishedPatchEmbed

SMALL = dict(embed_dim=12, patch_size=4, attn_dim=24, num_heads=4)


def pair(**options) -> tuple[SpectralPatchEmbed, PublishedPatchEmbed]:
    """Both forms with the same random parameters (SAR tables and norms included), float64."""
    torch.manual_seed(0)
    folded = SpectralPatchEmbed(**{**SMALL, **options}).double()
    for p in folded.parameters():
        torch.nn.init.normal_(p, std=0.5)
    published = PublishedPatchEmbed(**{**SMALL, **options}).double()
    published.load_state_dict(folded.state_dict())
    return folded, published


def view(ids: list, masks: list | None = None, size: tuple[int, int] = (8, 12)) -> dict[str, Tensor]:
    chn_ids = torch.tensor(ids)
    x = {"imgs": torch.randn(*chn_ids.shape[:2], *size, dtype=torch.float64), "chn_ids": chn_ids}
    return x if masks is None else {**x, "spec_masks": torch.tensor(masks).bool()}


CASES = {
    "optical": ({}, [[443, 665, 842]], None),
    "one_channel": ({}, [[665], [-3]], None),
    "all_sar": ({}, [list(range(-12, 0))], None),
    "mixed_batch": ({}, [[443, 665, 842, 1610], [-1, -2, -7, -12], [560, -5, 2190, -6]], None),
    "masked": ({}, [[443, 665, 842], [-1, -2, 560]], [[0, 1, 0], [0, 0, 1]]),
    "padding_with_id_0": ({}, [[443, 665, 0], [-1, 0, 0]], [[0, 0, 1], [0, 1, 1]]),
    "layer_norm": (dict(layer_norm=True), [[443, -2, 842]], [[0, 0, 1]]),
    "bias": (dict(qkv_bias=True), [[443, -2, 842], [-1, 705, 740]], None),
    "coarse": (dict(opt_coarsity=10), [[443, 449, 842]], None),
    "terrain": (dict(terrain=True), [[443, -13, -14], [-1, -2, -13]], None),
    "full_spectra": (dict(full_spectra=True), [[[443, 20], [842, 45], [-2, 0]]], None),
    "pairs_read_as_centres": ({}, [[[443.7, 20.0], [842.0, 45.5], [-2.0, 0.0]]], None),
    "everything": (
        dict(layer_norm=True, qkv_bias=True, full_spectra=True, terrain=True),
        [[[443, 20], [-13, 0], [-2, 0]], [[660, 15], [740, 7], [700, 0]]],
        [[0, 0, 0], [0, 0, 1]],
    ),
}


def both(x: dict[str, Tensor], module: torch.nn.Module) -> tuple[Tensor, dict[str, Tensor | None]]:
    x = {**x, "imgs": x["imgs"].clone().requires_grad_()}
    out = module(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight).sum().backward()
    return out, {"imgs": x["imgs"].grad, **{k: p.grad for k, p in module.named_parameters()}}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_form(case: str) -> None:
    options, ids, masks = CASES[case]
    folded, published = pair(**options)
    x = view(ids, masks)
    (out, grads), (expected, expected_grads) = both(x, folded), both(x, published)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for name, grad in grads.items():
        assert grad is not None, f"{name} left the graph"
        reference = expected_grads[name]
        if reference is None:  # the published form does not touch the tables of absent bands
            reference = torch.zeros_like(grad)
        torch.testing.assert_close(grad, reference, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_what_optical_batches_leave_unused_has_a_gradient_of_exactly_zero() -> None:
    folded, _ = pair(qkv_bias=True, terrain=True)
    folded(view([[443, 665, 842]])).square().sum().backward()
    tables = folded.chnfus.chnemb
    unused = [tables.embed_transmit, tables.embed_receive, tables.embed_orbit, tables.embed_terrain]
    for p in [*unused, folded.chnfus.xattn["inproj_k"].bias]:
        assert p.grad is not None and not p.grad.any()


@pytest.mark.parametrize("training", [True, False])
def test_order_of_the_bands_does_not_matter(training: bool) -> None:
    folded = pair()[0].train(training)
    x = view([[443, 665, -1, 842], [560, -7, 705, 740]], [[0, 0, 0, 1], [1, 0, 0, 0]])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {k: v[:, order] for k, v in x.items()}
    torch.testing.assert_close(folded(shuffled), folded(x), rtol=0, atol=1e-12)


def test_padding_changes_nothing() -> None:
    folded, _ = pair(layer_norm=True)
    x = view([[443, 665], [-1, -2]])
    padding = torch.full_like(x["imgs"], 1e3)
    wide = {
        "imgs": torch.cat([x["imgs"], padding], 1),
        "chn_ids": torch.cat([x["chn_ids"], torch.zeros_like(x["chn_ids"])], 1),
        "spec_masks": torch.tensor([[False, False, True, True]] * 2),
    }
    torch.testing.assert_close(folded(wide), folded(x), rtol=0, atol=1e-12)


def test_a_sample_does_not_see_the_rest_of_its_batch() -> None:
    folded, _ = pair()
    x = view([[443, 665, 842], [-1, -2, 560]])
    alone = {k: v[1:] for k, v in x.items()}
    torch.testing.assert_close(folded(x)[1:], folded(alone), rtol=0, atol=1e-12)


def test_kept_patches_are_those_of_the_whole_image() -> None:
    folded, _ = pair()
    x = view([[443, 665, 842], [-1, -2, 560]])
    keep = torch.tensor([[5, 0, 3], [1, 2, 4]])
    expected = folded(x).gather(1, keep[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(folded(x, keep), expected, rtol=0, atol=1e-12)


def test_unseen_sensor() -> None:
    """202 channels at wavelengths that no parameter knows: finite, and each one is listened to."""
    folded, _ = pair()
    x = view([list(range(418, 418 + 202 * 9, 9))])
    x["imgs"].requires_grad_()
    folded(x).square().sum().backward()
    assert x["imgs"].grad.isfinite().all() and (x["imgs"].grad.abs().amax((0, 2, 3)) > 0).all()


def test_inputs_are_left_alone() -> None:
    folded, _ = pair(opt_coarsity=10)
    x = view([[[443.9, 3.0], [842.2, 4.0]]], [[0, 1]])
    before = {k: v.clone() for k, v in x.items()}
    folded(x)
    assert all(torch.equal(x[k], before[k]) for k in x)


# ---- the fold kept in evaluation


def test_evaluation_keeps_the_fold_and_gives_the_same_tokens() -> None:
    folded, _ = pair()
    x = view([[443, 665, 842]])
    expected = folded(x).detach()
    with torch.no_grad():
        folded.eval()
        torch.testing.assert_close(folded(x), expected, rtol=0, atol=0)
        assert folded.fold() is folded.fold()


@pytest.mark.parametrize("how", ["in_place", "foreach", "load", "optimiser", "deepcopy", "cast"])
def test_a_changed_parameter_is_noticed(how: str) -> None:
    folded, published = pair()
    folded.eval()
    x = view([[443, 665, 842]])
    with torch.no_grad():
        folded(x)
    doubled = {k: 2 * v for k, v in folded.state_dict().items()}
    parameters = list(folded.parameters())
    if how == "in_place":
        with torch.no_grad():
            for p in parameters:
                p.mul_(2)
    elif how == "foreach":  # how the teacher follows the student
        with torch.no_grad():
            torch._foreach_lerp_(parameters, list(doubled.values()), 1.0)
    elif how == "optimiser":
        for p in parameters:
            p.grad = -p.detach()
        torch.optim.SGD(parameters, lr=1.0).step()
    elif how == "cast":
        folded.float().load_state_dict({k: v.float() for k, v in doubled.items()})
        folded.double()
    else:
        folded = copy.deepcopy(folded) if how == "deepcopy" else folded
        folded.load_state_dict(doubled)
    published.load_state_dict(doubled)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), published(x), rtol=0, atol=1e-4 if how == "cast" else 1e-12)


def test_inference_mode() -> None:
    """Parameters made in inference mode work, and a fold kept there serves outside of it."""
    x = view([[443, 665, 842]])
    with torch.inference_mode():
        made_here, _ = pair()
        inside = made_here.eval()(x)
    folded, _ = pair()
    folded.eval()
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), inside, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), inside, rtol=0, atol=1e-12)


def test_gradients_in_evaluation_mode_after_a_cached_call() -> None:
    folded, _ = pair()
    folded.eval()
    x = view([[443, 665, 842]])
    with torch.no_grad():
        folded(x)
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


# ---- precision and memory


def test_autocast_rounds_less_than_the_published_form() -> None:
    """The fold stays in float32 under autocast, and fewer products are rounded after it."""
    forms = pair(attn_dim=48)
    x = view([[443, 665, 842, -1]] * 4)
    exact = forms[0](x)
    x["imgs"] = x["imgs"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = [form.float()(x) for form in forms]
    assert tokens[0].dtype == torch.bfloat16
    folded, published = ((t.double() - exact).norm() / exact.norm() for t in tokens)
    assert folded < published < 2e-2


def test_bytes_saved_for_backward() -> None:
    """At most 9 MiB per 224-px image at 13 bands (the published form: 92); parameters' products do not grow with B."""
    module = SpectralPatchEmbed()
    few, many = (saved_bytes(module, benchmark_view(b, 13)) for b in (1, 3))
    assert (many - few) / 2 <= 9 * 2**20


def test_flops_of_both_forms_are_the_formulae() -> None:
    folded, published = pair()
    x = view([[443, 665, 842], [443, 560, 842]])
    sizes = (2, 3, 6, 16, 24, 12)
    counts = []
    for module in (published, folded):
        with FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert counts == [published_flops(*sizes), folded_flops(*sizes, heads=4, distinct=4)]


# ---- what is refused


@pytest.mark.parametrize(
    "ids, masks, message",
    [
        ([[443, -13]], None, "unknown channel id -13"),
        ([[443, 0]], None, "unknown channel id 0"),
        ([[443.0, 665.0]], None, "whole nanometres as integers"),
        ([[443, 665]], [[1, 1]], "hide every channel of image 0"),
        ([[443, 665]], [[1, 0, 0]], "differ in shape"),
    ],
)
def test_bad_channels_are_refused(ids: list, masks: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair()[0](view(ids, masks))


def test_ids_of_another_number_of_channels_are_refused() -> None:
    x = view([[443, 665, 842]])
    with pytest.raises(ValueError, match="imgs have 2 channels"):
        pair()[0]({**x, "imgs": x["imgs"][:, :2]})


def test_full_spectra_need_pairs() -> None:
    with pytest.raises(ValueError, match=r"chn_ids must be \[B, C, 2\]"):
        pair(full_spectra=True)[0](view([[443, 665]]))


def test_patch_must_divide_the_image() -> None:
    with pytest.raises(ValueError, match="9 x 12 pixels: the patch size 4"):
        pair()[0](view([[443]], size=(9, 12)))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="attn_dim 24"):
        SpectralPatchEmbed(**{**SMALL, "num_heads": 5})
