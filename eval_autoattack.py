#!/usr/bin/env python3
"""Measure the robustness of a checkpoint with AutoAttack: ``python eval_autoattack.py --checkpoint FILE``.

On several GPUs: ``torchrun --nproc-per-node=K eval_autoattack.py --checkpoint FILE``.
"""

import shlex
import sys
from pathlib import Path

from evaluation.config import parse_eval
from evaluation.run import evaluate
from report.compare import compare
from utils.distributed import Team, ending_together
from utils.errors import run_program


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    team = Team.join()
    with ending_together(team):
        config = parse_eval(argv)
        if config.compare:
            if team.rank == 0:
                print(compare(config.compare, Path(config.log_dir, config.mark)))
        else:
            evaluate(config, shlex.join([*team.launcher, "eval_autoattack.py", *argv]), team)


if __name__ == "__main__":
    run_program(main)
