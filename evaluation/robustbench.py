"""Export a network in the form of the RobustBench model zoo."""

import json
import re
from pathlib import Path
from typing import Any

from evaluation.autoattack.suite import SUITE_NORMS
from evaluation.config import EvalConfig
from evaluation.published import require_wide_resnet
from evaluation.target import LoadedModel
from models.weights import plain_state
from report.page import LEADERBOARD_IMAGES, attacks_table, origin_table, suite_name
from report.render import render
from report.tables import Table
from utils.errors import UserError, ensure_writable
from utils.files import file_hash, save_atomically, write_atomically

LEADERBOARDS = {("cifar10", "linf"): "8/255", ("cifar100", "linf"): "8/255", ("cifar10", "l2"): "0.5"}
LISTED_WITH_A_FOOTNOTE = "0.031"  # instead of 8/255, as LBGAT and TRADES are


def check_destinations(config: EvalConfig, model: str, dataset: str, normalize: str = "none") -> None:
    """Check before the hours of attack that ``--export`` and ``--save-adv`` will work.

    Raises:
        UserError: an unknown format, a network or data set that it has no place for, something other than a file in
            the place of one, or a folder that cannot be written.
    """
    if config.export:
        format_name, folder = config.export
        if normalize != "none":
            raise UserError(f"--export {format_name} has no place for the normalisation in the network: leave it out")
        if format_name == "robustbench":
            robustbench_class(model, num_classes=10)
            _require_path_part(dataset, "data set")
        elif format_name == "published":
            require_wide_resnet(model)
        else:
            raise UserError(f"--export {format_name}: pass --export robustbench DIR or --export published DIR")
        ensure_writable(Path(folder), f"--export {format_name}")
    if config.save_adv:
        if Path(config.save_adv).is_dir():
            raise UserError(f"--save-adv {config.save_adv} is a folder: name a file, e.g. {config.save_adv}/adv.npz")
        if Path(config.save_adv).exists() and not Path(config.save_adv).is_file():
            raise UserError(f"--save-adv {config.save_adv} is no regular file: name another")
        ensure_writable(Path(config.save_adv).parent, "--save-adv")


def _require_path_part(name: str, what: str) -> None:
    """Raises: UserError: the name would lead out of the folder of the export."""
    if not re.fullmatch(r"[\w.+-]+", name) or name in (".", ".."):
        raise UserError(f"--export: the {what} {name!r} names a folder there: letters, digits and . _ + - only")


def robustbench_class(model: str, num_classes: int) -> tuple[str, str]:
    """Return RobustBench's name of a network, and the code that makes it there, with the names and shapes of ours.

    Raises:
        UserError: RobustBench has no class that computes the same.
    """
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)", model):
        depth, width = match.groups()
        call = f"WideResNet(depth={depth}, widen_factor={width}, num_classes={num_classes}, sub_block1=False)"
        return f"WideResNet-{depth}-{width}", _code("wide_resnet", "WideResNet", call)
    if model == "resnet18":
        call = f"ResNet(BasicBlock, [2, 2, 2, 2], num_classes={num_classes})"
        return "ResNet-18", _code("resnet", "BasicBlock, ResNet", call)
    if model == "preactresnet18":
        arguments = f"num_classes={num_classes}, bn_before_fc=True, out_shortcut=True"
        call = f"PreActResNet(PreActBlock, [2, 2, 2, 2], {arguments})"
        return "PreActResNet-18", _code("resnet", "PreActBlock, PreActResNet", call)
    raise UserError(
        f"RobustBench has no class that computes what {model} does: export a wrn-DEPTH-WIDTH, a resnet18 or a "
        "preactresnet18"
    )


def _code(module: str, classes: str, call: str) -> str:
    return f"from robustbench.model_zoo.architectures.{module} import {classes}\n\nmodel = {call}"


