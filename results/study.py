"""The figures of a study: several methods with equal training, several seeds each, attacked by AutoAttack.

    python -m results.study Logs/study-digits --out results/study-digits

Reads every evaluation in the folders of the study, copies what its figures are made of (settings, epochs, log and the
verdict of every image), and writes study.md, study.json and plane.png. All figures are of the images that have a
verdict in every evaluation: the first ones, where an evaluation was interrupted.
"""

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from report.tables import markdown_table
from utils.errors import UserError, run_program
from utils.options import format_epsilon
from utils.statistics import paired_difference

TRAINING = ("config.json", "metrics.jsonl", "train.log", "pgd20.json")
ATTACK = ("autoattack.json", "autoattack.npz", "autoattack.state.npz")
NAMES = {
    "natural": "natural",
    "at": "AT",
    "trades6": "TRADES6",
    "lbgat0": "LBGAT0",
    "lbgat0large": "LBGAT0, larger guide",
    "lbgat6": "LBGAT6",
    "ikl": "IKL",
}
PAIRS = (("lbgat0", "trades6"), ("lbgat6", "trades6"))


@dataclass(frozen=True)
class Run:
    """One training with one evaluation; the training's folder is named METHOD-...-seedN, and holds the evaluation's.

    Attributes:
        pgd20: accuracy on the whole test set at the evaluation's epsilon in percent; None if it was not measured.
        clean, robust: (N,) bool, the verdict of every image.
        hardware: of the training, each once.
        guide: accuracy of the guide after the last epoch in percent; None where the method has none.
    """

    folder: Path
    method: str
    config: dict[str, Any]
    report: dict[str, Any]
    seconds: float
    guide: float | None
    pgd20: float | None
    clean: np.ndarray
    robust: np.ndarray
    hardware: tuple[str, ...]

    @property
    def accuracies(self) -> tuple[float, float]:
        """Clean and robust accuracy in percent."""
        return 100 * self.clean.mean(), 100 * self.robust.mean()


def read(attack: Path) -> Run:
    folder = attack.parent
    config, (report, clean, robust) = json.loads((folder / "config.json").read_text()), verdicts(attack)
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if len(epochs) != config["epochs"]:
        raise UserError(f"{folder} has {len(epochs)} of {config['epochs']} epochs: run the study again, which goes on")
    lines = [line for line in (folder / "train.log").read_text().splitlines() if ", torch " in line]
    hardware = tuple(dict.fromkeys(line.rpartition("; ")[2] for line in lines))
    seconds, guide = sum(epoch["seconds"] for epoch in epochs), epochs[-1].get("guide_clean")
    measured = folder / "pgd20.json"
    pgd20 = json.loads(measured.read_text())["pgd20"].get(f"{report['epsilon']:.6g}") if measured.exists() else None
    return Run(folder, folder.name.split("-")[0], config, report, seconds, guide, pgd20, clean, robust, hardware)


