"""What leaves the house: a network in the form of the RobustBench model zoo, and the adversarial images themselves."""

import json
import re
from pathlib import Path
from typing import Any

from evaluation.autoattack.suite import SUITE_NORMS
from evaluation.config import EvalConfig
from evaluation.target import LoadedModel
from models.weights import plain_state
from utils.errors import UserError, ensure_writable
from utils.files import file_hash, save_atomically, write_atomically

LEADERBOARDS = {("cifar10", "linf"): "8/255", ("cifar100", "linf"): "8/255", ("cifar10", "l2"): "0.5"}
LISTED_WITH_A_FOOTNOTE = "0.031"  # instead of 8/255, as LBGAT and TRADES are
LEADERBOARD_IMAGES = 10_000


def check_destinations(config: EvalConfig, model: str) -> None:
    """Find out before the hours of attack whether their results can leave as ``--export`` and ``--save-adv`` ask.

    Raises:
        UserError: another format than robustbench, no class for the network there, a folder in place of a file, or a
            folder that cannot be written.
    """
    if config.export:
        format_name, folder = config.export
        if format_name != "robustbench":
            raise UserError(f"--export {format_name}: the one format is robustbench: pass --export robustbench DIR")
        robustbench_class(model, num_classes=10)
        ensure_writable(Path(folder), "--export robustbench")
    if config.save_adv:
        if Path(config.save_adv).is_dir():
            raise UserError(f"--save-adv {config.save_adv} is a folder: name a file, e.g. {config.save_adv}/adv.npz")
        ensure_writable(Path(config.save_adv).parent, "--save-adv")


def robustbench_class(model: str, num_classes: int) -> tuple[str, str]:
    """RobustBench's name of a network, and the code that makes it there, with the names and shapes of ours.

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


def export_robustbench(folder: Path, name: str, subject: LoadedModel, result: dict[str, Any]) -> str:
    """Write ``models/DATASET/NORM/NAME.pt``, ``model_info/DATASET/NORM/NAME.json`` and the model card ``README.md``.

    The folders are those in which RobustBench looks for them. Of the JSON file, null is what has to be filled in by
    hand and what was not measured as the leaderboard asks, as in RobustBench's own ``benchmark(to_disk=True)``.

    Args:
        result: the content of ``autoattack.json``.

    Returns:
        One line that says where the card is and whether the figures are a leaderboard claim.

    Raises:
        UserError: RobustBench has no class for the network, or a file cannot be written.
    """
    architecture, code = robustbench_class(subject.name, subject.num_classes)
    place = Path(result["dataset"]) / SUITE_NORMS[result["norm"]]
    weights = folder / "models" / place / f"{name}.pt"
    save_atomically(plain_state(subject.model), weights)
    gaps = leaderboard_gaps(result)
    info = _model_info(architecture, subject, result, gaps)
    text = json.dumps(info, indent=2) + "\n"
    write_atomically(folder / "model_info" / place / f"{name}.json", lambda file: file.write(text.encode()))
    card = _card(name, info, weights.relative_to(folder), file_hash(weights), code, result, gaps)
    write_atomically(folder / "README.md", lambda file: file.write(card.encode()))
    claim = f"no leaderboard claim: {'; '.join(gaps)}" if gaps else "measured as the leaderboard asks"
    return f"RobustBench: {folder / 'README.md'} ({claim})"


def leaderboard_gaps(result: dict[str, Any]) -> list[str]:
    """What the evaluation lacks for RobustBench's leaderboard: nothing, or phrases that say it."""
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


def _model_info(architecture: str, subject: LoadedModel, result: dict[str, Any], gaps: list[str]) -> dict[str, Any]:
    all_images = result["n"] >= LEADERBOARD_IMAGES
    usual = LEADERBOARDS.get((result["dataset"], result["norm"]), result["epsilon_text"])
    footnote = f"Uses epsilon {result['epsilon_text']} instead of {usual}" if result["epsilon_text"] != usual else None
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": bool(subject.run["extra_data"]) if "extra_data" in subject.run else None,
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


def _card(
    name: str,
    info: dict[str, Any],
    weights: Path,
    weights_sha256: str,
    code: str,
    result: dict[str, Any],
    gaps: list[str],
) -> str:
    """The model card, in Markdown."""
    standing = "Measured as RobustBench's leaderboard asks: the standard suite on all 10,000 test images."
    if gaps:
        standing = (
            f"**These figures are no leaderboard claim**: {'; '.join(gaps)}. RobustBench asks for the standard suite "
            "in float32 on all 10,000 test images, at its epsilon: figures that fall short of that are left out of the "
            "model_info file."
        )
    rows = [("clean", result["clean_accuracy"])]
    rows += [(f"after {attack}", accuracy) for attack, accuracy in result["accuracy_after"].items()]
    accuracies = "\n".join(f"| {row} | {accuracy:.2f}% |" for row, accuracy in rows)
    missing = ", ".join(f"`{key}`" for key, value in info.items() if value is None and key != "footnote")
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return f"""# {name}

{info["architecture"]} for {result["dataset"]}; images in [0, 1], no normalisation.

{standing}

| accuracy | {result["n"]:,} test images |
| --- | --- |
{accuracies}

AutoAttack {result["version"]}, {result["norm"]}, epsilon {result["epsilon_text"]}, seed {result["seed"]};
{result["hardware"]}; {result["date"]}. No corruptions were measured.

## Load

```python
import torch
{code}
model.load_state_dict(torch.load("{weights.as_posix()}", weights_only=True))
model.eval()
```

## Before it is submitted

Still empty in the model_info file: {missing}. RobustBench names models AuthorYearWord: rename `{name}` in both folders.

## Provenance

```
{result["command"]}
```

| | |
| --- | --- |
| weights, SHA-256 | `{weights_sha256}` |
| checkpoint that was evaluated, SHA-256 | `{result["checkpoint_sha256"]}` |
| test images and labels, SHA-256 | `{result["data_sha256"]}` |
| versions | {versions} |
"""
