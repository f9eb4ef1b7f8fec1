"""The network as the attacks see it gives the plain network's answers: in pieces, in low precision, watched."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from evaluation.autoattack import attacked_model as queries_module
from evaluation.autoattack.attacked_model import AllImagesBroken, AttackedModel, fastest_batch, margin
from models import create_model
from utils.device import ieee_products, set_precision
from utils.errors import UserError

CPU = torch.device("cpu")


def network(seed=0):
    """A wrn-10-1 whose BatchNorm does something, for 16x16 images."""
    torch.manual_seed(seed)
    model = create_model("wrn-10-1", 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model.eval()


def images(n):
    x = (torch.rand(n, 3, 1, 1) + 0.5 * torch.rand(n, 3, 16, 16)).clamp(0, 1)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def answers(model, x, **kwargs):
    """Logits, and the gradient of a sum that weighs them differently; asked as an attack asks."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits.detach(), torch.autograd.grad((weights * logits).sum(), leaf, **kwargs)[0]


@contextmanager
def recording(module, limit=10**6, backward_limit=10**6):
    """Rows of each forward; more than the limits are out of memory."""
    rows = []

    def forward(module, inputs, output):
        rows.append(len(inputs[0]))
        if len(inputs[0]) > limit:
            raise torch.cuda.OutOfMemoryError("no room for the activations")
        if output.requires_grad:
            output.register_hook(backward)

    def backward(gradient):
        if len(gradient) > backward_limit:
            raise torch.cuda.OutOfMemoryError("no room for the gradients")

    hook = module.register_forward_hook(forward)
    yield rows
    hook.remove()


@pytest.mark.parametrize("watched", [False, True])
def test_answers_are_the_networks(watched):
    x, y = images(9)
    expected = answers(network(), x)
    queries = AttackedModel(network().train())
    assert not any(p.requires_grad for p in queries.parameters()) and not queries.model.training
    if watched:
        with queries.watching(x, y):
            given = answers(queries, x)
    else:
        given = answers(queries, x)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert queries.rows == (9 if watched else 0)


def test_several_gradients_of_one_forward():
    """As FAB without a target asks for them."""
    x, _ = images(3)
    queries, model = AttackedModel(network()), network()
    ours, theirs = [], []
    for net, gradients in ((queries, ours), (model, theirs)):
        leaf = x.clone().requires_grad_()
        out = net(leaf)
        for k in range(10):
            gradients.append(torch.autograd.grad(out[:, k].sum(), leaf, retain_graph=True)[0])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("limits, piece", [((10, 10**6), 9), ((4, 10**6), 4), ((10**6, 5), 4), ((6, 1), 1)])
def test_out_of_memory_repeats_the_query_in_halves(limits, piece):
    x, _ = images(18)
    expected = answers(network(), x)
    queries = AttackedModel(network())
    with recording(queries.model, *limits) as rows:
        first = answers(queries, x)
        assert queries.piece == piece
        del rows[:]
        again = answers(queries, x)
    assert max(rows) == piece  # the limit is remembered
    for given in (first, again):
        torch.testing.assert_close(given, expected, atol=1e-6, rtol=1e-5)


def test_one_image_that_does_not_fit_is_a_user_error():
    x, _ = images(5)
    for limits in ((0, 10**6), (10**6, 0)):
        queries = AttackedModel(network())
        with recording(queries.model, *limits), pytest.raises(UserError, match="one image alone does not fit"):
            answers(queries, x)


def test_settled_images_leave():
    """Images 1 and 3 are moved to others' places, where they are wrong; in the end all are."""
    linear = nn.Linear(768, 10)
    linear.weight.data -= linear.weight.mean(1, keepdim=True).detach()
    x = torch.rand(6, 3, 16, 16)
    y = linear(x.flatten(1)).argmax(1)
    queries = AttackedModel(nn.Sequential(nn.Flatten(), linear))
    wrong = torch.stack([x[(y != label).nonzero()[0, 0]] for label in y])
    points = x.clone()
    points[[1, 3]] = wrong[[1, 3]]
    with queries.watching(x, y, lambda images: torch.ones(6, dtype=torch.bool)) as run:
        first, _ = answers(queries, points)
        assert run.left.tolist() == [False, True, False, True, False, False]
        torch.testing.assert_close(run.points, points)
        logits, gradient = answers(queries, x)
        torch.testing.assert_close(logits[[1, 3]], first[[1, 3]])  # what they were taken for stays
        assert not gradient[[1, 3]].any() and gradient[[0, 2, 4, 5]].flatten(1).any(1).all()
        with torch.no_grad():
            queries(wrong)
        assert run.left.all() and queries.rows == 6 + 4 + 4
        torch.testing.assert_close(run.points, wrong)
        with pytest.raises(AllImagesBroken):
            queries(x)
    assert torch.equal(queries(x).argmax(1), y)  # nobody watches any more