def verdicts(attack: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The report of an evaluation, and which images are correct clean and attacked; of an interrupted one, its settings
    and the images of the first chunks that it has finished."""
    if (attack / "autoattack.json").exists():
        with np.load(attack / "autoattack.npz") as images:
            clean, robust = images["clean_prediction"] == images["label"], images["robust"]
        return json.loads((attack / "autoattack.json").read_text()), clean, robust
    with np.load(attack / "autoattack.state.npz") as state:
        finished = state["progress"][0] == state["seconds"].shape[-1]
        n = int(np.argmin([*finished, False]) * state["batch_size"])
        broken_by = state["broken_by"][0, :n]
        return json.loads(str(state["fingerprint"])), broken_by != "clean", broken_by == ""


def grouped(runs: list[Run]) -> dict[float, dict[str, list[Run]]]:
    """The runs of each method at each epsilon.

    Raises:
        UserError: they are not of equal trainings, or not attacked on the same images.
    """
    for what, values in {
        "epochs": {run.config["epochs"] for run in runs},
        "data set": {run.config["dataset"] for run in runs},
        "student": {run.config["student"] for run in runs},
        "images attacked": {run.report["data_sha256"] for run in runs},
        "attacks": {run.report["version"] for run in runs},
    }.items():
        if len(values) > 1:
            raise UserError(f"the runs differ in {what} ({', '.join(map(str, sorted(values)))}): compare equal ones")
    if (n := min(len(run.robust) for run in runs)) == 0:
        raise UserError("an evaluation has not finished its first images: run the study again, which goes on")
    groups: dict[float, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        groups[run.report["epsilon"]][run.method].append(replace(run, clean=run.clean[:n], robust=run.robust[:n]))
    return groups


def mean_and_deviation(values: Sequence[float]) -> str:
    """``78.0 ± 1.2``, the deviation of a sample; the mean alone of a single value."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(groups: dict[float, dict[str, list[Run]]]) -> str:
    rows = []
    for epsilon, methods in sorted(groups.items()):
        for method in sorted(methods, key=list(NAMES).index):
            runs = methods[method]
            guides = [run.guide for run in runs if run.guide is not None]
            pgd20 = [run.pgd20 for run in runs if run.pgd20 is not None]
            rows.append(
                [
                    format_epsilon(epsilon),
                    NAMES[method],
                    ", ".join(str(run.config["seed"]) for run in runs),
                    *map(mean_and_deviation, zip(*(run.accuracies for run in runs), strict=True)),
                    mean_and_deviation(pgd20) if pgd20 else "",
                    mean_and_deviation(guides) if guides else "",
                    f"{statistics.mean(run.seconds for run in runs):.0f}",
                ]
            )
    head = ["epsilon", "method", "seeds", "clean", "AutoAttack", "PGD-20, all test images"]
    head += ["guide, held out", "seconds of training"]
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return markdown_table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def differences(groups: dict[float, dict[str, list[Run]]]) -> list[dict[str, Any]]:
    """Paired differences of each pair of methods at each epsilon, over the seeds that both have, in percentage points:
    [mean, low, high]."""
    found = []
    for epsilon, methods in sorted(groups.items()):
        for pair in PAIRS:
            runs = [{run.config["seed"]: run for run in methods.get(method, [])} for method in pair]
            seeds = sorted(runs[0].keys() & runs[1].keys())
            if seeds:
                verdicts = {
                    what: [np.stack([getattr(of[seed], what) for seed in seeds]) for of in runs]
                    for what in ("clean", "robust")
                }
                entry = {what: paired_difference(*both) for what, both in verdicts.items()}
                found.append({"epsilon": epsilon, "methods": [NAMES[m] for m in pair], "seeds": seeds, **entry})
    return found


def differences_table(entries: list[dict[str, Any]]) -> str:
    def cell(difference: list[float]) -> str:
        mean, low, high = difference
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"

    rows = [
        [
            format_epsilon(e["epsilon"]),
            " − ".join(e["methods"]),
            ", ".join(map(str, e["seeds"])),
            cell(e["clean"]),
            cell(e["robust"]),
        ]
        for e in entries
    ]
    return markdown_table(["epsilon", "difference", "seeds", "clean", "AutoAttack"], rows)


def draw(groups: dict[float, dict[str, list[Run]]], path: Path) -> None:
    """The clean-against-robust plane, a panel for each epsilon: every run, and each method's mean by its name."""
    figure = Figure(figsize=(4.6 * len(groups), 4.2), layout="constrained")
    for axes, (epsilon, methods) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], sorted(groups.items()), strict=True
    ):
        for method, runs in sorted(methods.items(), key=lambda item: list(NAMES).index(item[0])):
            points = [run.accuracies for run in runs]
            mean = np.mean(points, axis=0)
            color = axes.scatter(*zip(*points, strict=True), s=14, alpha=0.5).get_facecolor()
            axes.scatter(*mean, s=60, color=color[:, :3], label=NAMES[method], edgecolors="black", linewidths=0.6)
        axes.set(
            title=f"epsilon {format_epsilon(epsilon)}", xlabel="clean accuracy, %", ylabel="AutoAttack accuracy, %"
        )
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the study's log folder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    attacks = sorted({path.parent for name in ATTACK for path in args.folder.glob(f"*/*/{name}")})
    if not attacks:
        raise UserError(f"no evaluation in {args.folder}: run the study first")
    copies = [args.out / "runs" / attack.relative_to(args.folder) for attack in attacks]
    for attack, copy in zip(attacks, copies, strict=True):
        copy.mkdir(parents=True, exist_ok=True)
        for name in ATTACK:
            (copy / name).unlink(missing_ok=True)
            if (attack / name).exists():
                shutil.copyfile(attack / name, copy / name)
        for name in TRAINING:
            if (attack.parent / name).exists():
                shutil.copyfile(attack.parent / name, copy.parent / name)
    runs = [read(copy) for copy in copies]
    groups = grouped(runs)
    entries = differences(groups)
    first = runs[0]
    trained = f"{first.config['dataset']}, {first.config['student']}, {first.config['epochs']} epochs"
    n = min(len(run.robust) for run in runs)
    cut = "" if n == first.report["n"] else f" (the attacks were ended within the first {first.report['n']:,})"
    hardware = dict.fromkeys(name for run in runs for name in run.hardware)
    about = (
        f"{trained}; AutoAttack ({first.report['version']}) on the first "
        f"{n:,} test images{cut}, the last epoch's weights; mean ± standard deviation over seeds, percent. Trained on "
        f"{'; '.join(hardware)}."
    )
    paired = "Paired differences in percentage points, with 95% bootstrap intervals over images and seeds:"
    text = f"{about}\n\n{table(groups)}\n" + (f"\n{paired}\n\n{differences_table(entries)}\n" if entries else "")
    (args.out / "study.md").write_text(text)
    content = {name: first.config[name] for name in ("dataset", "student", "epochs")} | {
        "runs": [
            {
                "method": NAMES[run.method],
                "seed": run.config["seed"],
                "epsilon": epsilon,
                **dict(zip(("clean", "robust"), run.accuracies, strict=True)),
            }
            for epsilon, methods in groups.items()
            for of in methods.values()
            for run in of
        ],
        "differences": entries,
    }
    (args.out / "study.json").write_text(json.dumps(content, indent=2) + "\n")
    draw(groups, args.out / "plane.png")
    print(text)


if __name__ == "__main__":
    run_program(main)
