"""``from evaluation import evaluate``: any network and images, no checkpoint and no folder."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluation import evaluate
from evaluation.autoattack.suite import Suite
from models.custom import check_outputs
from tests.helpers import digits, official, tiny, trained
from utils.errors import UserError


class Normalized(nn.Module):
    """A network that this project knows nothing of: a hook inverts the images, and it inverts them again."""

    def __init__(self):
        super().__init__()
        self.net, self.bn = trained("tiny-robust"), nn.BatchNorm2d(3, affine=False, eps=0)
        self.register_buffer("kernel", torch.ones(2, 3, 2, 2))
        self.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))

    def forward(self, x):
        return self.net(self.bn(1 - x))


def test_it_gives_the_verdicts_of_the_official_front_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = digits(14)
    attacks = ["apgd-ce", "apgd-dlr"]
    x_adv, prediction = official(trained("tiny-robust"), x, y, "Linf", 0.1, 8, attacks)
    result = evaluate(
        trained("tiny-robust"), x, y, epsilon=0.1, version="custom", attacks=attacks, seed=3, batch_size=8
    )
    plain = evaluate(
        trained("tiny-robust"), x, y, epsilon=0.1, version="custom", attacks=attacks, seed=3, batch_size=8, plain=True
    )
    robust = prediction == y.numpy()
    assert 0 < robust.sum() < 14
    np.testing.assert_array_equal(result.robust, robust)
    np.testing.assert_array_equal(plain.robust, robust)
    np.testing.assert_array_equal(plain.adversarial_prediction, prediction)
    np.testing.assert_array_equal(plain.x_adv.numpy(), x_adv)
    with torch.no_grad():
        logits, logits_adv = (trained("tiny-robust")(images) for images in (x, result.x_adv))
    np.testing.assert_array_equal(result.clean_prediction, logits.argmax(1))
    np.testing.assert_array_equal(result.adversarial_prediction, logits_adv.argmax(1))
    assert (result.x_adv - x).abs().max() <= 0.1 + 1e-6 and result.x_adv.shape == x.shape
    assert result.robust_accuracy == 100 * robust.sum() / 14 == result.accuracy_after["apgd-dlr"]
    assert result.clean_accuracy == 100 * (logits.argmax(1) == y).sum().item() / 14
    assert list(result.accuracy_after) == attacks and set(result.broken_by) <= {"", "clean", *attacks}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_queries")
def test_the_standard_suite_is_the_default():
    x, y = digits(4)
    result = evaluate(trained("tiny-robust"), x, y, epsilon=0.6, norm="l2", seed=3)
    assert list(result.accuracy_after) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    _, prediction = official(trained("tiny-robust"), x, y, "L2", 0.6, 4)
    np.testing.assert_array_equal(result.robust, prediction == y.numpy())


def test_hooks_of_a_network_are_attacked_too():
    x, y = digits(8)
    settings = {"version": "custom", "attacks": ["apgd-ce"], "seed": 3}
    result, expected = (evaluate(net, x, y, 0.1, **settings) for net in (Normalized(), trained("tiny-robust")))
    assert 0 < expected.robust.sum() < 8
    np.testing.assert_array_equal(result.robust, expected.robust)


@pytest.mark.parametrize("plain", [False, True])
def test_the_model_and_the_random_state_are_left_as_found(plain):
    x, y = digits(3)
    model = Normalized().train()
    model.net[0].eval()
    model.net[2].weight.requires_grad_(True)
    before = [(name, t, t.data_ptr(), t.stride(), t.requires_grad) for name, t in _tensors(model)]
    modes = [module.training for module in model.modules()]
    copies = [tensor.clone() for _, tensor in _tensors(model)]
    torch.manual_seed(5)
    evaluate(
        model, x, y, 0.02, version="custom", attacks=["apgd-ce"], precision="fp32" if plain else "tf32", plain=plain
    )
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert modes == [module.training for module in model.modules()] and sum(modes) not in (0, len(modes))
    after = [(name, t, t.data_ptr(), t.stride(), t.requires_grad) for name, t in _tensors(model)]
    assert [entry[:1] + entry[2:] for entry in after] == [entry[:1] + entry[2:] for entry in before]
    assert all(
        new[1] is old[1] and torch.equal(new[1], copy) for new, old, copy in zip(after, before, copies, strict=True)
    )
    assert not torch.backends.cuda.matmul.allow_tf32


def _tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


def test_wrong_arguments_are_named():
    x, y = digits(3)
    model = trained("tiny-robust")
    for images, labels, sentence in (
        (x[0], y, r"x must be \(N, C, H, W\) and y \(N,\)"),
        (x, y[:2], r"not \(3, 3, 16, 16\) and \(2,\)"),
        (x[:0], y[:0], "x must be"),
        (255 * x, y, r"x must be in \[0, 1\]"),
        (x - torch.nan, y, r"x must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(model, images, labels, 0.1)
    with pytest.raises(UserError, match="unknown attack pgd"):
        evaluate(model, x, y, 0.1, version="custom", attacks=["pgd"])
    with pytest.raises(UserError, match="apgd-t needs 10 classes and here are 4"):
        evaluate(nn.Sequential(model[:-1], nn.Linear(128, 4)), x, y, 0.1)


def test_a_folder_makes_it_resumable(tmp_path, monkeypatch):
    x, y = digits(8)
    settings = {"version": "custom", "attacks": ["apgd-ce", "apgd-dlr"], "seed": 3, "batch_size": 4}
    expected = evaluate(trained("tiny-robust"), x, y, 0.1, **settings)
    run, calls = Suite.run, []

    def interrupted(self, front_end, name, *batch):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, front_end, name, *batch)

    monkeypatch.setattr(Suite, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained("tiny-robust"), x, y, 0.1, **settings, folder=tmp_path)
    result = evaluate(trained("tiny-robust"), x, y, 0.1, **settings, folder=tmp_path)
    assert calls == ["apgd-ce", "apgd-ce", "apgd-ce", "apgd-dlr"]  # the first batch is not repeated
    again = evaluate(trained("tiny-robust"), x, y, 0.1, **settings, folder=tmp_path)
    assert len(calls) == 4  # finished: nothing runs
    for other in (result, again):
        np.testing.assert_array_equal(other.broken_by, expected.broken_by)
        np.testing.assert_array_equal(other.x_adv, expected.x_adv)
        assert other.accuracy_after == expected.accuracy_after
    for model, epsilon, differs in (
        (trained("tiny-robust"), 0.2, "epsilon 0.1 there"),
        (tiny(), 0.1, "weights_sha256"),
    ):
        with pytest.raises(UserError, match=rf"another, unfinished evaluation \({differs}.*or folder$"):
            evaluate(model, x, y, epsilon, **settings, folder=tmp_path)


class Shifting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))

    def forward(self, x):
        x -= 0.5
        return self.net(x)


def test_a_network_that_changes_its_images_is_refused_and_they_are_kept():
    """Each query would shift the images once more: an attack would find a robust accuracy of 0."""
    x, y = torch.rand(3, 3, 2, 2), torch.zeros(3, dtype=torch.int64)
    before = x.clone()
    with pytest.raises(UserError, match="changes the images that it is given, in place: write x = x - mean"):
        evaluate(Shifting(), x, y, 0.1, version="custom", attacks=["square"])
    assert torch.equal(x, before)
    with pytest.raises(UserError, match="in place"):
        check_outputs("net.py:Shifting", Shifting(), x, 4)


class Rounding(torch.nn.Module):
    """An old defence: its logits have a gradient with respect to the weights, not to the images."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))

    def forward(self, x):
        return self.net(torch.from_numpy((8 * x.detach()).numpy().round() / 8))


