"""PGD-20 agrees with torchattacks and foolbox, which only this test and its benchmark need."""

import importlib.util

import pytest

from attacks.pgd import pgd20
from benchmarks import agreement
from tests.helpers import digits, trained

MISSING = [name for name in ("torchattacks", "foolbox") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: pip install torchattacks==3.5.1 foolbox"
)
@pytest.mark.parametrize("epsilon", [0.031, 0.1])
def test_pgd_20_agrees_with_torchattacks_and_foolbox(epsilon):
    """Within one image in 200, at the published epsilon and at that of the digits."""
    x, y = digits(200)
    found = agreement.correct_under_each(trained("tiny-robust-0.1"), x, y, pgd20(epsilon))
    result = agreement.summary(found)
    assert result["accuracy"]["ours"] < result["accuracy"]["clean"] - 5  # the attack does something
    assert 30 < result["accuracy"]["ours"] < 95
    for name, differs in result["differs_from_ours"].items():
        assert abs(result["accuracy"][name] - result["accuracy"]["ours"]) <= 0.5
        assert differs <= 1
