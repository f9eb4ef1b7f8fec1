"""The cross-checks: exact figures for a linear network, a robust network passes, and each sign is recognised."""

import functools
import re

import pyautoattack
import pytest
import torch
from torch import nn
from tqdm import tqdm

from evaluation import gradient_masking as masking
from evaluation.gradient_masking import cross_checks
from tests.helpers import CHECKS, digits, suite, trained

pytestmark = pytest.mark.usefixtures("few_queries")


@functools.cache
def robust_net():
    return trained("tiny-robust-0.1")


class Behind(nn.Module):
    """A network behind, or in front of, something that hides its gradients."""

    def __init__(self, before=lambda x: x, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after = robust_net(), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def passed(checks):
    assert [check.name for check in checks] == CHECKS
    assert all(type(check.passed) is bool for check in checks)  # which the report's JSON can hold
    return [check.passed for check in checks]


def official(model, x, y, attacks, epsilon, norm="Linf"):
    """(n,) bool: what the official front end finds robust, with the restarts of the standard version."""
    front_end = pyautoattack.AutoAttack(model, norm=norm, eps=epsilon, seed=3, version="standard")
    front_end.attacks_to_run = attacks
    return front_end.run_standard_evaluation(x, y, batch_size=len(x))[1] == y


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.2)])
def test_exact_figures_of_a_linear_network(norm, epsilon):
    """Two classes on either side of a plane through gray; each image lies at a chosen distance from it."""
    weight = torch.randn(75)
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 2)).requires_grad_(False).eval()
    net[1].weight.copy_(torch.stack([-weight, weight]))
    net[1].bias.copy_(-0.5 * net[1].weight.sum(1))
    distance = torch.linspace(-3 * epsilon, 3 * epsilon, 30)
    direction = weight.sign() if norm == "linf" else weight / weight.norm()
    x = (0.5 + distance[:, None] * direction).view(30, 3, 5, 5)
    y = (distance > 0).long()
    y[0], distance[0] = 1 - y[0], 0  # wrong from the start
    left = [int((distance.abs() > radius).sum()) for radius in (0, epsilon / 2, epsilon, 2 * epsilon)]
    assert left == [29, 25, 19, 9]
    checks = cross_checks(net, suite(norm, epsilon, batch_size=20), x, y, distance.abs() > epsilon)
    assert passed(checks) == [True] * 4
    black = int(
        re.fullmatch(r"(\d+) of 30 images are correct under square alone, 19 under apgd-ce", checks[0].detail)[1]
    )
    assert 19 <= black <= 29  # there are too few classes for apgd-t
    gray = "0.5" if norm == "linf" else "4.33013"
    figures = f"29 at 0, 25 at {epsilon / 2:g}, 19 at {epsilon:g}, 9 at {2 * epsilon:g}, 0 at {gray}"
    assert checks[1].detail == f"of 30 images, correct under apgd-ce: {figures}; plain gray breaks 0 of the last"
    assert checks[2].detail == (
        "19 of 30 images are correct under 5 restarts, 19 under apgd, 19 under the suite, of which PGD breaks 0"
    )


def test_a_robust_network_passes():
    """Its figures are those of the official front end and of a plain loop over the noise."""
    net, (x, y) = robust_net(), digits(12)
    attacked = suite(batch_size=12)
    after = {names: official(net, x, y, names.split(" + "), 0.1) for names in ("square", "apgd-ce + apgd-t")}
    white = int(after["apgd-ce + apgd-t"].sum())
    assert 0 < white < 12  # the test would be worth little if all fell or none
    checks = cross_checks(net, attacked, x, y, after["apgd-ce + apgd-t"])
    assert passed(checks) == [True] * 4
    black = int(after["square"].sum())
    assert checks[0].detail == f"{black} of 12 images are correct under square alone, {white} under apgd-ce + apgd-t"
    clean = int((net(x).argmax(1) == y).sum())
    counts = [clean, *(int(official(net, x, y, ["apgd-ce"], epsilon).sum()) for epsilon in (0.05, 0.1, 0.2, 0.5))]
    figures = ", ".join(f"{n} at {e}" for n, e in zip(counts, (0, 0.05, 0.1, 0.2, 0.5), strict=True))
    assert checks[1].detail == f"of 12 images, correct under apgd-ce: {figures}; plain gray breaks 0 of the last"
    generator = torch.Generator().manual_seed(attacked.seed)
    right = 0
    for _ in range(10):
        noise = torch.rand(x.shape, generator=generator) * 2 - 1
        right += (net((x + 0.1 * noise).clamp(0, 1)).argmax(1) == y).sum().item()
    figures = f"clean {clean / 0.12:.2f}%, under uniform noise of 0.1 {right / 1.2:.2f}% in the mean of 10 draws"
    assert checks[3].detail == f"{figures}; a loss of up to 5 points passes"


