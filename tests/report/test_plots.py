"""What is drawn: the right figures and intervals, and no text cut off."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.text import Text

from report import plots
from utils.statistics import wilson

LONG = "an exceedingly-long $name$ of_something that nobody should have given"


def texts(figure):
    """Every text of a figure, of which nothing may be cut off at its edge."""
    FigureCanvasAgg(figure).draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # of all that is drawn
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]


@pytest.mark.parametrize("num_classes", [2, 10, 26, 100])
def test_picture_of_the_classes(figures, num_classes):
    accuracies = np.random.default_rng(0).uniform(0, 100, num_classes - 1)
    classes = [
        {"name": f"{LONG if k % 2 else 'class'} {k}", "n": 3, "clean_accuracy": c, "robust_accuracy": c / 2}
        for k, c in enumerate(accuracies.tolist())
    ]
    classes.append({"name": "all", "n": 3, "clean_accuracy": 100.0, "robust_accuracy": 100.0})
    plots.plot_classes(classes, None)
    (figure,) = figures
    labels = texts(figure)
    bars = [bar.get_width() for axes in figure.axes for bar in axes.patches]
    assert bars == [entry[key] for entry in classes for key in ("clean_accuracy", "robust_accuracy")]
    assert len(figure.axes) == (1 if num_classes <= 25 else 2)
    for entry in classes:
        assert f"{entry['clean_accuracy']:.0f} / {entry['robust_accuracy']:.0f}" in labels
    assert [label for label in labels if label.startswith(("class", "an exc", "all"))] == [
        "all" if k == num_classes - 1 else "an exceedingly-long…" if k % 2 else f"class {k}" for k in range(num_classes)
    ]


def test_picture_of_the_images_with_long_names(figures):
    x = np.zeros((2, 3, 8, 8), np.float32)
    plots.plot_triples(x, x + np.float32(0.1), ["$\\frac$", LONG], ["b", LONG], ["apgd-ce", "square"], None)
    labels = set(texts(figures[0]))
    assert {"label: $\\frac$", "predicted: b", "found by square", "difference × 5\n(gray: 0)"} <= labels


@pytest.mark.parametrize("models", [1, 2, 9])
def test_picture_of_several_evaluations(figures, make_result, models):
    accuracies = [40.0 + 2 * k for k in range(models)]
    reports = {
        f"{LONG} {k}": make_result(n=50, clean_accuracy=100.0, robust_accuracy=accuracy)
        for k, accuracy in enumerate(accuracies)
    }
    plots.plot_comparison(reports, None)
    labels = texts(figures[0])
    assert labels.count("100.00") == models and all(f"{accuracy:.2f}" in labels for accuracy in accuracies)
    assert [" ".join(label.split()) for label in labels].count(f"{LONG} 0") == 2  # beside its bars and in the legend
    bars, curves = figures[0].axes
    robust = [container for container in bars.containers if isinstance(container, BarContainer)][1]
    ((left, _), (right, _)) = robust.errorbar.lines[2][0].get_segments()[0]
    assert (left, right) == pytest.approx(wilson(20, 50))
    lines = [container for container in curves.containers if isinstance(container, ErrorbarContainer)]
    assert len(lines) == models
    data, _, (intervals,) = lines[0].lines
    np.testing.assert_allclose(data.get_xydata(), [[0, 70], [0, 70], [25.5, 40], [51, 12.5]])  # clean; the curve
    assert intervals.get_segments()[2][:, 1] == pytest.approx(wilson(20, 50))


def test_intervals_at_0_and_100_percent_have_no_negative_length(figures, make_result):
    result = make_result(n=7, clean_accuracy=100.0, robust_accuracy=0.0)
    plots.plot_comparison({"a": result}, None)
    assert plots._errors([0.0, 100.0], 7) == ([0.0, pytest.approx(100 - wilson(7, 7)[0])], [wilson(0, 7)[1], 0.0])


def test_norm_l2_is_drawn_in_its_own_unit(figures):
    curve = [{"epsilon": 0.5, "clean_accuracy": 90.0, "robust_accuracy": 60.0}]
    plots.plot_epsilons({"robust": (curve, 10)}, "l2", None)
    assert "epsilon (l2)" in texts(figures[0])
    np.testing.assert_allclose(figures[0].axes[0].containers[0].lines[0].get_xydata(), [[0, 90], [0.5, 60]])
