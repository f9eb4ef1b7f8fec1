"""The figures of ``sh/ablations.sh``: what each variant of LBGAT does to clean and robust accuracy.

    python -m results.ablations Logs/ablations-digits --out results/ablations-digits

Reads every finished run in the folder, copies what its figures are made of (settings, epochs, log, PGD-20), and writes
ablations.md.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from report.sweep import spread
from report.tables import markdown_table
from results.records import finished_epochs
from results.study import EQUAL, TRAINING, check_equal, copy_files
from utils.errors import UserError, run_program
from utils.options import format_epsilon

VARIANTS = {
    "lbgat0": "**LBGAT0**: guide WRN-10-2, learnt together; MSE × 1, beta 0",
    "smaller": "smaller guide (WRN-10-1)",
    "larger": "larger guide (WRN-10-4)",
    "frozen": "frozen guide, trained before",
    "mse0.25": "MSE × 0.25",
    "mse4": "MSE × 4",
    "kl1": "KL in place of the MSE, T = 1",
    "kl4": "KL in place of the MSE, T = 4, × 16",
    "noclean": "without the clean forward pass",
    "beta1": "beta 1",
    "beta3": "beta 3",
    "beta6": "beta 6: LBGAT6",
    "beta9": "beta 9",
    "trades6": "TRADES6, no guide",
    "natural": "natural training, no attack",
}


def read(folder: Path) -> dict[str, Any]:
    """One run: its seed, and accuracies in percent.

    Raises:
        UserError: it has not finished.
    """
    config, measured = (json.loads((folder / name).read_text()) for name in ("config.json", "pgd20.json"))
    epochs = finished_epochs(folder, config)
    ((epsilon, robust),) = measured["pgd20"].items()
    return {
        "config": config,
        "epsilon": float(epsilon),
        "images": measured["images"],
        "clean": measured["clean"],
        "robust": robust,
        "guide": epochs[-1].get("guide_clean"),
        "hardware": (folder / "train.log").read_text().splitlines()[0].rpartition("; ")[2],
    }


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each variant, with its mean difference to LBGAT0 over the seeds that both have."""
    rows = []
    base = {run["config"]["seed"]: run for run in runs.get("lbgat0", [])}
    for name, text in VARIANTS.items():
        if not (of := runs.get(name)):
            continue
        cells = [text, ", ".join(str(run["config"]["seed"]) for run in of)]
        for what in ("clean", "robust"):
            pairs = [run[what] - base[run["config"]["seed"]][what] for run in of if run["config"]["seed"] in base]
            cells.append(spread([run[what] for run in of]))
            cells.append(f"{statistics.mean(pairs):+.1f}" if pairs and name != "lbgat0" else "")
        guides = [run["guide"] for run in of if run["guide"] is not None]
        rows.append([*cells, spread(guides) if guides else ""])
    return markdown_table(["variant", "seeds", "clean", "− LBGAT0", "PGD-20", "− LBGAT0", "guide, held out"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the log folder of the ablations")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for measured in sorted(args.folder.glob("*/pgd20.json")):
        if measured.parent.name.rpartition("-seed")[0] not in VARIANTS:
            raise UserError(f"{measured.parent} is no variant of sh/ablations.sh: move it elsewhere")
        name, copy = measured.parent.name, args.out / "runs" / measured.parent.name
        copy_files(measured.parent, copy, TRAINING)
        runs[name.rpartition("-seed")[0]].append(read(copy))
    if not runs:
        raise UserError(f"no finished run in {args.folder}: run sh/ablations.sh first")
    every = [run for of in runs.values() for run in of]
    check_equal([run["config"] for run in every], (*EQUAL, "epsilon"))
    check_equal(every, ("epsilon", "images"))
    first, hardware = every[0], sorted({run["hardware"] for run in every})
    config = first["config"]
    images = f" of {config['limit_train']:,} images" if config.get("limit_train") else ""
    text = (
        f"{config['dataset']}, student WRN-10-2, {config['epochs']} epochs{images} in "
        f"{config.get('precision', 'fp32')}, the last one's weights; "
        f"clean and PGD-20 at {format_epsilon(first['epsilon'])} on {first['images']:,} test images; mean ± standard "
        f"deviation over seeds, percent. {'; '.join(hardware)}.\n\n{table(runs)}\n"
    )
    (args.out / "ablations.md").write_text(text)
    print(text)


if __name__ == "__main__":
    run_program(main)
