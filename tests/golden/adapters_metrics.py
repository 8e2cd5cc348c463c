"""Golden adapters of segmentation and regression scores, losses, kNN votes and sliding windows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dinov2.models.dense import resize
from eval.dense_metrics import confusions, predicted_classes, regression_scores, residuals, segmentation_scores
from eval.knn import votes
from eval.losses import build_loss
from eval.tiling import slide, starts
from tests.golden.harness import Adapter, Fixture, gradients


def batches(fixture: Fixture, *names: str) -> Iterator[list[Tensor]]:
    for i in range(fixture.config["batches"]):
        yield [fixture.inputs[f"batch{i}/{name}"] for name in names]


def segmentation(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    counts = [
        confusions(predicted_classes(logits), target, c["num_classes"], c["ignore_index"])
        for logits, target in batches(fixture, "logits", "target")
    ]
    confusion = torch.cat(counts).sum(0)
    scores = segmentation_scores(confusion, c["ignore_index"])
    names = {"IoU": "iou", "F1": "f1", "Precision": "precision", "Recall": "recall"}
    out = {f"out/{name}": 100 * scores[ours][c["valid_class_indices"]] for name, ours in names.items()}
    means = {"mIoU": "miou", "mF1": "mean_f1", "mAcc": "overall_accuracy"}  # their mAcc: see config.metric_names
    out |= {f"out/{name}": 100 * scores[ours] for name, ours in means.items()}
    return out | {"out/confusion_matrix": confusion.T}  # their rows are predictions


def regression(fixture: Fixture) -> dict[str, Tensor]:
    states = [residuals(p.squeeze(1), t).sum(0) for p, t in batches(fixture, "pred", "target")]
    mse = regression_scores(torch.stack(states))["mse"].mean()  # theirs: the mean of the batches' means
    return {"out/MSE": mse, "out/RMSE": mse.sqrt()}


def losses(fixture: Fixture) -> dict[str, Tensor]:
    c, out = fixture.config, {}
    names = {"DICELoss": "dice", "WeightedCrossEntropy": "weighted_cross_entropy"}
    for theirs, ours in names.items():
        logits = fixture.inputs["logits"].clone().requires_grad_()
        loss = build_loss(ours, ignore_index=c["ignore_index"], distribution=c["distribution"])
        out[f"out/{theirs}"] = loss(logits, fixture.inputs["target"])
        out |= gradients(out[f"out/{theirs}"], {theirs: logits})
    return out


def knn(fixture: Fixture) -> dict[str, Tensor]:
    c, x = fixture.config, fixture.inputs

    def scores(labels: Tensor) -> Tensor:
        return votes(x["bank"], labels, x["query"], c["num_classes"], c["knn_k"], c["knn_t"])

    recorded = fixture.recorded["out/ranking"]
    voted = torch.arange(c["num_classes"]) < torch.tensor(c["ranking_voted_classes"])[:, None]
    ranking = scores(x["labels"]).argsort(1, descending=True)
    chosen = scores(x["multilabels"]).topk(c["top_m"], 1).indices
    multilabel = torch.zeros_like(x["multilabels"][: len(chosen)]).scatter(1, chosen, 1.0)
    return {"out/ranking": ranking.where(voted, recorded), "out/multilabel_pred": multilabel}  # the rest is undefined


def sliding(fixture: Fixture) -> dict[str, Tensor]:
    c = fixture.config
    made = {
        layer["name"]: getattr(nn, layer["type"])(**{k: v for k, v in layer.items() if k not in ("name", "type")})
        for layer in c["model"]["layers"]
    }
    model = nn.Sequential(OrderedDict((name, made[name]) for name in c["model"]["forward"]))
    model.load_state_dict(fixture.state)
    image = fixture.inputs[c["model"]["input"]].select(2, c["model"]["frame"])
    tile, stride = c["input_size"], c["stride"]
    assert [starts(n, tile, stride) for n in (c["H"], c["W"])] == [c["row_offsets"], c["col_offsets"]]
    out = {}
    for call in c["calls"]:
        batch = call["max_batch"] or 1000
        merged = slide(lambda tiles, which: model(tiles), image, tile, stride, batch)
        out[f"out/{call['output']}"] = resize(merged, call["output_shape"])
    return out


ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("metrics", "knn"): knn,
    ("metrics", "losses"): losses,
    ("metrics", "regression"): regression,
    ("metrics", "segmentation"): segmentation,
    ("metrics", "sliding"): sliding,
}
