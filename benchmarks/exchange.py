"""What several processes gain and what their exchange costs, in one run on the CPUs of this machine, and what that
means for more of them: processes.json in one folder.

    python -m benchmarks.exchange --out results/processes-cpu

It times one LBGAT6 step by 1, 2 and 4 processes with synchronised and local BatchNorm, and beside it AT (one trained
forward pass, the only kind of step that DistributedDataParallel fits) by this project's step and under DDP.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from attacks.pgd import AttackSpec
from benchmarks.processes import together
from engine.steps import create_step
from losses import create_objective
from models import create_model
from models.accelerate import AccelerationConfig
from utils.device import describe
from utils.distributed import ProcessGroup
from utils.errors import run_program
from utils.provenance import commit

ATTACK = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=10)


@dataclass(frozen=True)
class Measured:
    """What the time of a step by several processes is predicted from.

    Attributes:
        image_seconds: of a step by one process, per image.
        parallel: how many processes compute at the same time: cores, or GPUs.
        exchanges: collectives of a step; exchanged_bytes: that each process puts into them.
        latency: seconds of a small collective of two processes; it grows with the logarithm of their number.
        bandwidth: bytes per second of a large one.
    """

    image_seconds: float
    parallel: int
    exchanges: int
    exchanged_bytes: int
    latency: float
    bandwidth: float


def predict(m: Measured, processes: int, batch: int) -> tuple[float, float]:
    """Seconds of a step on a batch, and the share of it that is exchange.

    The fullest process has ceil(batch / processes) images; where processes share cores, they compute in turn. A ring
    moves 2 (K - 1) / K times the bytes.
    """
    turns = -(-processes // min(processes, m.parallel))
    compute = -(-batch // processes) * turns * m.image_seconds
    if processes == 1:
        return compute, 0.0
    ring = 2 * (processes - 1) / processes * m.exchanged_bytes / m.bandwidth
    exchange = m.exchanges * m.latency * log2(processes) * turns + ring
    return compute + exchange, exchange / (compute + exchange)


def lbgat_exchanges(student: str, guide: str, num_classes: int, synchronised: bool) -> tuple[int, int]:
    """Collectives of one LBGAT6 step, and bytes that each process puts into them but for the logits: two trained passes
    of the student and one of the guide exchange statistics forwards and backwards at each BatchNorm, in float64; each
    pass its logits; and the step its gradients and whether to stop."""
    with torch.device("meta"):
        nets = [create_model(name, num_classes) for name in (student, guide)]
    layers = [[m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)] for net in nets]
    widths = 2 * layers[0] + layers[1] if synchronised else []
    gradients = sum(p.numel() for net in nets for p in net.parameters())
    return 2 * len(widths) + 3 + 1 + 1, 4 * gradients + sum(8 * (4 * width + 1) for width in widths)


class Timed(ProcessGroup):
    """Counts the exchanges, their bytes, and the seconds in them, the waiting for other processes included."""

    count, size_of_all, seconds = 0, 0, 0.0

    def _exchange(self, tensors: Any, start: Callable) -> None:
        began = time.perf_counter()
        super()._exchange(tensors, start)
        self.count += 1
        self.size_of_all += sum(t.numel() * t.element_size() for t in tensors)
        self.seconds += time.perf_counter() - began


def build(args: argparse.Namespace, group: ProcessGroup, method: str, batch_norm: str) -> Callable[[], object]:
    """One step on one random batch, the same in all processes."""
    torch.manual_seed(0)
    student = create_model(args.student, 100)
    objective = create_objective(method)
    guide = create_model("wrn-10-1", 100) if "guide" in objective.passes else None
    parameters = [p for net in (student, guide) if net is not None for p in net.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=2e-4, fused=True)
    step = create_step(
        student,
        guide,
        objective,
        optimizer,
        ATTACK,
        acceleration=AccelerationConfig(),
        group=group,
        batch_norm=batch_norm,
    )
    x, y = torch.rand(args.batch_size, 3, 32, 32), torch.randint(100, (args.batch_size,))
    if batch_norm != "ddp":
        return lambda: step([x], y, torch.Generator().manual_seed(0))
    ddp, rows = torch.nn.parallel.DistributedDataParallel(student), group.rows(len(y))

    def ddp_step() -> None:
        images = step.student.in_memory_order(x)
        start = step.draw_starts([images], torch.Generator().manual_seed(0))[0]
        # The attack is not DDP's: the step of one process on this process's rows.
        alone.student.model.train()
        x_adv = alone.adversarial([images[rows]], y[rows], [start[rows]])[0]
        ddp.train()
        optimizer.zero_grad(set_to_none=True)
        sum(objective.outer({"adv": ddp(x_adv)}, y[rows]).values()).backward()
        optimizer.step()

    alone = create_step(student, None, objective, optimizer, ATTACK, acceleration=AccelerationConfig())
    return ddp_step


def measure(args: argparse.Namespace, processes: int, threads: int, folder: Path) -> dict[str, Any]:
    """Median seconds of each kind of step by so many processes, and of the exchanges alone."""

    def main(group: ProcessGroup) -> None:
        torch.set_num_threads(threads)
        group.__class__ = Timed
        found: dict[str, Any] = {"processes": processes, "threads": threads}
        kinds = [("lbgat", "synchronised"), ("lbgat", "local"), ("at", "local"), ("at", "ddp")]
        for method, batch_norm in kinds if processes > 1 else [("lbgat", "synchronised"), ("at", "local")]:
            run, times = build(args, group, method, batch_norm), []
            run()
            group.count, group.size_of_all, group.seconds = 0, 0, 0.0
            for _ in range(args.repeats):
                if processes > 1:
                    dist.barrier()
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
            found[f"{method}, {batch_norm}"] = {
                "seconds": statistics.median(times),
                "images_per_second": args.batch_size / statistics.median(times),
                "exchanges": group.count // args.repeats,
                "exchanged_bytes": group.size_of_all // args.repeats,
                "exchange_seconds": group.seconds / args.repeats,
            }
        if processes > 1:
            found["latency"], found["bandwidth"] = exchange_speed(
                group, found["lbgat, synchronised"]["exchanged_bytes"]
            )
        if group.is_main:
            (folder / "found.json").write_text(json.dumps(found))

    codes, output = together(main, folder, processes)
    assert codes == [0] * processes, output
    return json.loads((folder / "found.json").read_text())


def exchange_speed(group: ProcessGroup, size: int) -> tuple[float, float]:
    """Seconds of a small exchange, and bytes per second of one of all gradients."""
    seconds = {}
    for n in (64, size // 4):
        tensor, times = torch.zeros(n), []
        for _ in range(30):
            dist.barrier()
            began = time.perf_counter()
            group.all_reduce_(tensor)
            times.append(time.perf_counter() - began)
        seconds[n] = statistics.median(times)
    ring = 2 * (group.size - 1) / group.size * size
    return seconds[64], ring / max(1e-9, seconds[size // 4] - seconds[64])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="wrn-16-2")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2, help="cores of this machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for processes.json")
    args = parser.parse_args()
    rows = []
    for processes, threads in ((1, 1), (1, 2), (2, 1), (4, 1)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(args, processes, threads, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    alone, two = rows[0], rows[2]
    step = two["lbgat, synchronised"]
    measured = Measured(
        image_seconds=alone["lbgat, synchronised"]["seconds"] / args.batch_size,
        parallel=args.parallel,
        exchanges=step["exchanges"],
        exchanged_bytes=step["exchanged_bytes"],
        latency=two["latency"],
        bandwidth=two["bandwidth"],
    )
    checked = []
    for row in (rows[0], rows[2], rows[3]):
        seconds, share = predict(measured, row["processes"], args.batch_size)
        found = row["lbgat, synchronised"]["seconds"]
        checked.append(
            {"processes": row["processes"], "predicted": seconds, "exchange_share": share, "measured": found}
        )
    figures = {
        "student": args.student, "batch_size": args.batch_size, "measured": asdict(measured), "rows": rows,
        "predictions": checked, "hardware": describe(torch.device("cpu")), **commit(),
        "command": ["python", "-m", "benchmarks.exchange", *sys.argv[1:]],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "processes.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(checked, indent=2))


if __name__ == "__main__":
    run_program(main)
