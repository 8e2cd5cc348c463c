import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.pictures import Gallery, png
from eval.report import constant_answer, costs, read_metrics, write_report
from eval.results import to_json
from eval.scoring import score, state

CLASSES = ["water", "trees <tall>", "permanently flooded vegetation", "bare"]


def row(model, role, wrong, config="quickstart/knn", seed=0):
    target = torch.arange(40) % 3  # the last class does not occur in the test split
    predicted = torch.where(torch.arange(40) < wrong, (target + 1) % 3, target)
    states = state("classification", torch.eye(4)[predicted], target, 4)
    return {
        "model": model, "role": role, "dataset": "sandbox", "kind": "classification", "unit": "",
        "task": "knn", "seed": seed, "config": config,
        "config_hash": "c0ffee", "split_hash": "abc", "data_hash": "def", "model_hash": f"hash-{model}",
        "normalisation": "checkpoint", "bands": ["sentinel2_l2a/B02"], "input_size": 64,
        "sizing": "positions interpolated",
        "received": [{"band": "sentinel2_l2a/B02", "expected": "sentinel2_l2a/B02", "mean": 0.01, "std": 0.98,
                      "id": 492, "unit": "reflectance"}],
        "cost": {"parameters": 910_000, "flops": 2_000_000_000},
        "chosen": {"pooling": "cls", "val_accuracy": 0.5}, "n_train": 100, "n_val": 20, "ignored": 2,
        "classes": CLASSES, "seconds": 1.0, **score("classification", states, 4, resamples=200),
    }  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    run = tmp_path / "vit"
    run.mkdir()
    lines = [{"step": s, "loss": 5 / s, "lr": 1e-3, "health/std": 0.9, "note": "text"} for s in range(1, 50)]
    lines += [{"step": s, "eval/sandbox/knn/accuracy": s / 50} for s in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (run / "config.yaml").write_text("optim: {base_lr: 0.001}\ndata: {shards: [a, b]}\n")
    (run / "environment.txt").write_text("torch 2.13\n")
    rows = [
        row("vit", "pretrained", 4),
        row("random:a_very_long_run_name_indeed", "floor", 30),
        row("pixels", "floor", 6),
    ]
    pixel = png(np.zeros((1, 1, 3)))
    gallery = Gallery(CLASSES[:3], {"true colour": [pixel] * 3, "vit": [pixel] * 3})
    return rows, [run], gallery


def test_same_input_same_bytes_and_nothing_from_outside(tmp_path, inputs):
    one = write_report(tmp_path / "1.html", *inputs).read_text()
    assert write_report(tmp_path / "2.html", *inputs).read_text() == one
    assert not re.findall(r'(?:src|href)="(?!data:|#)', one)
    assert "<script" not in one and str(tmp_path) not in one


def test_what_the_page_says(tmp_path, inputs):
    page = write_report(tmp_path / "r.html", *inputs).read_text()
    assert '<div class="verdict wins">quickstart/knn: vit beats random:' in page
    assert '<div class="verdict loses">quickstart/knn: vit does NOT beat pixels' in page
    assert "trees &lt;tall&gt;" in page and "<tall>" not in page
    assert "width:90.0%" in page  # 36 of 40 right
    assert page.count("data:image/svg+xml") == 4  # learning curve, loss, health, learning rate
    for title in ("Loss and learning curves", "Health of the embedding", "Optimisation and speed", "Patch features"):
        assert f"<h2>{title}</h2>" in page
    assert "base_lr" in page and "torch 2.13" in page
    assert ">–</td>" in page  # the class that has no test image


def dense_row(model, role, config, kind, error=0.3, **more):
    """A row of maps, values or several labels, scored like an engine's."""
    draw = torch.Generator().manual_seed(len(model))
    wrong = torch.rand(24, 8, 8, generator=draw) < error
    target = torch.arange(64).view(8, 8).repeat(24, 1, 1) % 3
    if kind == "segmentation":
        logits, classes = torch.eye(4)[torch.where(wrong, (target + 1) % 3, target)].permute(0, 3, 1, 2), 4
    elif kind == "regression":
        target, classes = target.float(), 1
        logits = (target + 3 * error * torch.randn(target.shape, generator=draw))[:, None]
    else:
        target, classes = torch.eye(4)[target[:, 0, 0] + torch.arange(24) % 3], 4
        logits = target - wrong[:, 0, :4].float()
    scores = score(kind, state(kind, logits, target, classes), classes, resamples=100)
    base = {**row(model, role, 1, config), "kind": kind, "task": "decoder", "unit": "m", **scores, **more}
    return {**base, "classes": CLASSES if classes == 4 else ["height"]}


KINDS = ("segmentation", "regression", "multilabel")


@pytest.fixture
def many():
    """Twelve models on twelve evaluations of every kind."""
    models = [("pixelstats", "floor", 0.3), ("random:vit", "floor", 0.35), ("unet?width=16&depth=4", "baseline", 0.1)]
    models += [(f"encoder_number_{i}_of_nine", "pretrained", 0.02 + 0.05 * i) for i in range(9)]
    return [
        dense_row(model, role, f"collection_{i % 3}/{KINDS[i % 3]}_task_{i}", KINDS[i % 3], error)
        for i in range(12)
        for model, role, error in models
    ]


def test_what_a_constant_answer_scores():
    assert constant_answer([row("a", "floor", 6)]) == 14 / 40
    assert constant_answer([dense_row("a", "floor", "c", "segmentation")]) == pytest.approx(22 / 64 / 3)
    spread = (torch.arange(64) % 3).double().std(correction=0).item()
    assert constant_answer([dense_row("a", "floor", "c", "regression")]) == pytest.approx(spread)
    labels = dense_row("a", "floor", "c", "multilabel")
    assert constant_answer([labels]) == pytest.approx(1 / 3)  # three labels of a third of the images each, one of none
    exact = {**row("a", "floor", 0), "kind": "regression", "metrics": {"rmse": 0.0, "r2": 1.0}}
    assert constant_answer([exact]) is None


def test_every_kind_is_shown(tmp_path, many):
    page = write_report(tmp_path / "r.html", many, groups={"maps": ["*/segmentation_*"]}).read_text()
    assert page.count("<section id=") == 12 and page.count("Less is better.") == 4
    assert "<th>average maps</th>" in page and "IoU per class" in page and "Average precision per class" in page
    assert "percent of the true class" in page
    worst = [r for r in many if r["kind"] == "regression" and r["model"] == "encoder_number_8_of_nine"][0]
    lost = "regression_task_1: encoder_number_8_of_nine does NOT beat pixelstats by more than the intervals"
    assert re.search(lost + r" \(-[\d.]+ m\)", page)  # a larger error is worse
    assert f"{worst['value']:.4g} [" in page
    seen = costs(many)
    assert [c["model"] for c in seen][:2] == ["pixelstats", "random:vit"]
    assert seen[0] == {
        "model": "pixelstats", "parameters": 910_000, "flops": (2e9, 2e9), "seconds": 12.0, "cells": 12,
    }  # fmt: skip


def test_rows_as_they_are_stored_make_the_same_page(tmp_path, many):
    stored = [json.loads(to_json(r)) for r in many]
    again = [json.loads(to_json(r)) for r in stored]
    one = write_report(tmp_path / "1.html", stored).read_bytes()
    assert write_report(tmp_path / "2.html", again).read_bytes() == one


def test_a_report_of_floors_alone_and_of_nothing(tmp_path):
    assert "Confusion of pixels" in write_report(tmp_path / "a.html", [row("pixels", "floor", 6)]).read_text()
    assert "<h1>Evaluation</h1>" in write_report(tmp_path / "b.html", []).read_text()


def test_metrics_are_read_by_key(inputs):
    curves = read_metrics(inputs[1][0])
    assert curves["eval/sandbox/knn/accuracy"] == ([10, 20, 30], [0.2, 0.4, 0.6])
    assert set(curves) == {"loss", "lr", "health/std", "eval/sandbox/knn/accuracy"}


PROBE = """<body style="margin:0"><iframe id="f" src="{page}" width="{width}" height="60000" style="border:0"></iframe>
<script>
const f = document.getElementById("f"), errors = [];
f.onload = () => {{
  const d = f.contentDocument, w = d.documentElement;
  for (const img of d.images) if (!img.complete || !img.naturalWidth) errors.push(img.alt);
  document.title = JSON.stringify({{scroll: w.scrollWidth, client: w.clientWidth, images: d.images.length, errors,
    heading: d.querySelector("h1").innerText, verdicts: d.querySelectorAll(".verdict").length,
    pictures: (d.querySelector(".strips img") || f).clientWidth,
    red: getComputedStyle(d.querySelector(".loses")).color}});
  const out = document.createElement("pre");
  out.id = "out"; out.textContent = document.title;
  document.body.append(out);
}};
</script>"""


def opened(page, width):
    """What a browser of this width finds on a page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    probe, profile = page.with_name("probe.html"), page.with_name("profile")
    probe.write_text(PROBE.format(page=page.name, width=width))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--allow-file-access-from-files", f"--user-data-dir={profile}", "--virtual-time-budget=8000",
             "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    done = subprocess.run([browser, *flags, Path(probe).as_uri()], capture_output=True, text=True, timeout=90)
    seen = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert seen, done.stderr[-2000:]
    state = json.loads(seen[1])
    assert state["client"] == width
    assert state["scroll"] <= width, "the page is wider than the window"
    assert state["red"] == "rgb(179, 38, 30)" and state["errors"] == []
    assert "CONSOLE" not in done.stderr
    return state


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_a_browser(tmp_path, inputs, width):
    state = opened(write_report(tmp_path / "report.html", *inputs), width)
    assert state["heading"] == "vit" and state["verdicts"] == 2
    assert state["images"] == 10


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_many_models_and_evaluations_fit_every_window(tmp_path, many, width):
    pixel = png(np.full((1, 1, 3), 0.5))
    models = list(dict.fromkeys(r["model"] for r in many))
    features = Gallery([f"akeywithoutanyplacetobreakit{i}" for i in range(6)], {"true colour": [pixel] * 6})
    maps = Gallery(["one", "two"], {x: [pixel] * 2 for x in ("image", "truth", *models)}, [("water", "#0000ff")])
    state = opened(
        write_report(tmp_path / "report.html", many, gallery=features, maps={many[0]["config"]: maps}), width
    )
    assert state["verdicts"] == 12 * 9 * 2 and state["images"] == 2 * 14 + 6
    assert state["pictures"] == 148  # of one pixel each: shown large enough to be seen
