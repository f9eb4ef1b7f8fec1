#!/usr/bin/env python3
"""Count the cost of one training step of every recipe in sh/ and write results/recipe-cost/gflop.json.

python -m results.count_flops        takes about a minute; python -m results.build_tables reads the file
"""

import json

from benchmarks.cost import step_gflop
from results.records import ROOT, Records
from utils.errors import run_program


def main() -> None:
    costs = {}
    for name, recipe in sorted(Records().recipes.items()):
        costs[name] = round(step_gflop(recipe.config), 2)
        print(f"{name}: {costs[name]:.2f} GFLOP per image")
    (ROOT / "results" / "recipe-cost" / "gflop.json").write_text(json.dumps(costs, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
