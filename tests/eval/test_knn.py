import math

import pytest
import torch

from eval.knn import knn, votes
from eval.probe import ProbeData


def by_hand(bank, labels, query, classes, k, temperature):
    cosines = sorted(
        ((torch.dot(b, query) / (b.norm() * query.norm())).item(), y)
        for b, y in zip(bank, labels.tolist(), strict=True)
    )[-k:]
    total = sum(math.exp(c / temperature) for c, _ in cosines)
    out = [0.0] * classes
    for c, y in cosines:
        out[y] += math.exp(c / temperature) / total
    return out


def test_votes_equal_a_loop():
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(40, 8), torch.randint(3, (40,)), torch.randn(12, 8)
    found = votes(bank, labels, queries, 3, 7, 0.07)
    expected = torch.tensor([by_hand(bank, labels, q, 3, 7, 0.07) for q in queries])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_chunks_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    arguments = torch.randn(40, 8), torch.randint(3, (40,)), torch.randn(12, 8), 3, 7, 0.07
    whole = votes(*arguments)
    monkeypatch.setattr("eval.knn.CHUNK", 5)
    torch.testing.assert_close(votes(*arguments), whole)


def data(**poolings):
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    part = {k: f(labels) for k, f in poolings.items()}
    return ProbeData(part, part, part, labels, labels, 2), labels


def test_pooling_is_chosen_by_validation():
    probe, labels = data(noise=lambda y: torch.randn(len(y), 4), good=lambda y: torch.eye(2)[y])
    outcome = knn(probe, 0, k=5, poolings=("noise", "good"))
    assert outcome.chosen == {"pooling": "good", "val_accuracy": 1.0}
    assert torch.equal(torch.cat(list(outcome.logits)).argmax(1), labels)


def test_a_single_feature_vector_needs_no_choice():
    probe, _ = data(pixels=lambda y: torch.eye(2)[y])
    assert knn(probe, 0, k=5, poolings=("cls",)).chosen["pooling"] == "pixels"


def test_errors():
    probe, _ = data(cls=lambda y: torch.eye(2)[y], mean=lambda y: torch.eye(2)[y])
    with pytest.raises(ValueError, match="task.k is 61, but there are only 60 training samples"):
        knn(probe, 0, k=61)
    with pytest.raises(ValueError, match="task.k is 0; it counts neighbours"):
        knn(probe, 0, k=0)
    with pytest.raises(ValueError, match="task.temperature is 0.0; give a number above 0"):
        knn(probe, 0, k=5, temperature=0.0)
    with pytest.raises(ValueError, match="this model offers cls, mean"):
        knn(probe, 0, k=5, poolings=("max",))
