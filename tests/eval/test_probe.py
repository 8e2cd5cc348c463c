import dataclasses
import math

import torch
import torch.nn.functional as F

from eval.dense_metrics import bootstrap
from eval.probe import INIT_STD, ProbeData, linear, standardise, train_heads

RATES = (1e-3, 1e-2, 0.1)


def toy(n=50, d=6, classes=3):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(n, d, generator=draw), torch.randint(classes, (n,), generator=draw)


def test_the_grid_equals_each_head_alone():
    x, y = toy()
    options = {"epochs": 4, "batch_size": 16, "seed": 5}
    weight, bias = train_heads(x, F.one_hot(y, 3), RATES, "classification", **options)
    for g, rate in enumerate(RATES):
        w, b = train_heads(x, F.one_hot(y, 3), (rate,), "classification", **options)
        torch.testing.assert_close(weight[g], w[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(bias[g], b[0], rtol=1e-5, atol=1e-6)


def test_a_head_equals_torch_sgd():
    x, y = toy()
    epochs, batch, seed, rate = 4, 16, 5, 0.1
    (weight,), (bias,) = train_heads(
        x, F.one_hot(y, 3), (rate,), "classification", epochs=epochs, batch_size=batch, seed=seed
    )

    draw = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(6, 3)
    head.weight.data, head.bias.data = (INIT_STD * torch.randn(6, 3, generator=draw)).T.contiguous(), torch.zeros(3)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9)
    steps = epochs * math.ceil(50 / batch)
    for step in range(steps):
        if step % math.ceil(50 / batch) == 0:
            batches = torch.randperm(50, generator=draw).split(batch)
        rows = batches[step % math.ceil(50 / batch)]
        optimizer.param_groups[0]["lr"] = rate * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        F.cross_entropy(head(x[rows]), y[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(weight, head.weight.detach().T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, head.bias.detach(), rtol=1e-5, atol=1e-6)


def predicted(outcome):
    return torch.cat(list(outcome.logits)).argmax(1)


def probe(features, labels):
    parts = [{"cls": x} for x in features.split(len(features) // 3)]
    y = labels.split(len(labels) // 3)
    return ProbeData(*parts, y[0], y[1], 3), y[2]


def test_separable_features_are_separated():
    labels = torch.arange(90) % 3
    data, truth = probe(F.one_hot(labels, 3) + 0.05 * torch.randn(90, 3, generator=torch.Generator()), labels)
    assert torch.equal(predicted(linear(data, 0, poolings=("cls",))), truth)


def test_random_labels_stay_at_chance():
    draw = torch.Generator().manual_seed(0)
    data, truth = probe(torch.randn(900, 16, generator=draw), torch.randint(3, (900,), generator=draw))
    right = (predicted(linear(data, 0, poolings=("cls",), epochs=10)) == truth).double()
    low, high = bootstrap(torch.stack([right, torch.ones(len(right))], 1), lambda s: s[:, 0] / s[:, 1])
    assert low < 1 / 3 < high


def test_the_best_head_is_the_one_validation_names():
    # the noise pooling is useless, and with the smallest rate the good one has not moved: the grid must see both
    labels = torch.arange(90) % 3
    data, truth = probe(F.one_hot(labels, 3).float(), labels)
    noise = {"cls": torch.zeros(30, 4)}
    data = dataclasses.replace(
        data, **{n: {"noise": noise["cls"], "good": getattr(data, n)["cls"]} for n in ("train", "val", "test")}
    )
    outcome = linear(data, 0, poolings=("noise", "good"), learning_rates=(1e-9, 0.3), epochs=30)
    assert outcome.chosen == {"pooling": "good", "learning_rate": 0.3, "val_accuracy": 1.0}
    assert torch.equal(predicted(outcome), truth)


def test_a_probe_never_holds_test_labels():
    names = {field.name for field in dataclasses.fields(ProbeData)}
    assert names == {"train", "val", "test", "train_labels", "val_labels", "classes", "kind"}


def test_standardised_by_the_training_split():
    train, val = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[5.0, 7.0]])
    data = ProbeData({"cls": train}, {"cls": val}, {"cls": val}, torch.tensor([0, 1]), torch.tensor([0]), 2)
    a, b, c = standardise(data, "cls")
    assert a.tolist() == [[-1, 0], [1, 0]]
    assert b.tolist() == c.tolist() == [[3, 2]]