def test_what_does_not_count_does_not_settle():
    x, y = images(6)
    queries = AttackedModel(network())
    with queries.watching(x, (y + 1) % 10, lambda images: torch.arange(6) == 2) as run:
        queries(x)
    assert run.left.tolist() == [False, False, True, False, False, False]
    with AttackedModel(network(), leaving=False).watching(x, (y + 1) % 10, lambda images: torch.arange(6) == 2) as run:
        queries(x)
    assert not run.left.any()


def test_a_rounding_does_not_settle():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 1 + 5e-5], [1.0, 1 + 2e-4]]) + 0 * x.flatten(1)[:, :1]

    queries = AttackedModel(Fixed(), fold=False)
    x, y = torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    with queries.watching(x, y, lambda images: torch.ones(2, dtype=torch.bool)) as run:
        queries(x)
    assert run.left.tolist() == [False, True]


def test_low_precision_is_asked_again_where_it_is_wrong():
    x, y = images(40)
    model = network()
    exact, gradient = answers(model, x)
    queries = AttackedModel(network(), precision="bf16")
    second = exact.topk(2).indices[:, 1]
    labels = torch.where(torch.arange(40) < 20, y, second)  # the latter half is wrong in float32 as well
    with queries.watching(x, labels):
        given, low_gradient = answers(queries, x)
    assert given.dtype == torch.float32
    wrong = margin(given, labels) >= 0
    assert wrong[20:].all()
    torch.testing.assert_close(given[wrong], exact[wrong], atol=1e-5, rtol=1e-5)
    assert (given[~wrong] - exact[~wrong]).abs().max() > 1e-4  # bfloat16's roundings
    assert torch.cosine_similarity(low_gradient.flatten(1), gradient.flatten(1)).min() > 0.98
    torch.testing.assert_close(queries(x), exact)  # the verdict is float32's


def test_verdict_is_in_ieee_arithmetic():
    flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    try:
        set_precision("tf32", CPU)
        with pytest.raises(ZeroDivisionError), ieee_products():
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
            raise ZeroDivisionError
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_fastest_batch(monkeypatch):
    """The largest that fits and pays."""
    rates = {16: 100, 32: 150, 64: 190, 128: 210, 256: 215, 512: 400}
    monkeypatch.setattr(queries_module, "_seconds_a_step", lambda queries, images: len(images) / rates[len(images)])
    assert fastest_batch(AttackedModel(network()), (3, 16, 16)) == 128
    monkeypatch.undo()
    for limit in (40, 5):
        queries = AttackedModel(network(), fold=False)
        with recording(queries.model, limit):
            assert fastest_batch(queries, (3, 8, 8)) in ((16, 32) if limit == 40 else (4,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("tf32", 2e-2), ("bf16", 2e-1)])
def test_on_cuda(precision, tolerance):
    """Compiled, and with several gradients of one forward."""
    device = torch.device("cuda")
    expected_of, queries = network().to(device), AttackedModel(network(), device, precision)
    for rows in (20, 7, 1):
        x, y = (tensor.to(device) for tensor in images(rows))
        with ieee_products():
            logits, gradient = answers(expected_of, x)
        with queries.watching(x, y):
            given, given_gradient = answers(queries, x)
            with torch.no_grad():
                torch.testing.assert_close(queries(x), logits, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(given, logits, atol=tolerance, rtol=tolerance)
        assert torch.cosine_similarity(given_gradient.flatten(1), gradient.flatten(1)).min() > 0.95
        torch.testing.assert_close(queries(x), logits, atol=1e-4, rtol=1e-4)
