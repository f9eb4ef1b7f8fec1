"""One AutoAttack evaluation from a checkpoint to its report."""

import importlib.util
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import Dataset
from datasets.loader import to_device, to_float
from evaluation import attack_loop as autoattack
from evaluation import summary as report
from evaluation.adversarial import save_adversarial
from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.log import of_each_kind, suite_log
from evaluation.autoattack.suite import LOGGER, Suite, check_classes, choose_attacks, find_package
from evaluation.config import EvalConfig
from evaluation.gradient_masking import cross_checks
from evaluation.results import NUM_EXAMPLES, PerImageResults
from evaluation.resume import choose_batch_size, clear, only_evaluation, resume, state_path
from evaluation.robustbench import check_destinations, export_robustbench
from evaluation.target import LoadedModel, load_data, load_network, run_name, warn_of_other_training
from report.page import result_line, result_table, write_pages
from utils.device import choose_device, describe
from utils.distributed import Team
from utils.errors import ensure_writable
from utils.files import file_hash, write_atomically


def evaluate(config: EvalConfig, command: str, team: Team) -> None:
    """Attack the checkpoint, together with the other processes; rank 0 writes and prints what came of it."""
    attacks = choose_attacks(config.version, config.attacks)
    device = choose_device(team.device(config.device))
    package = find_package()
    subject = load_network(config)
    data = load_data(config, subject)
    check_classes(attacks, data.num_classes)
    check_destinations(config, subject.name, data.name)
    folder = Path(config.log_dir) / run_name(config)
    ensure_writable(folder, "--log-dir")
    if team.rank == 0:
        warn_of_other_training(subject, config)
    log = folder / "autoattack.log"
    epsilons = (config.epsilon, *(epsilon for epsilon in config.epsilons if epsilon != config.epsilon))
    with only_evaluation(folder) if team.rank == 0 else nullcontext():
        queries = AttackedModel(subject.model, device, config.precision, config.compile)
        suite = Suite(
            package=package,
            attacks=attacks,
            norm=config.norm,
            epsilon=config.epsilon,
            seed=config.seed,
            version=config.version,
            batch_size=config.batch_size or choose_batch_size(queries, data.x_test, folder, team),
            device=device,
            log_path=str(log),
        )
        sha256 = file_hash(config.checkpoint)
        fingerprint = report.fingerprint(suite, epsilons, config.precision, sha256, subject.name, data)
        state = fingerprint | ({"save_adv": True} if config.save_adv else {})  # what keeps all may go on keeping some
        outcomes = resume(folder, state, team)
        resumed = outcomes is not None
        if outcomes is None:
            keep = len(data.y_test) if config.save_adv else NUM_EXAMPLES
            outcomes = PerImageResults.empty(data.x_test, suite.batch_size, len(attacks), len(epsilons), keep)
        if team.rank == 0:
            report.keep_earlier(folder, fingerprint)
        with suite_log(log if team.rank == 0 else None, resumed, outcomes.warn):
            LOGGER.info(f"{command} on {describe(device)}")
            LOGGER.info("each attack gets what the ones before left robust: the suite's accuracies are of these")
            if resumed:
                LOGGER.info(f"going on: {outcomes.progress.sum()} of {outcomes.seconds.size} steps are finished")
            save = partial(outcomes.save, state_path(folder, team.rank), state)
            autoattack.evaluate(queries, suite, epsilons, data, outcomes, save, team)
            if team.rank == 0:
                facts = {**fingerprint, "processes": team.size, "command": command}
                finish(config, facts, folder, subject, queries, suite, data, outcomes)
        team.broadcast(None)  # rank 0 has written everything
        clear(folder)


def finish(
    config: EvalConfig,
    facts: dict[str, Any],
    folder: Path,
    subject: LoadedModel,
    queries: AttackedModel,
    suite: Suite,
    data: Dataset,
    outcomes: PerImageResults,
) -> None:
    """Write the report and what leaves the house, and print what lies where; the verdict is the last line."""
    result = {
        **facts,
        "epsilon_text": report.format_epsilon(suite.epsilon),
        **report.results(suite, outcomes, facts["epsilons"], data.y_test, data.class_names, facts["processes"]),
        "checkpoint": config.checkpoint,
        "hardware": describe(suite.device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    result["warnings"] = of_each_kind(outcomes.warnings)  # the checks below go to extremes and have their own
    lines = []
    if config.cross_checks:
        LOGGER.info(f"cross-checks on the first {config.cross_checks} images, at other radii too")
        pixels, y = to_device(data.x_test[: config.cross_checks], data.y_test[: config.cross_checks], suite.device)
        robust = torch.from_numpy(outcomes.robust[0, : config.cross_checks]).to(suite.device)
        checks = cross_checks(queries, suite, to_float(pixels), y, robust)
        result["checks"] = [asdict(check) for check in checks]
        lines += map(str, checks)
    report.write_report(folder, result, outcomes, data.y_test)
    LOGGER.info(result_line(result))
    print(result_table(result), *lines, draw(folder, outcomes, data), write_pages(folder, result), sep="\n")
    try:
        if config.save_adv:
            path, x_adv = Path(config.save_adv), outcomes.x_adv(data.x_test)
            taken_for = outcomes.adversarial_prediction[0]
            print(save_adversarial(path, queries, suite, x_adv, data.x_test, data.y_test, taken_for))
        if config.export:
            print(export_robustbench(Path(config.export[1]), folder.name, subject, result))
    finally:  # a full disk must not keep the verdict back
        print(result_line(result))


def draw(folder: Path, outcomes: PerImageResults, data: Dataset) -> str:
    """Write ``adversarial.png`` if there is something to draw and to draw it with; returns one line about it."""
    path = folder / "adversarial.png"
    if importlib.util.find_spec("matplotlib") is None:
        return f"{path} is not drawn: matplotlib is not installed (pip install matplotlib)"
    index = outcomes.shown_index
    if len(index) == 0:
        return f"{path} is not drawn: no image was broken by an attack"
    from report.plots import plot_triples

    names = [name.replace("_", " ") for name in data.class_names]
    x = np.transpose(data.x_test[index], (0, 3, 1, 2)) / np.float32(255)
    label, predicted = ([names[i] for i in k[index]] for k in (data.y_test, outcomes.adversarial_prediction[0]))
    write_atomically(
        path,
        lambda file: plot_triples(
            x, outcomes.shown_x_adv, label, predicted, outcomes.broken_by[0][index].tolist(), file
        ),
    )
    return f"picture: {path}"
