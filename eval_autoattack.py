#!/usr/bin/env python3
"""Measure the robustness of a checkpoint with AutoAttack: ``python eval_autoattack.py --checkpoint FILE``.

On several GPUs: ``torchrun --nproc-per-node=K eval_autoattack.py --checkpoint FILE``.
"""

import sys

try:
    from evaluation.config import parse_eval
    from evaluation.run import Evaluation
    from utils.distributed import ProcessGroup, exit_cleanly
    from utils.errors import run_program
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: source .venv/bin/activate, or pip install -r requirements.txt")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    group = ProcessGroup.init()
    with exit_cleanly(group):
        Evaluation(parse_eval(argv), argv, group).run()


if __name__ == "__main__":
    run_program(main)
