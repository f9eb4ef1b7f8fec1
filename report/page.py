"""An AutoAttack evaluation as pages: ``report.html``, which holds its pictures, and ``report.md`` beside them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report.markup import NONE, Block, Code, Picture, Section, Table, html_page, markdown
from utils.files import write_atomically

NO_PICTURES = "There are no pictures: matplotlib is not installed (pip install matplotlib)."
MOST_CLASSES = 100  # in the picture; the table has all
CLAIMS = {
    "standard AutoAttack": "The standard AutoAttack (Croce & Hein 2020): an image is robust if it withstood {attacks}.",
    "upper bound": "An UPPER BOUND and not the standard AutoAttack: only {attacks} ran. Under the standard suite the "
    "robust accuracy is this or less.",
}
OTHER_CLAIM = "Not the standard AutoAttack but its version {version}: {attacks}."


def write_pages(folder: Path, result: dict[str, Any]) -> str:
    """``report.html`` and ``report.md``, and for them ``classes.png`` and ``curve.png``.

    Args:
        folder: holds ``adversarial.png`` already, if an attack broke an image.
        result: the contents of ``autoattack.json``, from which the pages can be written again at any time.

    Returns:
        One line that says where they are.

    Raises:
        UserError: a file cannot be written.
    """
    title, parts = folder.resolve().name, sections(result, pictures(folder, result))
    write_atomically(folder / "report.md", lambda file: file.write(markdown(title, parts).encode()))
    write_atomically(folder / "report.html", lambda file: file.write(html_page(title, parts).encode()))
    return f"report: {folder / 'report.html'} and {folder / 'report.md'}"


def pictures(folder: Path, result: dict[str, Any]) -> dict[str, Picture]:
    """By file name, each picture for which there is something to draw; none at all without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    from report.plots import plot_classes, plot_epsilons

    classes = folder / "classes.png"
    found = [draw(classes, "clean and robust accuracy of each class", plot_classes, drawn_classes(result))]
    if "curve" in result:
        curves = {"robust": result["curve"]}
        found.append(draw(folder / "curve.png", "accuracy against epsilon", plot_epsilons, curves, result["norm"]))
    shown = folder / "adversarial.png"
    if shown.exists():
        found.append(Picture(shown.name, shown.read_bytes(), "images before and after the attack"))
    return {picture.name: picture for picture in found}


