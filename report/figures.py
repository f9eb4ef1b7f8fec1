"""What training does to a classifier, in three pictures: logit margins, decision boundaries, perturbations.

    python -m report.figures natural=A/last.pt TRADES6=B/last.pt LBGAT0=C/last.pt --epsilon 0.1 --out docs

Writes margins.png, boundaries.png and perturbations.png. A network is NAME=CHECKPOINT; with :guide behind the file it
is the guide of that run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import pgd
from datasets import load_dataset
from models.checkpoint import load_network
from models.custom import is_custom
from models.weights import load_file
from utils.errors import UserError, run_program
from utils.options import format_epsilon, parse_epsilon

CLEAN, ADVERSARIAL = "#7fb3dd", "#b3261e"


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """f_y(x) - max_{k != y} f_k(x), (B,): above 0 where the image is classified correctly."""
    with torch.no_grad():
        logits = model(x)
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - logits.scatter(1, y[:, None], float("-inf")).amax(1)


def plane(origin: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions u and v, shaped like an image: u to the second image, v to the third beside u.

    Raises:
        UserError: the three images lie on one line.
    """
    u, v = second - origin, third - origin
    u = u / u.norm()
    v = v - (v * u).sum() * u
    if not v.norm() > 1e-6:
        raise UserError(
            "the attack does not leave the line between the two images: choose other ones, or a larger epsilon"
        )
    return u, v / v.norm()


def classes_on_plane(
    model: nn.Module, origin: Tensor, u: Tensor, v: Tensor, horizontal: Tensor, vertical: Tensor
) -> Tensor:
    """The class at origin + a u + b v, (len(vertical), len(horizontal)); the points may leave [0, 1]."""
    with torch.no_grad():
        rows = [model(origin + horizontal[:, None, None, None] * u + b * v).argmax(1) for b in vertical]
    return torch.stack(rows)


def draw_margins(networks: dict[str, nn.Module], attacked: dict[str, Tensor], x: Tensor, y: Tensor, file: Path) -> None:
    """A panel for each network: how far the right class is ahead, on clean images and under attack."""
    figure = Figure(figsize=(3.1 * len(networks), 2.8), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True):
        clean, robust = (margins(model, images, y).numpy() for images in (x, attacked[name]))
        bins = np.linspace(min(clean.min(), robust.min()), max(clean.max(), robust.max()), 41)
        for values, color, label in ((clean, CLEAN, "clean"), (robust, ADVERSARIAL, "PGD-20")):
            axes.hist(values, bins, alpha=0.65, color=color, label=f"{label}, {100 * (values > 0).mean():.0f}% right")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=name, xlabel="logit margin of the right class", yticks=[])
        axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
        axes.legend(fontsize="x-small", frameon=False, loc="upper left")
    figure.savefig(file, dpi=130)


def draw_boundaries(
    networks: dict[str, nn.Module],
    attacked: dict[str, Tensor],
    x: Tensor,
    pair: tuple[int, int],
    epsilon: float,
    file: Path,
) -> None:
    """The class at every point of the plane through two images and each network's adversarial example of the first."""
    figure = Figure(figsize=(3.1 * len(networks), 3.3), layout="constrained")
    (first, second), colors = pair, {}
    for axes, (name, model) in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True):
        adversarial = attacked[name][first]
        u, v = plane(x[first], x[second], adversarial)
        (across, up), distance = [((adversarial - x[first]) * w).sum() for w in (u, v)], (x[second] - x[first]).norm()
        horizontal = torch.linspace(-0.3, 1.3, 121) * distance
        vertical = torch.linspace(-0.8, 0.8, 121) * distance
        classes = classes_on_plane(model, x[first], u, v, horizontal, vertical)
        extent = (*horizontal[[0, -1]].tolist(), *vertical[[0, -1]].tolist())
        for label in classes.unique().tolist():
            colors.setdefault(label, len(colors) % 20)  # the same in all panels
        painted = classes.clone().apply_(colors.get).numpy()
        axes.imshow(painted, origin="lower", extent=extent, cmap="tab20", vmin=0, vmax=19, alpha=0.6)
        for a, b, marker, label in ((0, 0, "o", "image"), (distance, 0, "s", "another"), (across, up, "X", "attacked")):
            axes.plot(float(a), float(b), marker, color="black", markersize=6, label=label)
        axes.set(title=name, xlabel="to another image (l2)", ylabel="adversarial direction (l2)")
    axes.legend(fontsize="x-small", loc="lower right")
    figure.suptitle(f"colors: predicted classes; attack: PGD-20, epsilon {format_epsilon(epsilon)}", fontsize="small")
    figure.savefig(file, dpi=130)


