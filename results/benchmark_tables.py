"""Tables of the benchmarks in results/."""

from collections.abc import Callable
from pathlib import Path

from report.tables import markdown_table as markdown
from results.records import Records, display
from utils.options import format_epsilon

Link = Callable[[Path, str], str]  # (target, text) -> Markdown
NO_RUNS = "Nothing has been measured yet."


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return markdown(head, rows) if rows else NO_RUNS


def speed_table(records: Records, link: Link) -> str:
    """Every file of benchmarks/train_step.py under results/."""
    rows = []
    for path, figures in records.json_files("**/*.json").items():
        if not isinstance(figures, dict) or "fraction_of_peak" not in figures:
            continue
        a = figures["arguments"]
        rows.append(
            [
                link(path, display(a["student"])),
                display(a["guide"]),
                f"{a['batch_size']}",
                a["precision"],
                f"{figures['ratio']:.2f}",
                f"{figures['images_per_second']:.1f}",
                f"{figures['gflops_per_second']:,.0f} ({figures['fraction_of_peak']:.0%})",
                f"{figures['peak_memory_mib']:.0f}",
                figures["hardware"],
            ]
        )
    head = [
        "student", "guide", "batch", "precision", "times the reference's speed", "images/s", "GFLOP/s (of the peak)",
        "memory, MiB", "hardware",
    ]  # fmt: skip
    return markdown_table(head, rows)


def front_end_table(records: Records, link: Link) -> str:
    """Every file of benchmarks/autoattack.py under results/: AutoAttack here against the authors' front end."""
    rows = []
    for path, figures in records.json_files("**/autoattack.json").items():
        if "front end" not in figures:
            continue
        a = figures["arguments"]
        rows.append(
            [
                link(path.parent, str(path.parent.relative_to(records.root / "results"))),
                display(figures["network"]),
                display(figures["dataset"]),
                f"{a['norm']} {format_epsilon(float(a['epsilon']))}",
                f"{figures['images']:,}",
                a["batch_size"],
                f"{figures['robust']['front end']}",
                f"{len(figures['differences'])}",
                f"{figures['cpu_ratio']:.2f}",
            ]
        )
    head = [
        "result", "network", "data set", "epsilon", "images", "batch", "robust", "images judged differently",
        "CPU time / front end's CPU time",
    ]  # fmt: skip
    return markdown_table(head, rows)


def agreement_table(records: Records, link: Link) -> str:
    """Every file of benchmarks/agreement.py: PGD-20 here and in other libraries."""
    rows = [
        [
            link(path.parent, path.parent.name),
            display(figures["model"]),
            f"{figures['n']}",
            format_epsilon(figures["epsilon"]),
            *(f"{figures['accuracy'][name]:.2f}" for name in ("ours", *figures["differs_from_ours"])),
            f"{sum(figures['differs_from_ours'].values())}",
        ]
        for path, figures in records.json_files("*/agreement.json").items()
    ]
    head = ["result", "network", "images", "epsilon", "here", "torchattacks", "foolbox", "images judged differently"]
    return markdown_table(head, rows)


def included(pattern: str, records: Records, link: Link) -> str:
    """What the benchmarks wrote as Markdown, each with a link to its folder."""
    paths = sorted((records.root / "results").glob(pattern))
    return "\n\n".join(f"{link(p.parent, p.parent.name)}: {p.read_text().strip()}" for p in paths) or NO_RUNS
