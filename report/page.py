"""Write an AutoAttack evaluation as ``report.html``, which holds its pictures, and ``report.md`` beside them."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from report.render import render
from report.tables import NONE, Table, markdown_table
from utils.files import write_atomically
from utils.statistics import accuracy_interval

MOST_CLASSES = 100  # in the picture; the table has all
LEADERBOARD_IMAGES = 10_000  # from here on the result line has no interval
SUITES = {
    "standard": "AutoAttack",
    "plus": "AutoAttack plus",
    "rand": "AutoAttack rand, for randomized networks",
}  # by version; every other version gives an upper bound
ORIGIN = {
    "hardware": "hardware",
    "processes": "processes",
    "precision": "precision of the attacks",
    "batch_size": "batch size",
    "seed": "seed",
    "date": "date",
    "commit": "commit",
    "dirty": "whether files differed from it",
    "weights": "network and weights in the checkpoint",
    "normalize": "normalisation in the network",
    "source_sha256": "SHA-256 of the network's source file",
    "checkpoint_sha256": "SHA-256 of the checkpoint",
    "data_sha256": "SHA-256 of images and labels",
}


@dataclass(frozen=True)
class Picture:
    """A PNG file and its description."""

    name: str
    png: bytes
    alt: str

    @property
    def width(self) -> int:
        """CSS pixels that show it at its size in inches (160 dots per inch)."""
        return int.from_bytes(self.png[16:20], "big") * 96 // 160  # the width in a PNG's header

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


def write_pages(folder: Path, result: dict[str, Any]) -> str:
    """Write ``report.html`` and ``report.md``, and for them ``classes.png`` and ``curve.png``.

    A picture that cannot be drawn is replaced by a sentence on the pages.

    Args:
        folder: holds ``adversarial.png`` already, if an attack broke an image.
        result: the contents of ``autoattack.json``.

    Returns:
        One line with the paths of the pages.

    Raises:
        UserError: a page cannot be written.
    """
    pictures, problems = draw_pictures(folder, result)
    classes, shown = by_robustness(result), shown_classes(result)
    values = {
        "title": folder.resolve().name,
        "result": result,
        "line": result_line(result),
        "failed": [check for check in result.get("checks", []) if not check["passed"]],
        "overview": overview_table(result),
        "warnings": result.get("warnings"),
        "pictures": pictures,
        "problems": problems,
        "attacks": attacks_table(result),
        "curve": curve_table(result) if "curve" in result else None,
        "classes": classes_table(classes) if classes else None,
        "num_classes": len(classes),
        "num_shown": len(shown),
        "num_with_images": sum(entry["n"] > 0 for entry in classes),
        "checks": checks_table(result) if "checks" in result else None,
        "origin": origin_table(result),
    }
    for name in ("report.md", "report.html"):
        write_bytes(folder / name, render(f"{name}.j2", **values))
    return f"report: {folder / 'report.html'} and {folder / 'report.md'}"


def draw_pictures(folder: Path, result: dict[str, Any]) -> tuple[dict[str, Picture], list[str]]:
    """Return the pictures by file name, and a sentence for each one that could not be drawn."""
    jobs = []
    if shown := shown_classes(result):
        jobs.append(("classes.png", "clean and robust accuracy of each class", "plot_classes", shown))
    if "curve" in result:
        curves = {"robust": (result["curve"], result["n"])}
        jobs.append(("curve.png", "robust accuracy against epsilon", "plot_epsilons", curves, result["norm"]))
    pictures, problems = {}, []
    for name, alt, function, *arguments in jobs:
        if problem := draw(folder / name, function, *arguments):
            problems.append(problem)
        else:
            pictures[name] = Picture(name, (folder / name).read_bytes(), alt)
    adversarial = folder / "adversarial.png"
    if adversarial.exists():
        alt = "clean images, adversarial examples and their difference"
        pictures[adversarial.name] = Picture(adversarial.name, adversarial.read_bytes(), alt)
    return pictures, problems


def draw(path: Path, function: str, *arguments: Any) -> str | None:
    """Let ``report.plots.function(*arguments, file)`` write a PNG; return a sentence if it could not, never raise."""
    try:
        from report import plots  # needs matplotlib, which is optional

        png = BytesIO()
        getattr(plots, function)(*arguments, png)
        write_bytes(path, png.getvalue())
    except ModuleNotFoundError as error:
        return f"{path.name} could not be drawn: {error.name} is not installed (pip install {error.name})."
    except Exception as error:  # the figures matter more than their picture
        return f"{path.name} could not be drawn: {type(error).__name__}: {error}."
    return None


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def result_line(result: dict[str, Any]) -> str:
    """Return ``clean NN.NN%  robust NN.NN%  (AutoAttack, epsilon E, N images, robust ±H)``.

    H is the distance of the robust accuracy from the farther end of its 95% interval; from 10,000 images on, where it
    is less than one point, it is left out.
    """
    images = f"{result['n']} images"
    if result["n"] < LEADERBOARD_IMAGES:
        low, high = accuracy_interval(result["robust_accuracy"], result["n"])
        images += f", robust ±{max(high - result['robust_accuracy'], result['robust_accuracy'] - low):.1f}"
    return (
        f"clean {result['clean_accuracy']:.2f}%  robust {result['robust_accuracy']:.2f}%  "
        f"({suite_name(result)}, epsilon {result['epsilon_text']}, {images})"
    )


def suite_name(result: dict[str, Any]) -> str:
    """Return which AutoAttack ran; what may find less than the standard suite is called an upper bound."""
    other = f"upper bound by AutoAttack {result['version']}: {','.join(result['attacks'])}"
    return SUITES.get(result["version"], other)


def result_table(result: dict[str, Any]) -> str:
    """Return accuracy and seconds of each attack as plain text."""
    return markdown_table(*attacks_table(result))


def overview_table(result: dict[str, Any]) -> Table:
    n = result["n"]
    rows = [
        [f"{kind} accuracy", f"{accuracy:.2f}% (95% interval {interval(accuracy, n)})"]
        for kind, accuracy in (("clean", result["clean_accuracy"]), ("robust", result["robust_accuracy"]))
    ]
    rows += [
        ["epsilon", f"{result['epsilon_text']} ({result['norm']})"],
        ["images", f"the first {n} {result['split']} images of {result['dataset']}"],
        ["network", result["model"]],
        ["checkpoint", result["checkpoint"]],
    ]
    return Table(["", ""], rows)


def attacks_table(result: dict[str, Any]) -> Table:
    accuracies = {"clean": result["clean_accuracy"], **result["accuracy_after"]}
    seconds, speed = result["seconds"], result.get("throughput", {})
    rows = [
        [name, percent(accuracy), interval(accuracy, result["n"]), decimal(seconds[name]), decimal(speed.get(name))]
        for name, accuracy in accuracies.items()
    ]
    rows[0][0] = "none (clean)"
    rows.append(["total", NONE, NONE, decimal(seconds["total"]), decimal(speed.get("total"))])
    return Table(["attack", "accuracy", "95% interval", "seconds", "images/s"], rows)


def curve_table(result: dict[str, Any]) -> Table:
    rows = [
        [
            point["epsilon_text"],
            percent(point["clean_accuracy"]),
            *[percent(point["accuracy_after"][name]) for name in result["attacks"]],
            interval(point["robust_accuracy"], result["n"]),
            decimal(point["seconds"]),
        ]
        for point in result["curve"]
    ]
    return Table(["epsilon", "clean", *result["attacks"], "95% interval", "seconds"], rows)


def by_robustness(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return ``per_class`` in ascending robust accuracy; classes without an image last."""
    return sorted(
        result.get("per_class", []),
        key=lambda entry: (entry["n"] == 0, entry["robust_accuracy"], entry["clean_accuracy"]),
    )