def draw_perturbations(
    networks: dict[str, nn.Module],
    attacked: dict[str, Tensor],
    x: Tensor,
    index: int,
    epsilon: float,
    class_names: Sequence[str],
    file: Path,
) -> None:
    """The image and, for each network, what the attack adds to it (grey is 0)."""
    figure = Figure(figsize=(1.9 * (len(networks) + 1), 2.3), layout="constrained")
    panels = {"the image": x[index]}
    panels |= {name: 0.5 + (attacked[name][index] - x[index]) / (2 * epsilon) for name in networks}
    for axes, (name, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[])
        if name in networks:
            with torch.no_grad():
                predicted = networks[name](torch.stack([x[index], attacked[name][index]])).argmax(1).tolist()
            before, after = (class_names[label].replace("_", " ") for label in predicted)
            axes.set_xlabel(f"{before} becomes {after}" if after != before else f"{before} stays", fontsize="small")
    figure.savefig(file, dpi=130)


def load_named(text: str, student: str = "auto") -> tuple[str, nn.Module, str | None]:
    """``NAME=CHECKPOINT`` or ``NAME=CHECKPOINT:guide`` -> the name, the network in eval mode, and the data set that it
    was trained on if the file says so.

    Args:
        student: the network in the file, but of a guide.

    Raises:
        UserError: not of this form, or no network fits the file.
    """
    name, separator, path = text.partition("=")
    if not separator:
        raise UserError(f"{text!r}: write NAME=CHECKPOINT, such as LBGAT0=checkpoints/lbgat0/last.pt")
    file, guide = path.removesuffix(":guide"), path.endswith(":guide")
    content = load_file(file)
    config = content.get("config") if isinstance(content, dict) else None
    dataset = config.get("dataset") if isinstance(config, dict) else None
    if not guide:
        return name, load_network(content, file, student).model.eval(), dataset
    if not isinstance(content, dict) or not content.get("guide"):
        raise UserError(f"{file} holds no guide: pass the last.pt of a --method lbgat run")
    guide = config.get("guide") if isinstance(config, dict) else None
    if not isinstance(guide, str) or is_custom(guide):
        raise UserError(f"{file} does not name a guide of this project, and code that a file names is never run")
    network = load_network({"state_dict": content["guide"]}, file, guide)
    return name, network.model.eval(), dataset


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m report.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--student", default="auto", help="FILE.py:NAME of all these networks, if it is one of yours")
    parser.add_argument("--dataset", help="of the test images (default: the one that the first network was trained on)")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epsilon", default="0.031", help="of the attack (default: %(default)s)")
    parser.add_argument("--n-examples", type=int, default=360, help="test images in the margins (default: %(default)s)")
    parser.add_argument("--images", default="0,1", help="the two test images that are drawn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("Logs/figures"), help="folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    epsilon = parse_epsilon(arguments.epsilon)
    named = [load_named(text, arguments.student) for text in arguments.networks]
    networks, dataset = {name: network for name, network, _ in named}, arguments.dataset or named[0][2]
    if len(networks) < len(named):
        raise UserError("two networks have one name: write another before =")
    if dataset is None:
        raise UserError("the first checkpoint does not say what it was trained on: add --dataset NAME")
    data = load_dataset(dataset, arguments.data_dir)
    x, y = data.test(arguments.n_examples)
    try:
        first, second = map(int, arguments.images.split(","))
        if first == second or not {first, second} <= set(range(len(x))):
            raise ValueError
    except ValueError as error:
        raise UserError(f"--images {arguments.images}: write two numbers below {len(x)}, such as 0,1") from error
    for name, model in networks.items():
        with torch.no_grad():
            outputs = model(x[:1]).shape[1]
        if outputs != data.num_classes:
            raise UserError(f"{name} is of {outputs} classes and {dataset} has {data.num_classes}: pass --dataset")
    attacked = {name: pgd(model, x, y, epsilon) for name, model in networks.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_margins(networks, attacked, x, y, arguments.out / "margins.png")
    draw_boundaries(networks, attacked, x, (first, second), epsilon, arguments.out / "boundaries.png")
    draw_perturbations(networks, attacked, x, first, epsilon, data.class_names, arguments.out / "perturbations.png")
    print(f"pictures: {', '.join(str(arguments.out / f'{n}.png') for n in ('margins', 'boundaries', 'perturbations'))}")


if __name__ == "__main__":
    run_program(main)
