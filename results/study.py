"""The figures of a study: several methods with equal training, several seeds each, attacked by AutoAttack.

    python -m results.study Logs/study-digits --out results/study-digits

Reads every evaluation in the folders of the study, copies what its figures are made of (settings, epochs, log and the
verdict of every image), and writes study.md, study.json and plane.png. At each epsilon all figures are of the images
that have a verdict in every evaluation: the first ones, where an evaluation was interrupted. The copies,
results/study-digits/runs, may be given as the folder: the tables are written once more.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from report.sweep import spread
from report.tables import markdown_table
from results.plane import draw_study
from results.records import finished_epochs
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
PAIRS = (("lbgat0", "trades6"), ("lbgat6", "trades6"), ("lbgat0large", "lbgat0"), ("at", "trades6"))


@dataclass(frozen=True)
class Run:
    """One training with one evaluation; the training's folder is named METHOD-...-seedN, and holds the evaluation's.

    Attributes:
        whole: accuracy in percent on the whole test set, clean and under PGD-20 at the evaluation's epsilon; None if
            not measured.
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
    whole: tuple[float, float] | None
    clean: np.ndarray
    robust: np.ndarray
    hardware: tuple[str, ...]

    @property
    def accuracies(self) -> tuple[float, float]:
        """Clean and robust accuracy in percent."""
        return 100 * self.clean.mean(), 100 * self.robust.mean()


def copy_files(folder: Path, copy: Path, names: Iterable[str]) -> None:
    """Copy the files of these names; verdicts that the folder does not have any more are removed."""
    if copy.resolve() == folder.resolve():
        return
    copy.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / name).exists():
            shutil.copyfile(folder / name, copy / name)
        elif name in ATTACK:
            (copy / name).unlink(missing_ok=True)


def read(attack: Path) -> Run:
    folder = attack.parent
    config, (report, clean, robust) = json.loads((folder / "config.json").read_text()), verdicts(attack)
    epochs = finished_epochs(folder, config)
    lines = [line for line in (folder / "train.log").read_text().splitlines() if ", torch " in line]
    hardware = tuple(dict.fromkeys(line.rpartition("; ")[2] for line in lines))
    seconds, guide = sum(epoch["seconds"] for epoch in epochs), epochs[-1].get("guide_clean")
    measured = folder / "pgd20.json"
    test = json.loads(measured.read_text()) if measured.exists() else {"pgd20": {}}
    pgd20 = test["pgd20"].get(f"{report['epsilon']:.6g}")
    whole = None if pgd20 is None else (test["clean"], pgd20)
    return Run(folder, folder.name.split("-")[0], config, report, seconds, guide, whole, clean, robust, hardware)


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


EQUAL = ("dataset", "student", "norm", "epochs", "batch_size", "limit_train", "val_size", "precision", "lr", "schedule",
         "weight_decay")  # fmt: skip
EQUALLY_ATTACKED = ("data_sha256", "norm", "version", "attacks", "seed", "batch_size")


