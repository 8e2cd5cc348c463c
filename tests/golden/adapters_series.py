"""Golden adapters of the released encoders of pixel time series."""

import torch
from torch import Tensor

from dinov2.models.heads import mlp_head
from dinov2.models.timeseries import DAYS, Series
from dinov2.models.zoo.tessera import load_series
from tests.golden.harness import Adapter, Fixture, gradients

PROJECTOR = "projector.net."


def series(inputs: dict[str, Tensor]) -> Series:
    """The reference's arrays, whose last column is the day of the year, as our dictionary."""
    return {k: v for n, x in inputs.items() for k, v in ((n, x[..., :-1]), (f"{n}_days", x[..., -1]))}


def btfm(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    sizes = {"embed_dim": c["latent_dim"], "depth": c["num_encoder_layers"], "num_heads": c["nhead"]}
    sizes |= {"hidden": c["dim_feedforward"], "fusion": c["fusion_method"]}
    model = load_series("btfm_v1", {"model_state": {f"_orig_mod.{k}": v for k, v in fixture.state.items()}}, **sizes)
    projector = mlp_head(c["latent_dim"], c["projector_hidden_dim"], c["projector_out_dim"], 6).eval()
    projector.load_state_dict(
        {k.removeprefix(PROJECTOR): v for k, v in fixture.state.items() if k.startswith(PROJECTOR)}
    )
    s2 = fixture.inputs["s2"].clone().requires_grad_()
    x = series({"s2": s2, "s1": fixture.inputs["s1"]})
    representation = model(x)
    projection = projector(representation)
    return {
        "out/s2_temporal_encoding": DAYS["raw"](x["s2_days"], c["width"]),
        "out/s2_backbone": model.s2_backbone(x["s2"], x["s2_days"], None),
        "out/s1_backbone": model.s1_backbone(x["s1"], x["s1_days"], None),
        "out/representation": representation,
        "out/projection": projection,
        **gradients((projection * fixture.inputs["grad_weight"]).sum(), {"s2": s2}),
    }


@torch.no_grad()
def tessera_v1_1(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    optical, radar = (
        {"num_heads": c[f"{s}_num_heads"], "depth": c[f"{s}_num_layers"], "hidden": c[f"{s}_dim_feedforward"]}
        for s in ("s2", "s1")
    )
    sizes = {"embed_dim": c["representation_dim"], "width": 4 * c["latent_dim"]}
    model = load_series("tessera_v1_1_mpc", fixture.state, radar=radar, **sizes, **optical)
    return {"out/representation": model(series({"s2": fixture.inputs["s2"], "s1": fixture.inputs["s1"]}))}


def layout(fixture: Fixture) -> dict[str, Tensor]:
    """The released file's keys and shapes load strictly, the 1.3 billion parameters of its projector left out."""
    with torch.device("meta"):
        load_series("btfm_v1", fixture.state)
    return {}


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("encoders", "tessera_btfm"): btfm,
    ("encoders", "tessera_v1_1"): tessera_v1_1,
    ("layouts", "tessera_btfm"): layout,
}