def draw(path: Path, alt: str, plot: Callable[..., None], *arguments: Any) -> Picture:
    """Let ``plot(*arguments, file)`` write a PNG to ``path``.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, lambda file: plot(*arguments, file))
    return Picture(path.name, path.read_bytes(), alt)


def sections(result: dict[str, Any], pictures: dict[str, Picture]) -> list[Section]:
    """All that stands on the pages."""
    parts = [
        (last_line(result), headline(result)),
        ("Accuracy after each attack", [attacks_table(result), None if pictures else NO_PICTURES]),
        ("Accuracy against epsilon", [pictures.get("curve.png"), curve_table(result)]),
        ("Accuracy of each class", classes(result, pictures.get("classes.png"))),
        ("Images that an attack broke", [pictures.get("adversarial.png")]),
        ("Checks for gradient masking", [checks_table(result)]),
        ("How it was measured", [Code(result["command"]), origin_table(result)]),
    ]
    kept = [(heading, [block for block in blocks if block is not None]) for heading, blocks in parts]
    return [(heading, blocks) for heading, blocks in kept if blocks]


def headline(result: dict[str, Any]) -> list[Block]:
    """What the figures claim, of what, and every reason to doubt them."""
    claim = CLAIMS.get(result["claim"], OTHER_CLAIM)
    failed = [f"{check['name']} ({check['detail']})" for check in result.get("checks", []) if not check["passed"]]
    rows = [
        ["epsilon", f"{result['epsilon_text']} ({result['norm']})"],
        ["images", f"the first {result['n']} {result['split']} images of {result['dataset']}"],
        ["network", result["model"]],
        ["checkpoint", result["checkpoint"]],
    ]
    return [
        claim.format(attacks=", ".join(result["attacks"]), version=result["version"]),
        *[f"FAILED check for gradient masking: {name}" for name in failed],
        *[f"Warning of the suite: {warning}" for warning in result["warnings"]],
        *([] if result["warnings"] else ["The suite gave no warning."]),
        Table(["", ""], rows),
    ]


def attacks_table(result: dict[str, Any]) -> Table:
    accuracies = {"clean": result["clean_accuracy"], **result["accuracy_after"]}
    rows = [
        [name, percent(accuracy), f"{result['seconds'][name]:.1f}", speed(result["throughput"][name])]
        for name, accuracy in accuracies.items()
    ]
    rows.append(["total", NONE, f"{result['seconds']['total']:.1f}", speed(result["throughput"]["total"])])
    return Table(["after", "accuracy", "seconds", "images/s"], rows)


def curve_table(result: dict[str, Any]) -> Table | None:
    if "curve" not in result:
        return None
    rows = [
        [
            point["epsilon_text"],
            percent(point["clean_accuracy"]),
            *[percent(point["accuracy_after"][name]) for name in result["attacks"]],
            f"{point['seconds']:.1f}",
        ]
        for point in result["curve"]
    ]
    return Table(["epsilon", "clean", *[f"after {name}" for name in result["attacks"]], "seconds"], rows)


def by_robustness(result: dict[str, Any]) -> list[dict[str, Any]]:
    """``per_class`` from the least robust class to the most; those without an image last."""
    return sorted(result["per_class"], key=lambda of: (of["n"] == 0, of["robust_accuracy"], of["clean_accuracy"]))


def drawn_classes(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [of for of in by_robustness(result) if of["n"]][:MOST_CLASSES]


def classes(result: dict[str, Any], picture: Picture | None) -> list[Block | None]:
    """The picture, what it leaves out, and the figures of every class."""
    drawn, total = len(drawn_classes(result)), len(result["per_class"])
    left_out = f"Drawn are {drawn} of {total} classes: of those with images, the {MOST_CLASSES} least robust at most."
    rows = [
        [of["name"], str(of["n"]), percent(of["clean_accuracy"]), percent(of["robust_accuracy"])]
        for of in by_robustness(result)
    ]
    table = Table(["class", "images", "clean", "robust"], rows, summary=f"the {total} classes in figures")
    return [picture, left_out if picture and drawn < total else None, table]


def checks_table(result: dict[str, Any]) -> Table | None:
    if "checks" not in result:
        return None
    rows = [["pass" if check["passed"] else "FAIL", check["name"], check["detail"]] for check in result["checks"]]
    return Table(["", "check", "figures"], rows)


def origin_table(result: dict[str, Any]) -> Table:
    """Everything that the figures depend on."""
    names = ("hardware", "processes", "precision", "batch_size", "seed", "date", "checkpoint_sha256", "data_sha256")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return Table(["", ""], [*[[name.replace("_", " "), str(result[name])] for name in names], ["versions", versions]])


def percent(accuracy: float | None) -> str:
    return NONE if accuracy is None else f"{accuracy:.2f}%"


def speed(images_per_second: float | None) -> str:
    return NONE if images_per_second is None else f"{images_per_second:.1f}"


def table(report: dict[str, Any]) -> str:
    """Accuracy and seconds after the clean pass and each attack."""
    rows = [("clean", report["clean_accuracy"]), *report["accuracy_after"].items()]
    lines = [f"{'after':<10} {'accuracy':>9} {'seconds':>9}"]
    lines += [f"{name:<10} {accuracy:>8.2f}% {report['seconds'][name]:>9.1f}" for name, accuracy in rows]
    return "\n".join(lines)


def suite_name(report: dict[str, Any]) -> str:
    """``AutoAttack`` for the standard suite; otherwise with what ran instead, ``dev`` as the upper bound that it is."""
    if report["version"] == "standard":
        return "AutoAttack"
    name = f"AutoAttack {report['version']}: {','.join(report['attacks'])}"
    return f"upper bound by {name}" if report["version"] == "dev" else name


def last_line(report: dict[str, Any]) -> str:
    """``clean NN.NN%  robust NN.NN%  (AutoAttack, epsilon E, N images)``."""
    return (
        f"clean {report['clean_accuracy']:.2f}%  robust {report['robust_accuracy']:.2f}%  "
        f"({suite_name(report)}, epsilon {report['epsilon_text']}, {report['n']} images)"
    )
