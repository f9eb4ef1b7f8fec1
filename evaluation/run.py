"""One AutoAttack evaluation, from a checkpoint to its report."""

import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.loader import to_device, to_float
from evaluation import summary
from evaluation.adversarial import save_adversarial
from evaluation.attack_loop import attack_images, prepare_model
from evaluation.autoattack.log import of_each_kind, suite_log
from evaluation.autoattack.suite import LOGGER, Suite, check_classes, choose_attacks, find_package
from evaluation.config import EvalConfig
from evaluation.gradient_masking import cross_checks
from evaluation.published import export_published
from evaluation.results import NUM_EXAMPLES, PerImageResults
from evaluation.resume import clear, gather_results, resume, state_path
from evaluation.robustbench import check_destinations, export_robustbench
from evaluation.target import check_network, load_data, load_network, run_name, warn_of_other_training
from report.compare import compare
from report.page import result_line, result_table, write_pages
from utils.device import choose_device, describe, slow_precision
from utils.distributed import ProcessGroup
from utils.errors import UserError, ensure_writable
from utils.files import lock_folder, write_atomically
from utils.options import format_epsilon
from utils.provenance import commit


class Evaluation:
    """Attacks a checkpoint, together with the other processes; rank 0 writes and prints the report.

    Args:
        argv: the words after the program's name.
    """

    def __init__(self, config: EvalConfig, argv: Sequence[str], group: ProcessGroup):
        self.config, self.group = config, group
        self.command = shlex.join([*group.launcher, "eval_autoattack.py", *argv])
        self.epsilons = (config.epsilon, *(epsilon for epsilon in config.epsilons if epsilon != config.epsilon))
        self.folder = Path(config.log_dir) / run_name(config)

    def run(self) -> None:
        """Load, resume, attack and report, or compare finished evaluations if the config says so.

        Raises:
            UserError: a setting or a file does not fit, or a part of the report could not be written.
        """
        if self.config.compare:
            if self.group.is_main:
                print(compare(self.config.compare, Path(self.config.log_dir, self.config.mark)))
            return
        self.load()
        with lock_folder(self.folder, "evaluation") if self.group.is_main else nullcontext():
            resumed = self.resume()
            log = self.folder / "autoattack.log" if self.group.is_main else None
            with suite_log(log, resumed, self.results.warn):
                self.attack()
                if self.group.is_main:
                    self.report()
            self.group.barrier()  # until rank 0 has written the report
            clear(self.folder)

    def load(self) -> None:
        """Load the network, the images and the suite, and check what can be checked before hours of attack."""
        config = self.config
        attacks = choose_attacks(config.version, config.attacks)
        device = choose_device(self.group.device(config.device))
        package = find_package(config.plain)
        self.target = load_network(config)
        self.data = load_data(config, self.target, warn=self.group.is_main)
        check_network(self.target, self.data, attacks)
        check_classes(attacks, self.data.num_classes)
        check_destinations(config, self.target.name, self.data.name, self.target.normalize)
        ensure_writable(self.folder, "--log-dir")
        chosen = f"{self.target.name}: {'; '.join(self.target.notes)}"
        self.chosen = chosen.encode("utf-8", "backslashreplace").decode()  # a path in it may be no UTF-8
        if self.group.is_main:
            warn_of_other_training(self.target, config)
        self.suite = Suite(
            package=package,
            attacks=attacks,
            norm=config.norm,
            epsilon=config.epsilon,
            seed=config.seed,
            version=config.version,
            batch_size=config.batch_size,
            device=device,
            log_path=str(self.folder / "autoattack.log"),
            plain=config.plain,
        )
        self.model = prepare_model(self.target.model, self.suite, config.precision, config.compile)

    def resume(self) -> bool:
        """Take the results of the same evaluation if it was interrupted, else empty ones; say which."""
        self.fingerprint = summary.fingerprint(self.suite, self.epsilons, self.config.precision, self.target, self.data)
        # A state with all adversarial images can resume an evaluation that needs a few, but not the reverse.
        self.state_fingerprint = self.fingerprint | ({"save_adv": True} if self.config.save_adv else {})
        n, height, width, channels = self.data.x_test.shape
        max_saved = n if self.config.save_adv else NUM_EXAMPLES
        shape, sizes = (channels, height, width), (self.suite.batch_size, len(self.suite.attacks), len(self.epsilons))
        empty = PerImageResults.empty(n, shape, *sizes, max_saved)
        found = resume(self.folder, self.state_fingerprint, empty, self.group)
        self.results = found or empty
        if self.group.is_main and (kept := summary.keep_earlier(self.folder, self.fingerprint)):
            print(f"notice: the report of another evaluation was here and is now in {kept}", file=sys.stderr)
        elif self.group.is_main and found is None and (self.folder / "autoattack.json").exists():
            print(
                f"notice: {self.folder} has the report of this evaluation already, which is repeated", file=sys.stderr
            )
        return found is not None

    def attack(self) -> None:
        """Run what is left of the attacks; at rank 0 the results are then those of all processes."""
        results = self.results
        LOGGER.info(f"{self.command} on {describe(self.suite.device)}")
        LOGGER.info(f"network: {self.chosen}")
        LOGGER.info("each attack gets only images that are still correct; the suite logs accuracies of those images")
        if self.group.is_main and (sentence := slow_precision(self.config.precision, torch.device(self.suite.device))):
            print(f"notice: {sentence}", file=sys.stderr)
        if results.progress.any():
            LOGGER.info(f"resuming: {results.progress.sum()} of {results.seconds.size} steps are finished")
        save = partial(results.save, state_path(self.folder, self.group.rank), self.state_fingerprint)
        attack_images(self.model, self.suite, self.epsilons, self.images, results, save, self.group)
        known = set(results.warnings)
        gather_results(results, self.state_fingerprint, self.group)
        if self.group.is_main:
            for message in sorted(set(results.warnings) - known):
                LOGGER.warning(message)
            for index in range(len(self.epsilons)):
                self.suite.warn_about_square(results.accuracies(self.suite.attacks, index))

    def images(self, part: slice) -> tuple[Tensor, Tensor]:
        """Test images (B, C, H, W) in [0, 1] and labels (B,) on the device."""
        pixels, labels = to_device(self.data.x_test[part], self.data.y_test[part], self.suite.device)
        return to_float(pixels), labels

    def report(self) -> None:
        """Write report and exports and print their paths; the last line printed is the result, whatever fails.

        Raises:
            UserError: with everything that failed.
        """
        config, data, results = self.config, self.data, self.results
        num_processes = self.group.size
        result = {
            **self.fingerprint,
            "processes": num_processes,
            "command": self.command,
            "epsilon_text": format_epsilon(self.suite.epsilon),
            **summary.summarize(self.suite, results, self.epsilons, data.y_test, data.class_names, num_processes),
            "checkpoint": config.checkpoint,
            "weights": self.chosen,
            "hardware": describe(self.suite.device),
            **commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "warnings": of_each_kind(results.warnings),  # the cross-checks warn at extremes of their own
        }
        print(f"network: {self.chosen}")
        failures: list[str] = []
        write = partial(summary.write_report, self.folder, result, results, data.y_test)
        self.attempt(failures, "autoattack.json", write)
        self.attempt(failures, "standard output", lambda: result_table(result))
        if config.cross_checks:
            self.attempt(failures, "--cross-checks", lambda: self.cross_check(result))
            self.attempt(failures, "autoattack.json", write)
        self.attempt(failures, "adversarial.png", self.draw)
        self.attempt(failures, "report.html", lambda: write_pages(self.folder, result))
        if config.save_adv:
            self.attempt(failures, "--save-adv", self.save_adversarial)
        if config.export:
            export = {"robustbench": export_robustbench, "published": export_published}[config.export[0]]
            folder = Path(config.export[1])
            self.attempt(failures, "--export", lambda: export(folder, self.folder.name, self.target, result))
        LOGGER.info(result_line(result))
        print(result_line(result))
        if failures:
            raise UserError(f"{'; '.join(failures)} (the same command writes the report again)")

    def attempt(self, failures: list[str], what: str, part: Callable[[], str | None]) -> None:
        """Print the line that a part of the report returns; an error goes to the log and the list."""
        try:
            if line := part():
                print(line)
        except Exception as error:  # whatever it is, the result must be printed
            LOGGER.error(f"{what} failed", exc_info=True)
            failures.append(f"{what} failed: {error or type(error).__name__}")

    def cross_check(self, result: dict[str, Any]) -> str:
        """Add the checks for gradient masking to the result; return a line for each."""
        n = self.config.cross_checks
        LOGGER.info(f"cross-checks on the first {n} images, at other radii too")
        robust = torch.from_numpy(self.results.robust[0, :n]).to(self.suite.device)
        checks = cross_checks(self.model, self.suite, *self.images(slice(n)), robust)
        result["checks"] = [asdict(check) for check in checks]
        return "\n".join(map(str, checks))

    def save_adversarial(self) -> str:
        """Write the adversarial images to ``--save-adv``; return a line about it."""
        images, predicted = self.data.x_test, self.results.adversarial_prediction[0]
        x_adv = self.results.x_adv(np.transpose(images, (0, 3, 1, 2)) / np.float32(255))
        path = Path(self.config.save_adv)
        return save_adversarial(path, self.model, self.suite, x_adv, images, self.data.y_test, predicted)

    def draw(self) -> str:
        """Write ``adversarial.png`` if an attack broke an image and matplotlib is there; return a line about it."""
        path, index = self.folder / "adversarial.png", self.results.example_index
        if importlib.util.find_spec("matplotlib") is None:
            return f"{path} is not drawn: matplotlib is not installed (pip install matplotlib)"
        if len(index) == 0:
            return f"{path} is not drawn: no image was broken by an attack"
        from report.plots import plot_triples

        names = [name.replace("_", " ") for name in self.data.class_names]
        x = np.transpose(self.data.x_test[index], (0, 3, 1, 2)) / np.float32(255)
        labels, predicted = (
            [names[k] for k in classes[index]] for classes in (self.data.y_test, self.results.adversarial_prediction[0])
        )
        broken_by = self.results.broken_by[0][index].tolist()
        x_adv = self.results.example_x_adv
        write_atomically(path, lambda file: plot_triples(x, x_adv, labels, predicted, broken_by, file))
        return f"picture: {path}"
