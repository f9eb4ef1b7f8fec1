"""Queries as CUDA graphs: rounded batch sizes and bookkeeping; on a CPU work is repeated in place of graphs."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from evaluation.autoattack import graphed
from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.graphed import GraphedQueries, round_up
from tests.helpers import answers, attacked, digits, images, network, short_package, short_run, suite, trained
from utils.device import ieee_products


@pytest.fixture
def without_cuda(monkeypatch):
    """A graph is then the work itself, done again."""
    monkeypatch.setattr(graphed, "_capture", lambda work, *_: work)
    monkeypatch.setattr(graphed, "aside", lambda device: nullcontext())
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


def weighted(logits):
    return (torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits) * logits).sum()


def test_a_gradient_survives_later_queries_and_comes_twice(without_cuda):
    net = network().requires_grad_(False)
    queries = GraphedQueries(net)
    x, other = images(9)[0], images(10)[0]
    leaf = x.clone().requires_grad_()
    logits = queries(leaf)
    kept = logits.detach().clone()
    queries(other)
    assert torch.equal(logits, kept)
    for _ in range(2):
        gradient = torch.autograd.grad(weighted(logits), leaf, retain_graph=True)[0]
        torch.testing.assert_close(gradient, answers(net, x)[1], atol=1e-5, rtol=1e-5)
    assert queries(x[:0]).shape == (0, 10)


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return self.network(x)


def test_which_networks_are_graphed(monkeypatch):
    """On a device that is called cuda and is not: only what is chosen matters."""
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    chosen = {
        (compile, kind): AttackedModel(net, "cuda", compile=compile, fold=False)
        for compile in ("auto", "on", "off")
        for kind, net in (("known", network()), ("foreign", Foreign()))
    }
    assert [key for key, model in chosen.items() if isinstance(model._queries, GraphedQueries)] == [("auto", "known")]
    compiled = [key for key, model in chosen.items() if model._network.acceleration.compile_batch_size]
    assert compiled == [("auto", "foreign"), ("on", "known"), ("on", "foreign")]
    assert not isinstance(AttackedModel(network())._queries, GraphedQueries)


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch, without_cuda):
    def fail(work, pool, device):
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
def test_interleaved_on_cuda():
    """Graphs of several sizes share their memory. Against float64 on the CPU."""
    net = network().requires_grad_(False).cuda()
    queries, reference = GraphedQueries(net), network().double()
    with ieee_products():
        for n in (40, 13, 1, 40, 39, 13):
            x, other = images(n)[0], images(21)[0].cuda()
            expected = answers(reference, x.double())
            leaf = x.cuda().requires_grad_()
            logits = queries(leaf)
            with torch.no_grad():
                queries(other)
            for _ in range(2):
                gradient = torch.autograd.grad(weighted(logits), leaf, retain_graph=True)[0]
                torch.testing.assert_close(gradient.cpu().double(), expected[1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(logits.detach().cpu().double(), expected[0], atol=1e-4, rtol=1e-4)
    assert queries._works and {shape[0] for shape in queries._graphs} == {40, 14, 8, 24}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
def test_verdicts_on_cuda():
    x, y = (tensor.cuda() for tensor in digits(40))
    net, verdicts = trained("tiny-robust").cuda(), {}
    for compile in ("auto", "off"):
        chosen = suite("linf", 0.08, ("apgd-ce", "apgd-t"), "custom", 40, short_package(), device="cuda")
        verdicts[compile] = attacked(AttackedModel(net, "cuda", compile=compile), chosen, x, y)["broken_by"] == ""
    assert (verdicts["auto"] == verdicts["off"]).mean() > 0.95
