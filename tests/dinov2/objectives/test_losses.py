import math

import pytest
import torch
from torch.nn import functional as F

from dinov2.distributed import average_gradients, gather, mean, rank, world
from dinov2.objectives import losses
from tests.ranks import assert_rank_law

TWO_VIEW = {
    "nt_xent": lambda a, b: losses.nt_xent(a, b, 0.3),
    "info_nce": lambda a, b: losses.info_nce(a, b, 0.3),
    "info_nce_queue": lambda a, b: losses.info_nce(a, b, 0.3, torch.eye(6, dtype=a.dtype)[:5]),
    "negative_cosine": losses.negative_cosine,
    "cross_correlation": losses.cross_correlation,
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drifting(rows, width, seed):
    """Rows whose mean wanders over the batch, as geographically ordered shards do."""
    return draw(rows, width, seed=seed) + torch.linspace(-2, 2, rows, dtype=torch.float64)[:, None]


def own(x, sizes=None):
    """This rank's rows of a batch, in equal parts or in parts of ``sizes``."""
    parts = x.tensor_split(world()) if sizes is None else x.split(sizes)
    return parts[rank()]


# ---- values


def test_nt_xent_by_loops():
    z = F.normalize(draw(8, 6), dim=1)
    total = 0.0
    for i in range(8):
        scores = {j: math.exp(float(z[i] @ z[j]) / 0.3) for j in range(8) if j != i}
        total -= math.log(scores[(i + 4) % 8] / sum(scores.values()))
    assert losses.nt_xent(3 * z[:4], z[4:], 0.3).item() == pytest.approx(total / 8, rel=1e-5)


def test_info_nce_by_loops():
    q, k, queue = (F.normalize(draw(n, 6, seed=n), dim=1) for n in (4, 4, 7))
    in_batch = with_queue = 0.0
    for i in range(4):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        in_batch -= math.log(positive / sum(math.exp(float(q[i] @ k[j]) / 0.2) for j in range(4)))
        with_queue -= math.log(positive / (positive + sum(math.exp(float(q[i] @ n) / 0.2) for n in queue)))
    assert losses.info_nce(q, k).item() == pytest.approx(in_batch / 4, rel=1e-5)
    assert losses.info_nce(q, k, queue=queue).item() == pytest.approx(with_queue / 4, rel=1e-5)


def test_equal_views_are_the_optimum_of_cosine_and_of_barlows_diagonal():
    z = draw(16, 4)
    assert losses.negative_cosine(z, 5 * z).item() == pytest.approx(-1)
    assert losses.cross_correlation(z, 5 * z + 3, off_diagonal=0.0).item() == pytest.approx(0, abs=1e-8)


# ---- the rank law


def two_view_terms(name):
    views = [own(drifting(12, 6, seed)).requires_grad_() for seed in (1, 2)]
    loss = TWO_VIEW[name](*views)
    grads = torch.autograd.grad(loss, views, allow_unused=True)
    # the mean over ranks of gradients with respect to a parameter is W times smaller than that of own rows
    rows = {f"{name} d{i}": gather(g) / world() for i, g in enumerate(grads) if g is not None}
    return {name: mean(loss.detach()), **rows}


def all_terms():
    terms = {}
    for name in TWO_VIEW:
        terms |= two_view_terms(name)
    # KoLeo through a shared parameter: a row is also the neighbour of other ranks' rows
    weight = torch.nn.Parameter(draw(6, 5, seed=3))
    loss = losses.koleo(own(drifting(12, 6, 4)) @ weight)
    loss.backward()
    average_gradients([weight])
    terms |= {"koleo": mean(loss.detach()), "koleo dW": weight.grad}
    # ranks with different numbers of rows, the last one with none
    sizes = {1: [9], 2: [9, 0], 3: [2, 7, 0]}[world()]
    rows, prototypes = own(drifting(9, 6, 5), sizes), draw(7, 6, seed=6)
    terms["sinkhorn"] = losses.sinkhorn_bias(rows, prototypes, 0.2)
    total, count = rows.sum(0), torch.tensor(float(len(rows)))
    terms["centre"] = losses.moved_centre(draw(6, seed=7), total, count, 0.9)
    return terms


def test_ranks_equal_one_rank():
    assert_rank_law(all_terms)


# ---- DINO's losses


def matrix_sinkhorn(logits, temperature, iterations):
    """Sinkhorn-Knopp as written: prototypes, then samples, on the whole matrix (SwAV, listing 1)."""
    q = torch.exp(logits / temperature).T
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def balanced(features, prototypes, temperature, iterations=3, rows=None):
    bias = losses.sinkhorn_bias(features, prototypes, temperature, iterations, rows)
    return (features @ prototypes.T / temperature + bias).softmax(1)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("chunk", [1, 21, 2**22])
def test_sinkhorn_equals_the_matrix_form(iterations, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    h, w = draw(10, 6), draw(7, 6, seed=1)
    torch.testing.assert_close(balanced(h, w, 0.5, iterations), matrix_sinkhorn(h @ w.T, 0.5, iterations))


def test_sinkhorn_survives_logits_that_overflow_the_matrix_form():
    h, w = draw(10, 6), draw(7, 6, seed=1)  # logits up to 600: within float64, far beyond float32
    h32, w32 = h.float(), w.float()
    assert not matrix_sinkhorn(h32 @ w32.T, 0.01, 3).isfinite().all()
    expected = matrix_sinkhorn(h32.double() @ w32.double().T, 0.01, 3)
    torch.testing.assert_close(balanced(h32, w32, 0.01).double(), expected, rtol=0, atol=1e-3)


def test_sinkhorn_looks_at_no_padding():
    h, w = draw(10, 6), draw(7, 6, seed=1)
    padded, real = torch.cat([h, draw(3, 6, seed=2)]), torch.arange(13) < 10
    torch.testing.assert_close(balanced(padded, w, 0.5, rows=real)[:10], balanced(h, w, 0.5))


def test_centre_in_the_bottleneck_is_the_centre_of_the_logits():
    h, w, centre = draw(10, 6), draw(7, 6, seed=1), draw(6, seed=2)
    moved = losses.moved_centre(centre, h.sum(0), torch.tensor(10.0), 0.9)
    logits = h @ w.T
    torch.testing.assert_close(w @ moved, 0.9 * (w @ centre) + 0.1 * logits.mean(0))
    bias = losses.centering_bias(w, moved, 0.04)
    torch.testing.assert_close((logits / 0.04 + bias).softmax(1), ((logits - w @ moved) / 0.04).softmax(1))
    assert torch.equal(losses.moved_centre(centre, h[:0].sum(0), torch.tensor(0.0), 0.9), centre)


def plain_cross_entropy(student, prototypes, teacher, theirs, bias, weights):
    targets = (teacher @ theirs.T / 0.04 + bias).softmax(-1)  # [T, N, K]
    logs = (student @ prototypes.T / 0.1).log_softmax(-1)  # [S, N, K]
    return -(torch.einsum("tnk,snk->n", targets, logs) * weights).sum()


@pytest.mark.parametrize("chunk", [1, 60, 2**22])
@pytest.mark.parametrize("students, teachers, rows", [(1, 1, 8), (3, 2, 5), (1, 1, 0)])
def test_chunked_prototype_loss_equals_the_plain_one(students, teachers, rows, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    student, prototypes = draw(students, rows, 6).requires_grad_(), draw(7, 6, seed=1).requires_grad_()
    rest = draw(teachers, rows, 6, seed=2), draw(7, 6, seed=3), draw(7, seed=4), draw(rows, seed=5).abs()
    expected = plain_cross_entropy(student, prototypes, *rest)
    found = losses.prototype_cross_entropy(student, prototypes, *rest, temperature=0.1, teacher_temperature=0.04)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(3 * x, (student, prototypes)) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_entropy_of_the_targets(chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    h, w, bias = draw(5, 6), draw(7, 6, seed=1), draw(7, seed=2)
    p = (h @ w.T / 0.5 + bias).softmax(1)
    torch.testing.assert_close(losses.target_entropy(h, w, bias, 0.5), -(p * p.log()).sum(1).mean())
    assert losses.target_entropy(h, 0 * w, 0 * bias, 0.5).item() == pytest.approx(math.log(7))
    assert losses.target_entropy(h, 1000 * w, bias, 0.5).item() == pytest.approx(0, abs=1e-6)


def test_every_masked_image_weighs_the_same():
    masks = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    expected = torch.tensor([[1 / 6, 0, 1 / 6, 0], [0, 0, 0, 0], [1 / 12] * 4])
    torch.testing.assert_close(losses.masked_weights(masks), expected)


def test_koleo_of_a_square():
    square = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]])  # sides of length sqrt(2) once normalised
    assert losses.koleo(square).item() == pytest.approx(-0.5 * math.log(2), rel=1e-5)


def test_koleo_survives_duplicates_and_a_lonely_row():
    x = draw(6, 4).float()
    x[1] = x[0]
    x.requires_grad_()
    loss = losses.koleo(x)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and grad.norm() < 100
    lonely = draw(1, 4).requires_grad_()
    assert losses.koleo(lonely) == 0
    assert torch.autograd.grad(losses.koleo(lonely), lonely)[0].abs().max() == 0


@pytest.mark.parametrize("loss", [losses.koleo, *TWO_VIEW.values()], ids=["koleo", *TWO_VIEW])
def test_losses_are_float32_under_autocast(loss):
    views = [drifting(32, 6, seed).bfloat16() for seed in range(1 if loss is losses.koleo else 2)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(*views)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(*(view.float() for view in views)))