def test_gradients_that_rounding_hides_fail():
    x, y = digits(12)
    net = Behind(before=lambda x: (8 * x).round() / 8)
    checks = cross_checks(net, suite(batch_size=12), x, y, torch.zeros(12, dtype=torch.bool))
    assert passed(checks) == [False, False, True, True]
    black, n, white = map(int, re.findall(r"\d+", checks[0].detail))
    assert n == 12 and black < white - 1
    assert int(re.search(r"gray breaks (\d+)", checks[1].detail)[1]) > 6


def under_examination(net, n):
    x, y = digits(n)
    images = masking._Images(net, suite(batch_size=n), x, y, tqdm(disable=True))
    clean = images.correct_under(images.correct)
    return images, clean, images.correct_under_suite("apgd-ce", clean)


def test_gradients_that_saturation_hides_fail():
    """With logits this large, the softmax is 1 and the gradient of the cross-entropy 0 in float32."""
    images, clean, after_ce = under_examination(Behind(after=lambda logits: 1e5 * logits), 20)
    check = masking._falls(images, clean, after_ce, [0.05, 0.5])
    assert check.passed is False
    assert check.detail.startswith("of 20 images, correct under apgd-ce: 19 at 0, 19 at 0.05, 19 at 0.1")


def test_accuracy_that_rises_with_epsilon_fails():
    images, clean, _ = under_examination(robust_net(), 20)
    check = masking._falls(images, clean, torch.zeros_like(clean), [0.05, 0.11, 0.5])
    assert check.passed is False and re.search(r", 0 at 0\.1, ([2-9]|1\d) at 0\.11, 0 at 0\.5", check.detail)


def test_a_network_that_noise_breaks_fails():
    """It is correct on multiples of 1/255, as an image file holds them, and on nothing between."""

    def shattered(x):
        between = ((255 * x).round() - 255 * x).abs().flatten(1).max(1).values > 0.01
        return torch.where(between.view(-1, 1, 1, 1), 1 - x, x)

    x, y = digits(20)
    checks = cross_checks(Behind(before=shattered), suite(batch_size=20), x, y, torch.zeros(20, dtype=torch.bool))
    assert passed(checks)[3] is False
    clean, noise = (float(figure) for figure in re.findall(r"([\d.]+)%", checks[3].detail))
    assert clean >= 90 and noise < 50


def test_a_verdict_that_pgd_refutes_fails():
    """The verdict of a suite that broke nothing, or of an APGD that did."""
    images, clean, after_ce = under_examination(robust_net(), 20)
    for apgd, robust in ((after_ce, clean), (clean, after_ce)):
        check = masking._pgd(images, clean, apgd, robust)
        by_pgd, n, restarts, by_apgd, by_suite, missed = map(int, re.findall(r"\d+", check.detail))
        assert (n, restarts, by_apgd, by_suite) == (20, 5, int(apgd.sum()), int(robust.sum()))
        assert not check.passed and by_pgd < clean.sum() - 1
        assert missed == (clean.sum() - by_pgd if robust is clean else 0)
    assert masking._pgd(images, clean, after_ce, after_ce).passed


def test_tolerance_is_one_image_in_200():
    for n, tolerance in ((1, 1), (399, 1), (400, 2), (10000, 50)):
        assert masking._Images(None, None, torch.zeros(n), torch.zeros(n), None).tolerance == tolerance