def export_robustbench(folder: Path, name: str, target: LoadedModel, result: dict[str, Any]) -> str:
    """Write ``models/DATASET/NORM/NAME.pt``, ``model_info/DATASET/NORM/NAME.json`` and the model card ``README.md``.

    The folders are those in which RobustBench looks for them. In the JSON file, null is what has to be filled in by
    hand and what was not measured as the leaderboard asks, as in RobustBench's own ``benchmark(to_disk=True)``.

    Args:
        folder: for the export.
        name: of the model, a part of the file names.
        target: the network.
        result: the content of ``autoattack.json``.

    Returns:
        One line that says where the card is and whether the figures are a leaderboard claim.

    Raises:
        UserError: RobustBench has no class for the network, a name is no part of a path, or a file cannot be written.
    """
    _require_path_part(name, "run")
    _require_path_part(result["dataset"], "data set")
    architecture, code = robustbench_class(target.name, target.num_classes)
    place = Path(result["dataset"]) / SUITE_NORMS[result["norm"]]
    weights = folder / "models" / place / f"{name}.pt"
    save_atomically(plain_state(target.model), weights)
    gaps = leaderboard_gaps(result)
    info = _model_info(architecture, target, result, gaps)
    text = json.dumps(info, indent=2) + "\n"
    write_atomically(folder / "model_info" / place / f"{name}.json", lambda file: file.write(text.encode()))
    (head, rows), origin = attacks_table(result), origin_table(result)
    card = render(
        "model_card.md.j2",
        name=name,
        info=info,
        code=_loading_code(code, weights.relative_to(folder)),
        result=result,
        gaps=gaps,
        suite=suite_name(result),
        accuracies=Table(head[:3], [row[:3] for row in rows[:-1]]),
        origin=Table(origin.head, [["SHA-256 of the exported weights", file_hash(weights)], *origin.rows]),
        missing=[key for key, value in info.items() if value is None and key != "footnote"],
    )
    write_atomically(folder / "README.md", lambda file: file.write(card))
    claim = f"no leaderboard claim: {'; '.join(gaps)}" if gaps else "measured as the leaderboard asks"
    return f"RobustBench: {folder / 'README.md'} ({claim})"


def leaderboard_gaps(result: dict[str, Any]) -> list[str]:
    """Return what the evaluation lacks for RobustBench's leaderboard, as phrases."""
    gaps, epsilon = [], result["epsilon_text"]
    usual = LEADERBOARDS.get((result["dataset"], result["norm"]))
    if usual is None:
        gaps.append(f"RobustBench has no leaderboard for {result['dataset']} in {result['norm']}")
    elif epsilon != usual and (usual, epsilon) != ("8/255", LISTED_WITH_A_FOOTNOTE):
        gaps.append(f"epsilon was {epsilon} and the leaderboard's is {usual}")
    if result["n"] < LEADERBOARD_IMAGES:
        gaps.append(f"{result['n']:,} of {LEADERBOARD_IMAGES:,} test images were attacked")
    if result["version"] != "standard":
        gaps.append(f"the suite was {result['version']}, not standard")
    if result["precision"] != "fp32":
        gaps.append(f"the attacks were computed in {result['precision']}")
    return gaps


def _model_info(architecture: str, target: LoadedModel, result: dict[str, Any], gaps: list[str]) -> dict[str, Any]:
    all_images = result["n"] >= LEADERBOARD_IMAGES
    usual = LEADERBOARDS.get((result["dataset"], result["norm"]), result["epsilon_text"])
    footnote = f"Uses epsilon {result['epsilon_text']} instead of {usual}" if result["epsilon_text"] != usual else None
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": bool(target.run["extra_data"]) if "extra_data" in target.run else None,
        "number_forward_passes": 1,
        "dataset": result["dataset"],
        "venue": None,
        "architecture": architecture,
        "eps": result["epsilon_text"],
        "clean_acc": f"{result['clean_accuracy']:.2f}" if all_images else None,
        "reported": None,
        "autoattack_acc": None if gaps else f"{result['robust_accuracy']:.2f}",
        "footnote": footnote,
    }


def _loading_code(code: str, weights: Path) -> str:
    return (
        f"import torch\n{code}\n"
        f"model.load_state_dict(torch.load({json.dumps(weights.as_posix())}, weights_only=True))\nmodel.eval()"
    )