def shown_classes(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the classes of the picture: of those with images the least robust."""
    return [entry for entry in by_robustness(result) if entry["n"]][:MOST_CLASSES]


def classes_table(classes: list[dict[str, Any]]) -> Table:
    rows = [
        [
            entry["name"],
            str(entry["n"]),
            *[
                cell
                for accuracy in (entry["clean_accuracy"], entry["robust_accuracy"])
                for cell in (percent(accuracy), interval(accuracy, entry["n"]))
            ],
        ]
        for entry in classes
    ]
    return Table(["class", "images", "clean", "95% interval", "robust", "95% interval"], rows)


def checks_table(result: dict[str, Any]) -> Table:
    rows = [["pass" if check["passed"] else "FAIL", check["name"], check["detail"]] for check in result["checks"]]
    return Table(["result", "check", "details"], rows)


def origin_table(result: dict[str, Any]) -> Table:
    """Return everything that the figures depend on."""
    rows = [[label, str(result[key])] for key, label in ORIGIN.items() if result.get(key) not in ("", None)]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return Table(["", ""], [*rows, ["versions", versions]])


def percent(accuracy: float | None) -> str:
    return NONE if accuracy is None else f"{accuracy:.2f}%"


def decimal(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def interval(accuracy: float | None, n: int) -> str:
    """Return the 95% interval of an accuracy of n images, ``68.9 to 85.0``, in percent."""
    if accuracy is None:
        return NONE
    low, high = accuracy_interval(accuracy, n)
    return f"{low:.1f} to {high:.1f}"