def check_equal(configs: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Raises: UserError: settings of these names differ."""
    for name in names:
        values = {str(config.get(name)) for config in configs}
        if len(values) > 1:
            raise UserError(f"the runs differ in {name} ({', '.join(sorted(values))}): compare equal ones")


def grouped(runs: list[Run]) -> dict[float, dict[str, list[Run]]]:
    """The runs of each method at each epsilon, with the images that have a verdict in all runs at that epsilon.

    Raises:
        UserError: they are not of equal trainings, or not attacked alike on the same images.
    """
    check_equal([run.config for run in runs], EQUAL)
    check_equal([run.report for run in runs], EQUALLY_ATTACKED)
    for epsilon in {run.report["epsilon"] for run in runs}:
        check_equal([run.report for run in runs if run.report["epsilon"] == epsilon], ("precision",))
    groups: dict[float, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        epsilon = run.report["epsilon"]
        n = min(len(other.robust) for other in runs if other.report["epsilon"] == epsilon)
        groups[epsilon][run.method].append(replace(run, clean=run.clean[:n], robust=run.robust[:n]))
    return groups


def attacked_images(groups: dict[float, dict[str, list[Run]]]) -> str:
    """``AutoAttack (standard) on the first 500 test images``, once for each epsilon if they differ."""
    parts = {}
    for epsilon, methods in sorted(groups.items()):
        first = next(iter(methods.values()))[0]
        n, planned = len(first.robust), first.report["n"]
        cut = f" (ended within the first {planned:,})" if n < planned else ""
        precision = first.report.get("precision", "fp32")
        queries = f", queries in {precision}" if precision != "fp32" else ""
        parts[epsilon] = f"AutoAttack ({first.report['version']}{queries}) on the first {n:,} test images{cut}"
    if len(set(parts.values())) == 1:
        return parts[epsilon]
    return "; ".join(f"at {format_epsilon(epsilon)} {part}" for epsilon, part in parts.items())


def name_of(method: str) -> str:
    return NAMES.get(method, method)


def in_order(methods: Iterable[str]) -> list[str]:
    """Those of ``NAMES`` first."""
    known = [name for name in NAMES if name in methods]
    return known + sorted(set(methods) - set(known))


def table(groups: dict[float, dict[str, list[Run]]]) -> str:
    rows = []
    timed = len({run.hardware for methods in groups.values() for runs in methods.values() for run in runs}) == 1
    for epsilon, methods in sorted(groups.items()):
        for method in in_order(methods):
            runs = methods[method]
            guides = [run.guide for run in runs if run.guide is not None]
            whole = [run.whole for run in runs if run.whole is not None]
            rows.append(
                [
                    format_epsilon(epsilon),
                    name_of(method),
                    ", ".join(str(run.config["seed"]) for run in runs),
                    *map(spread, zip(*(run.accuracies for run in runs), strict=True)),
                    *(map(spread, zip(*whole, strict=True)) if whole else ("", "")),
                    spread(guides) if guides else "",
                    f"{statistics.mean(run.seconds for run in runs):.0f}" if timed else "",
                ]
            )
    head = ["epsilon", "method", "seeds", "clean, images attacked", "AutoAttack", "clean, all test images"]
    head += ["PGD-20, all test images", "guide, held out", "seconds of training"]
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
                found.append({"epsilon": epsilon, "methods": [name_of(m) for m in pair], "seeds": seeds, **entry})
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
        copy_files(attack, copy, ATTACK)
        copy_files(attack.parent, copy.parent, TRAINING)
    every = [read(copy) for copy in copies]
    runs = [run for run in every if len(run.robust)]
    for run in every:
        if not len(run.robust):
            print(f"left out: {run.folder.name}, whose attacks have not finished an image", file=sys.stderr)
    if not runs:
        raise UserError("no evaluation has finished its first images: run the study again, which resumes")
    groups = grouped(runs)
    entries = differences(groups)
    first = runs[0]
    trained = f"{first.config['dataset']}, {first.config['student']}, {first.config['epochs']} epochs"
    seeds = {run.config["seed"] for run in runs}
    text = f"{trained}, the last one's weights; {attacked_images(groups)}; percent"
    text += "; mean ± standard deviation over seeds. " if len(seeds) > 1 else "; one seed. "
    text += (
        f"Trained on {'; '.join(dict.fromkeys(name for run in runs for name in run.hardware))}.\n\n{table(groups)}\n"
    )
    if entries:
        over = "images and seeds, too narrow with so few seeds" if len(seeds) > 1 else "images, of one seed"
        text += f"\nPaired differences in percentage points, with 95% bootstrap intervals over {over}.\n\n"
        text += f"{differences_table(entries)}\n"
    (args.out / "study.md").write_text(text)
    content = {name: first.config[name] for name in ("dataset", "student", "epochs")} | {
        "runs": [
            {
                "method": name_of(run.method),
                "seed": run.config["seed"],
                "epsilon": epsilon,
                "clean": run.whole[0] if run.whole else run.accuracies[0],
                "robust": run.accuracies[1],
                "images": len(run.robust),
            }
            for epsilon, methods in groups.items()
            for of in methods.values()
            for run in of
        ],
        "differences": entries,
    }
    (args.out / "study.json").write_text(json.dumps(content, indent=2) + "\n")
    points = {
        epsilon: {name_of(method): [run.accuracies for run in methods[method]] for method in in_order(methods)}
        for epsilon, methods in groups.items()
    }
    draw_study(points, args.out / "plane.png")
    print(text)


if __name__ == "__main__":
    run_program(main)
