#!/usr/bin/env python3
"""Measure the robustness of a checkpoint with AutoAttack: ``python eval_autoattack.py --checkpoint FILE``.

On several GPUs: ``torchrun --nproc-per-node=K eval_autoattack.py --checkpoint FILE``.
"""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset
from engine import autoattack, report
from engine.checkpoint import file_hash
from engine.command_line import parse_eval
from engine.compare import compare
from engine.config import EvalConfig
from engine.device import choose_device, describe, set_precision
from engine.distributed import Team
from engine.errors import ensure_writable, run_program
from engine.outcomes import NUM_SHOWN, Outcomes, resume, state_files, state_path
from engine.pages import write_pages
from engine.subject import load_data, load_network, run_name
from engine.suite import LOGGER, Suite, check_classes, choose_attacks, find_package
from engine.suite_log import suite_log, suite_warnings


@contextmanager
def ending_together(team: Team) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the program with one line and status 130 or 143; of a team, one process tells why."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if team.first_to_end():
            print("stopped: finished attacks are kept, and the same command goes on with the others", file=sys.stderr)
        raise SystemExit(128 + interrupt.args[0]) from None
    except Exception:
        if team.first_to_end():
            raise
        raise SystemExit(1) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def evaluate(config: EvalConfig, command: str, team: Team) -> None:
    """Attack the checkpoint, together with the other processes; rank 0 writes and prints what came of it."""
    attacks = choose_attacks(config.version, config.attacks)
    device = choose_device(config.device)
    set_precision("fp32", device)
    package = find_package()
    subject = load_network(config)
    data = load_data(config, subject)
    check_classes(attacks, data.num_classes)
    folder = Path(config.log_dir) / run_name(config)
    ensure_writable(folder, "--log-dir")
    n = min(config.n_examples or len(data.y_test), len(data.y_test))
    images, labels = data.x_test[:n], data.y_test[:n]
    epsilons = (config.epsilon, *(epsilon for epsilon in config.epsilons if epsilon != config.epsilon))
    queries = subject.model.to(device).eval().requires_grad_(False)
    suite = Suite(
        package=package,
        attacks=attacks,
        norm=config.norm,
        epsilon=config.epsilon,
        seed=config.seed,
        version=config.version,
        batch_size=config.batch_size,
        device=device,
        log_path=str(folder / "autoattack.log"),
    )
    fingerprint = report.fingerprint(suite, file_hash(config.checkpoint), subject.name, data, n)
    fingerprint |= {"epsilons": list(epsilons), "precision": config.precision}
    state = {**fingerprint, "save_adv": bool(config.save_adv)}
    outcomes = resume(folder, state, team)
    if team.rank == 0:
        report.keep_earlier(folder, fingerprint)
    with suite_log(folder / "autoattack.log", outcomes is not None) if team.rank == 0 else nullcontext():
        LOGGER.info(f"{command} on {describe(device)}")
        LOGGER.info("each attack gets what the ones before left robust: the suite's accuracies are of these")
        if outcomes is None:
            keep = n if config.save_adv else NUM_SHOWN
            outcomes = Outcomes.empty(images, suite.batch_size, len(attacks), len(epsilons), keep)
        else:
            finished, jobs = outcomes.progress.size - len(outcomes.unfinished), outcomes.progress.size
            LOGGER.info(f"going on in {folder}: {finished} of {jobs} chunks are finished")
        save = partial(outcomes.save, state_path(folder, team.rank), state)
        autoattack.evaluate(queries, suite, epsilons, images, labels, outcomes, save, team)
        if team.rank == 0:
            result = {
                **fingerprint,
                "epsilon_text": report.format_epsilon(config.epsilon),
                **report.results(suite, outcomes, epsilons, labels, data.class_names, team.size),
                "warnings": suite_warnings(folder / "autoattack.log"),
                "checkpoint": config.checkpoint,
                "hardware": describe(device),
                "processes": team.size,
                "command": command,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            finish(config, folder, result, outcomes, data)
    team.broadcast(None)  # rank 0 has written the report
    for path in state_files(folder):
        path.unlink(missing_ok=True)


def finish(config: EvalConfig, folder: Path, result: dict[str, Any], outcomes: Outcomes, data: Dataset) -> None:
    """Write the report, and print the table, what lies where, and the verdict in the last line."""
    report.write_report(folder, result, outcomes, data.y_test[: result["n"]])
    LOGGER.info(report.last_line(result))
    print(report.table(result), report.draw(folder, outcomes, data), write_pages(folder, result), sep="\n")
    print(report.last_line(result))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    team = Team.join()
    with ending_together(team):
        config = parse_eval(argv)
        if config.compare:
            print(compare(config.compare, Path(config.log_dir)))
            return
        evaluate(config, shlex.join(["python", "eval_autoattack.py", *argv]), team)


if __name__ == "__main__":
    run_program(main)
