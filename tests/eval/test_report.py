import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.pictures import Gallery, png
from eval.report import read_metrics, write_report
from eval.scoring import score, state

CLASSES = ["water", "trees <tall>", "permanently flooded vegetation", "bare"]


def row(model, role, wrong, config="quickstart/knn", seed=0):
    target = torch.arange(40) % 3  # the last class does not occur in the test split
    predicted = torch.where(torch.arange(40) < wrong, (target + 1) % 3, target)
    states = state("classification", torch.eye(4)[predicted], target, 4)
    return {
        "model": model, "role": role, "dataset": "sandbox", "kind": "classification", "unit": "", "task": "knn", "seed": seed, "config": config,
        "config_hash": "c0ffee", "split_hash": "abc", "data_hash": "def", "model_hash": f"hash-{model}",
        "normalisation": "checkpoint", "bands": ["sentinel2_l2a/B02"], "input_size": 64, "sizing": "positions interpolated",
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


def test_a_report_of_floors_alone_and_of_nothing(tmp_path):
    assert "Confusion of pixels" in write_report(tmp_path / "a.html", [row("pixels", "floor", 6)]).read_text()
    assert "<h1>Evaluation</h1>" in write_report(tmp_path / "b.html", []).read_text()


def test_metrics_are_read_by_key(inputs):
    curves = read_metrics(inputs[1][0])
    assert curves["eval/sandbox/knn/accuracy"] == ([10, 20, 30], [0.2, 0.4, 0.6])
    assert set(curves) == {"loss", "lr", "health/std", "eval/sandbox/knn/accuracy"}


PROBE = """<body style="margin:0"><iframe id="f" src="{page}" width="{width}" height="5000" style="border:0"></iframe>
<script>
const f = document.getElementById("f"), errors = [];
f.onload = () => {{
  const d = f.contentDocument, w = d.documentElement;
  for (const img of d.images) if (!img.complete || !img.naturalWidth) errors.push(img.alt);
  document.title = JSON.stringify({{scroll: w.scrollWidth, client: w.clientWidth, images: d.images.length, errors,
    heading: d.querySelector("h1").innerText, verdicts: d.querySelectorAll(".verdict").length,
    red: getComputedStyle(d.querySelector(".loses")).color}});
  const out = document.createElement("pre");
  out.id = "out"; out.textContent = document.title;
  document.body.append(out);
}};
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_a_browser(tmp_path, inputs, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = write_report(tmp_path / "report.html", *inputs)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=page.name, width=width))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000",
             "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    done = subprocess.run([browser, *flags, Path(probe).as_uri()], capture_output=True, text=True, timeout=90)
    seen = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert seen, done.stderr[-2000:]
    state = json.loads(seen[1])
    assert state["client"] == width
    assert state["scroll"] <= width, "the page is wider than the window"
    assert state["heading"] == "vit" and state["verdicts"] == 2
    assert state["images"] == 10 and state["errors"] == []
    assert state["red"] == "rgb(179, 38, 30)"
    assert "CONSOLE" not in done.stderr
