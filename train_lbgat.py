#!/usr/bin/env python3
"""Train a robust student with its guide (LBGAT), or by another method: ``python train_lbgat.py --help``.

On several GPUs: ``torchrun --nproc-per-node=K train_lbgat.py [the same flags]``.
"""

import sys

try:
    from engine.command_line import parse_train
    from engine.stopping import Stopped
    from engine.trainer import Trainer
    from utils.distributed import ProcessGroup, exit_cleanly
    from utils.errors import run_program
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: source .venv/bin/activate, or pip install -r requirements.txt")

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}  # as a shell's; 75 for --max-minutes, "try again"


def main(argv: list[str] | None = None) -> None:
    group = ProcessGroup.init()
    with exit_cleanly(group):
        try:
            Trainer(parse_train(argv), group).fit()
        except Stopped as stopped:
            # torchrun would make a failure of 75.
            sys.exit(EXIT_CODES.get(str(stopped), 75 if group.size == 1 else 0))


if __name__ == "__main__":
    run_program(main)
