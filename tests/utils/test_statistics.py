"""Intervals."""

import numpy as np
import pytest

from utils.statistics import Z_95, accuracy_interval, paired_difference, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (78, 100, 68.93, 85.00),  # (0.78 + z²/200 ± z sqrt(0.78 * 0.22 / 100 + z²/40000)) / (1 + z²/100), z = 1.96
        (1, 10, 1.79, 40.42),
        (5, 10, 23.66, 76.34),
        (0, 10, 0.0, 27.75),  # z² / (n + z²)
        (10, 10, 72.25, 100.0),
        (2933, 10_000, 28.45, 30.23),
    ],
)
def test_values_computed_by_hand(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=0.005)


def test_limits_solve_the_score_equation():
    """(p - k/n)² = z² p (1 - p) / n at both limits; they enclose k/n, and mirror each other."""
    z = 1.959963984540054
    for n in (1, 7, 100, 10_000):
        for k in {0, 1, n // 3, n}:
            low, high = wilson(k, n)
            assert 0 <= low <= 100 * k / n <= high <= 100
            for p in (low / 100, high / 100):
                assert (p - k / n) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-12)
            assert wilson(n - k, n) == pytest.approx((100 - high, 100 - low))


def test_what_is_no_proportion_is_refused():
    for k, n in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError):
            wilson(k, n)


def test_interval_of_an_accuracy():
    assert accuracy_interval(100 * 1 / 3, 3) == wilson(1, 3)
    assert accuracy_interval(29.33, 10_000) == wilson(2933, 10_000)


def test_paired_difference():
    """The interval of one seed each is that of a mean of N paired differences; more seeds count too."""
    rng = np.random.default_rng(1)
    a = rng.random((1, 400)) < 0.8
    b = a & (rng.random((1, 400)) < 0.9)  # right on fewer images, and on no others
    difference, low, high = paired_difference(a, b)
    each = 100 * (a[0].astype(float) - b[0])
    half = Z_95 * each.std() / 20
    assert difference == pytest.approx(each.mean())
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.35)
    assert paired_difference(b, a) == pytest.approx((-difference, -high, -low), abs=0.35)
    same_images = np.array([[True] * 100, [False] * 100])  # all of the variation is of the seeds
    assert paired_difference(same_images, np.zeros((2, 100), bool)) == (50.0, 0.0, 100.0)
    with pytest.raises(ValueError, match="100 images against 3"):
        paired_difference(same_images, np.zeros((1, 3), bool))
