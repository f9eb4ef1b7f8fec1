"""Queries as CUDA graphs: rounded batch sizes and bookkeeping; on a CPU work is repeated in place of graphs."""

import pytest
import torch

from evaluation.autoattack import graphed
from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.graphed import GraphedQueries, round_up
from tests.evaluation.test_attacked_model import answers, images, network
from tests.helpers import attacked, digits, short_package, short_run, suite, trained
from utils.device import ieee_products


@pytest.fixture
def without_cuda(monkeypatch):
    """A graph is then the work itself, done again."""
    monkeypatch.setattr(graphed, "_capture", lambda work, pool: work)
    monkeypatch.setattr(graphed, "_warm_up", lambda work: work())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")


def test_sizes():
    assert [round_up(n) for n in (1, 7, 8, 9, 10, 11, 16, 17, 33, 64, 65, 250, 500, 1000)] == [
        8, 8, 8, 10, 10, 12, 16, 20, 40, 64, 80, 256, 512, 1024,
    ]  # fmt: skip
    sizes = [round_up(n) for n in range(8, 2000)]
    assert all(n <= size < 1.25 * n for n, size in zip(range(8, 2000), sizes, strict=True))
    assert sizes == sorted(sizes) and len(set(sizes)) == 33


def test_answers_are_the_networks(without_cuda):
    net, seen = network().requires_grad_(False), []
    queries = GraphedQueries(lambda x: seen.append(len(x)) or net(x))
    for n in (40, 13, 1, 12):
        x, _ = images(n)
        torch.testing.assert_close(answers(queries, x), answers(net, x), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            assert not queries(x).requires_grad
    assert set(seen) == {40, 14, 8, 12}


def test_a_gradient_survives_later_queries(without_cuda):
    net = network().requires_grad_(False)
    queries = GraphedQueries(net)
    x, other = images(9)[0], images(10)[0]
    leaf = x.clone().requires_grad_()
    logits = queries(leaf)
    kept = logits.detach().clone()
    queries(other)
    assert torch.equal(logits, kept)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    gradient = torch.autograd.grad((weights * logits).sum(), leaf)[0]
    torch.testing.assert_close(gradient, answers(net, x)[1], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch, without_cuda):
    def fail(work, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphed, "_capture", fail)
    net = network().requires_grad_(False)
    queries = GraphedQueries(net)
    x, _ = images(3)
    with pytest.warns(UserWarning, match=r"no CUDA graph \(operation not permitted when stream is capturing\)"):
        given = answers(queries, x)
    torch.testing.assert_close(given, answers(net, x))
    torch.testing.assert_close(answers(queries, x), answers(net, x))


def test_attacks_through_graphs_give_the_front_ends_verdicts(without_cuda):
    x, y = digits(8)
    net = trained("tiny-robust")
    chosen = suite(
        "linf", 0.08, ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"), "custom", 8, short_package()
    )
    _, prediction = short_run(net, chosen, x, y)
    model = AttackedModel(net)
    model._queries = GraphedQueries(model._network.attack_logits)
    ours = attacked(model, chosen, x, y)
    assert ((ours["broken_by"] == "") == (prediction == y).numpy()).all()
    assert 0 < (ours["broken_by"] == "").sum() < 8
    assert {shape[0] for shape in model._queries._graphs} == {8}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
@pytest.mark.parametrize("n", [40, 13, 1])
def test_on_cuda(n):
    """Against float64 on the CPU, and a replay against the first."""
    x, _ = images(n)
    expected = answers(network().double(), x.double())
    net = network().requires_grad_(False).cuda()
    queries = GraphedQueries(net)
    with ieee_products():
        for _ in range(3):
            given = answers(queries, x.cuda())
            for a, b in zip(given, expected, strict=True):
                torch.testing.assert_close(a.cpu().double(), b, atol=1e-4, rtol=1e-4)
            with torch.no_grad():
                torch.testing.assert_close(queries(x.cuda()).cpu().double(), expected[0], atol=1e-4, rtol=1e-4)
    assert queries._works and set(queries._graphs) == {(round_up(n), 3, 16, 16)}
