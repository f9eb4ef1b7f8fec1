"""The network that attacks query gives the plain network's answers: folded, compiled, in low precision."""

import pytest
import torch
from torch import nn

from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.early_exit import margin
from tests.helpers import CPU, answers, attacked, digits, images, network, short_package, short_run, suite, trained
from utils.device import ieee_products, set_precision


@pytest.fixture(autouse=True)
def _fp32():
    yield
    set_precision("fp32", CPU)


def class_gradients(model, x):
    """The gradient of each logit, from one forward pass, as FAB without a target takes them."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    return [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in range(10)]


@pytest.mark.parametrize("in_attack", [False, True])
def test_answers_are_the_networks(in_attack):
    x, y = images(9)
    expected = answers(network(), x)
    model = AttackedModel(network().train())
    assert not any(p.requires_grad for p in model.parameters()) and not model.model.training
    if in_attack:
        with model.during_attack(x, y):
            given = answers(model, x)
    else:
        given = answers(model, x)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
    assert model.num_forwarded == (9 if in_attack else 0)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_several_gradients_of_one_forward(compile):
    """Compiled networks give one only, so these come from the eager one."""
    x, y = images(3)
    expected = class_gradients(network(), x)
    model = AttackedModel(network(), compile=compile)
    with model.during_attack(x, y, compiled=False):
        torch.testing.assert_close(class_gradients(model, x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(class_gradients(model, x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("error:torch.compile failed")
def test_compiled_attacks_give_the_front_ends_verdicts():
    """All attacks of the suite, FAB without a target among them, on a compiled network."""
    x, y = digits(8)
    net = trained("tiny-robust")
    chosen = suite(
        "linf", 0.08, ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"), "custom", 8, short_package()
    )
    _, prediction = short_run(net, chosen, x, y)
    ours = attacked(AttackedModel(net, compile="on"), chosen, x, y)
    assert ((ours["broken_by"] == "") == (prediction == y).numpy()).all()
    assert 0 < (ours["broken_by"] == "").sum() < 8


def test_low_precision_is_computed_again_where_it_is_wrong():
    x, y = images(40)
    exact, gradient = answers(network(), x)
    model = AttackedModel(network(), precision="bf16")
    second = exact.topk(2).indices[:, 1]
    labels = torch.where(torch.arange(40) < 20, y, second)  # the latter half is wrong in float32 as well
    with model.during_attack(x, labels):
        given, low_gradient = answers(model, x)
    assert given.dtype == torch.float32
    wrong = margin(given, labels) >= 0
    assert wrong[20:].all()
    torch.testing.assert_close(given[wrong], exact[wrong], atol=1e-5, rtol=1e-5)
    assert (given[~wrong] - exact[~wrong]).abs().max() > 1e-4  # bfloat16's roundings
    assert torch.cosine_similarity(low_gradient.flatten(1), gradient.flatten(1)).min() > 0.98
    torch.testing.assert_close(model(x), exact)  # the final check is float32's


def test_low_precision_allows_a_network_that_needs_its_output_for_the_gradient():
    x, y = images(6)
    model = AttackedModel(nn.Sequential(network(), nn.Tanh()), precision="tf32", fold=False)
    with model.during_attack(x, (y + 1) % 10):
        given = answers(model, x)
    torch.testing.assert_close(given, answers(nn.Sequential(network(), nn.Tanh()), x), atol=1e-5, rtol=1e-5)


def test_ieee_products_restores_the_flags():
    set_precision("tf32", CPU)
    with pytest.raises(ZeroDivisionError), ieee_products():
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


def test_the_verdict_is_computed_in_ieee_float32():
    """Also where the attacks are not; on a CPU only the flag shows it."""
    seen, model = [], nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
    attacked_model = AttackedModel(model, precision="tf32", fold=False)
    x = torch.rand(1, 3, 16, 16)
    attacked_model(x)
    with attacked_model.during_attack(x, model(x).argmax(1)):
        attacked_model(x)
    assert seen == [False, True, True]  # the middle one is this test's own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("tf32", 2e-2), ("bf16", 2e-1)])
def test_on_cuda(precision, tolerance):
    device = torch.device("cuda")
    expected_of, model = network().to(device), AttackedModel(network(), device, precision)
    for n in (20, 7, 1):
        x, y = (tensor.to(device) for tensor in images(n))
        with ieee_products():
            logits, gradient = answers(expected_of, x)
        with model.during_attack(x, y):
            given, given_gradient = answers(model, x)
            with torch.no_grad():
                torch.testing.assert_close(model(x), logits, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(given, logits, atol=tolerance, rtol=tolerance)
        assert torch.cosine_similarity(given_gradient.flatten(1), gradient.flatten(1)).min() > 0.95
        torch.testing.assert_close(model(x), logits, atol=1e-4, rtol=1e-4)
