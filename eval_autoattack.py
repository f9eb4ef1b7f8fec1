#!/usr/bin/env python3
"""Measure the robustness of a checkpoint with AutoAttack: ``python eval_autoattack.py --checkpoint FILE``."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

from engine import autoattack, report
from engine.checkpoint import file_hash
from engine.command_line import parse_eval
from engine.compare import compare
from engine.config import EvalConfig
from engine.device import choose_device, describe, set_precision
from engine.errors import ensure_writable, run_program
from engine.outcomes import Outcomes
from engine.pages import write_pages
from engine.subject import load_data, load_network, run_name
from engine.suite import LOGGER, Suite, check_classes, choose_attacks, find_package
from engine.suite_log import suite_log, suite_warnings


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the program with one line and status 130 or 143."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print("stopped: finished chunks are kept, and the same command goes on with the others", file=sys.stderr)
        raise SystemExit(128 + interrupt.args[0]) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def evaluate(config: EvalConfig, command: str) -> None:
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
    state = folder / "autoattack.state.npz"
    outcomes = Outcomes.load(state, fingerprint) if state.exists() else None
    report.keep_earlier(folder, fingerprint)
    with suite_log(folder / "autoattack.log", resumed=outcomes is not None):
        LOGGER.info(f"{command} on {describe(device)}")
        LOGGER.info("each attack gets what the ones before left robust: the suite's accuracies are of these")
        model = subject.model.to(device)
        outcomes = autoattack.evaluate(model, suite, data.x_test[:n], data.y_test[:n], state, fingerprint, outcomes)
        result = {
            **fingerprint,
            "epsilon_text": report.format_epsilon(config.epsilon),
            **report.results(suite, outcomes, data.y_test[:n], data.class_names),
            "warnings": suite_warnings(folder / "autoattack.log"),
            "precision": config.precision,
            "processes": 1,
            "checkpoint": config.checkpoint,
            "hardware": describe(device),
            "command": command,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        report.write_report(folder, result, outcomes, data.y_test[:n])
        state.unlink()
        LOGGER.info(report.last_line(result))
    print(report.table(result), report.draw(folder, outcomes, data), write_pages(folder, result), sep="\n")
    print(report.last_line(result))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    config = parse_eval(argv)
    if config.compare:
        print(compare(config.compare, Path(config.log_dir)))
        return
    with stopping_cleanly():
        evaluate(config, shlex.join(["python", "eval_autoattack.py", *argv]))


if __name__ == "__main__":
    run_program(main)