class Numpy(Rounding):
    def forward(self, x):
        return self.net(torch.from_numpy((8 * x).numpy().round() / 8))


def test_a_network_without_gradient_is_for_the_square_attack_alone():
    x, y = torch.rand(3, 3, 2, 2), torch.arange(3)
    for attacks in ("apgd-ce", "square,apgd-ce", ["fab"]):
        with pytest.raises(UserError, match="the model has no gradient, which all attacks but square need"):
            evaluate(Rounding(), x, y, 0.1, version="custom", attacks=attacks)
    with torch.no_grad():
        network = Numpy()
        result = evaluate(network, x, network(x).argmax(1), 1e-9, version="custom", attacks="square")
    assert result.accuracy_after == {"square": 100.0}
    assert check_outputs("net.py:Numpy", Numpy(), x, gradient=False) == 4
    with pytest.raises(UserError, match="Rounding has no gradient"):
        check_outputs("net.py:Rounding", Rounding(), x, 4)


def test_a_network_that_returns_a_tuple():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UserError, match=r"the model returned a tuple: it must return logits"):
        evaluate(Pair(), torch.rand(1, 3, 2, 2), torch.zeros(1), 0.1)


def test_what_is_around_the_network_is_given_back():
    """Of the official front end too, whose FAB takes gradients of everything."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    x, kept = torch.rand(3, 3, 2, 2), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for plain in (False, True):
            evaluate(net, x, net(x).argmax(1), 0.01, version="custom", attacks="fab", plain=plain)
            assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = kept
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_one_class():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1))
    with pytest.raises(UserError, match=r"apgd-ce needs 2 classes and here are 1$"):
        evaluate(net, torch.rand(1, 3, 2, 2), torch.zeros(1), 0.1)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"norm": "Linf"}, UserError, "norm 'Linf': choose linf or l2"),
        ({"precision": "fp16"}, UserError, "precision 'fp16': choose fp32, tf32, bf16"),
        ({"compile": "maybe"}, UserError, "compile 'maybe': choose auto, on, off"),
        ({"device": "cuda:99"}, UserError, "device 'cuda:99': this machine or this PyTorch has no such CUDA device"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, not 0"),
        ({"y": torch.tensor([0, 4])}, ValueError, r"y must be in \[0, 4\)"),
        ({"y": torch.tensor([0, -1])}, ValueError, r"y must be in \[0, 4\)"),
    ],
    ids=str,
)
def test_impossible_arguments(changes, error, sentence):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    arguments = {"x": torch.rand(2, 3, 2, 2), "y": torch.tensor([0, 1]), "epsilon": 0.1} | changes
    with pytest.raises(error, match=sentence):
        evaluate(net, version="custom", attacks=["square"], **arguments)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.scale, self.calls = trained("tiny-robust"), 1.0, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x * self.scale)


def test_a_network_whose_numbers_or_code_have_changed_is_another(tmp_path, monkeypatch):
    (x, y), settings = digits(6), {"version": "custom", "attacks": "apgd-ce", "folder": tmp_path}
    model = Scaled()
    first = evaluate(model, x, y, 0.05, **settings)
    calls = model.calls
    assert evaluate(model, x, y, 0.05, **settings).accuracy_after == first.accuracy_after
    assert model.calls <= calls + 2  # the counter makes it no other network, and nothing is attacked again
    model.scale = 0.5
    with pytest.raises(UserError, match="another"):
        evaluate(model, x, y, 0.05, **settings)
    model.scale = 1.0
    for forward in (lambda self, x: self.net(1 - x), lambda self, x: self.net(x * self.scale)):  # which counts no call
        monkeypatch.setattr(Scaled, "forward", forward)
        with pytest.raises(UserError, match="another"):
            evaluate(model, x, y, 0.05, **settings)


def test_gradients_are_those_from_before():
    (x, y), model = digits(4), trained("tiny-robust")
    for p in model.parameters():
        p.requires_grad_(True)
    model(x).sum().backward()
    before = [p.grad for p in model.parameters()]
    evaluate(model, x, y, 0.05, version="custom", attacks="apgd-ce")
    assert all(p.grad is grad for p, grad in zip(model.parameters(), before, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_network_and_one_with_functions_resume(tmp_path):
    (x, y), settings = digits(4), {"version": "custom", "attacks": "apgd-ce"}
    holder = Scaled()
    holder.functions = [lambda value: value, nn.functional.relu]  # whose text differs from process to process
    for name, model in (("script", torch.jit.trace(trained("tiny-robust"), x)), ("functions", holder)):
        first = evaluate(model, x, y, 0.05, **settings, folder=tmp_path / name)
        if name == "functions":
            holder.functions = [lambda value: value]
        assert evaluate(model, x, y, 0.05, **settings, folder=tmp_path / name).accuracy_after == first.accuracy_after
