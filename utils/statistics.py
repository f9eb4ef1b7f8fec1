"""Confidence intervals."""

from math import sqrt

import numpy as np

Z_95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion (Wilson 1927), in percent.

    Args:
        k: successes, 0 to n.
        n: trials, at least 1.

    Returns:
        (low, high), with 0 <= low <= 100 * k / n <= high <= 100.

    Raises:
        ValueError: not 0 <= k <= n, or n is 0.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is not a proportion")
    share, z2 = k / n, Z_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if k == 0 else center - half  # exactly, where rounding would give 1e-17
    high = 1.0 if k == n else center + half
    return 100 * low, 100 * high


def accuracy_interval(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of an accuracy in percent of n images, in percent."""
    return wilson(round(accuracy * n / 100), n)


def paired_difference(a: np.ndarray, b: np.ndarray, draws: int = 4000) -> tuple[float, float, float]:
    """Return how much more often a is right than b, with a 95% interval, in percentage points.

    The interval is a percentile bootstrap that draws images (the same ones for a and b) and seeds (of each on its own).
    With few seeds it is rather too narrow.

    Args:
        a, b: (S, N) bool, whether each image is right for each of S seeds; the same N images in the same order.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: the numbers of images differ.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} images against {b.shape[1]}")
    rng = np.random.default_rng(0)
    differences = np.empty(draws)
    for i in range(draws):
        image = rng.integers(a.shape[1], size=a.shape[1])
        first, second = (rng.integers(len(runs), size=len(runs)) for runs in (a, b))
        differences[i] = a[first][:, image].mean() - b[second][:, image].mean()
    low, high = np.quantile(differences, (0.025, 0.975))
    return 100 * float(a.mean() - b.mean()), 100 * float(low), 100 * float(high)
