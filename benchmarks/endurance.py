"""Train a tiny network for 200 epochs by two processes; record the memory and open files of each: endurance.json.

python -m benchmarks.endurance --out results/endurance-cpu
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.kills import start
from benchmarks.processes import Store, status
from utils.device import describe
from utils.errors import UserError, run_program
from utils.provenance import commit

FIRST = 5  # epochs after which nothing may grow any more


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for endurance.json")
    args = parser.parse_args()
    samples: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        store, metrics = Store(), Path(folder, "Logs/run/metrics.jsonl")
        pids = start(Path(folder), args.processes, store, epochs=args.epochs, save_freq=args.epochs)
        epoch = 0
        while epoch < args.epochs - 1:
            time.sleep(0.02)
            now = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if now == epoch:
                if os.waitpid(pids[0], os.WNOHANG)[0]:
                    raise UserError(f"the training ended early: {Path(folder, 'output').read_text()[-500:]}")
                continue
            epoch = now
            files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
            samples.append({"epoch": epoch, "mib": [resident_mib(pid) for pid in pids], "files": files})
        codes = [status(pid) for pid in pids]
    late = [sample for sample in samples if sample["epoch"] >= FIRST]
    figures = {
        "epochs": args.epochs,
        "processes": args.processes,
        "codes": codes,
        "growth_mib": [late[-1]["mib"][i] - late[0]["mib"][i] for i in range(args.processes)],
        "most_files": [max(s["files"][i] for s in late) for i in range(args.processes)],
        "fewest_files": [min(s["files"][i] for s in late) for i in range(args.processes)],
        "hardware": describe(torch.device("cpu")),
        **commit(),
        "command": ["python", "-m", "benchmarks.endurance", *sys.argv[1:]],
        "samples": samples[:: max(1, len(samples) // 40)],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "endurance.json").write_text(json.dumps(figures, indent=2) + "\n")
    print({name: value for name, value in figures.items() if name != "samples"})


if __name__ == "__main__":
    run_program(main)
