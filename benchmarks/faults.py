"""What do damaged files, odd command lines and kills do to the two programs? Every case runs in a process of its own.

    python -m benchmarks.faults --out results/faults-cpu    # --quick runs a tenth of the cases

Files of every kind are damaged and read again: 200 single bit flips a kind, truncations, changed bytes, pieces left out
or repeated, files of another kind, and whole ones that hold something else. A case may take 2 s of CPU time and 500 MB
more than the undamaged file. Writes faults.json and faults.md.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import datasets.digits
from benchmarks.fault_damage import cases
from benchmarks.fault_files import KINDS, Kind, digest, prepare, train_config
from benchmarks.fault_lines import CONFIGS, random_line, run_line, train_and_save_often
from benchmarks.measure import resident_mib
from report.tables import markdown_table
from utils.errors import UserError, run_program
from utils.provenance import provenance

MORE_SECONDS, MORE_MIB = 2.0, 500.0
WALL_SECONDS = 60.0  # a process that waits for ever
GOOD = ("equal", "other content", "sentence")
BAD = ("silent damage", "traceback", "signal", "hang", "memory")
OUTCOMES = {
    "equal": "accepted, nothing lost",
    "other content": "accepted: whole, with other content",
    "sentence": "one sentence",
    "silent damage": "accepted with damaged content",
    "traceback": "traceback",
    "signal": "ended by a signal",
    "hang": "hang",
    "memory": "memory",
}


@dataclass
class Ended:
    """How a process of one case ended; seconds of its CPU time, and MiB beyond those of its parent."""

    outcome: str
    text: str = ""
    seconds: float = 0.0
    mib: float = 0.0


def in_process(work: Callable[[], str], after: Callable[[int], object] = lambda pid: None) -> Ended:
    """Call ``work`` in a forked process, which returns its outcome; ``after`` gets the process's number."""
    read, write = os.pipe()
    before = resident_mib()
    if (pid := os.fork()) == 0:
        _work(work, write)
    os.close(write)
    after(pid)
    deadline, content, timed_out = time.monotonic() + WALL_SECONDS, b"", False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            timed_out = True
        time.sleep(0.002)
    while block := os.read(read, 65536):
        content += block
    os.close(read)
    seconds, mib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024 - before
    if timed_out:
        return Ended("hang", "", seconds, mib)
    if os.WIFSIGNALED(status) or not content:
        return Ended("signal", f"status {status}", seconds, mib)
    outcome, text = json.loads(content)
    return Ended(outcome, text, seconds, mib)


def _work(work: Callable[[], str], write: int) -> None:
    """In the child: report what became of the work, and exit without the parent's clean-up."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 30), resource.RLIM_INFINITY))
    outcome, text = "traceback", ""
    try:
        outcome = work()
    except UserError as error:
        outcome, text = "sentence", str(error)
    except OSError as error:  # run_program makes a sentence of it
        outcome, text = "sentence", f"{error.strerror or error}: {error.filename}"
    except SystemExit as exit_:
        outcome, text = "sentence", f"status {exit_.code}"
    except BaseException:
        text = traceback.format_exc()[-2000:]
    os.write(write, json.dumps([outcome, text[-4000:]]).encode("ascii", "backslashreplace"))
    os._exit(0)


def limited(ended: Ended, normal: Ended) -> Ended:
    """A hang or too much memory, if it took so much more than the undamaged file; its figures are then the excess."""
    ended.seconds, ended.mib = ended.seconds - normal.seconds, ended.mib - normal.mib
    if ended.outcome in GOOD and ended.seconds > MORE_SECONDS:
        ended.outcome = "hang"
    if ended.outcome in GOOD and ended.mib > MORE_MIB:
        ended.outcome = "memory"
    return ended


@dataclass
class Counts:
    """Outcomes of each group of cases, and those that must not be."""

    counts: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[dict[str, Any]] = field(default_factory=list)
    most: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "mib": 0.0})

    def add(self, group: str, what: str, ended: Ended) -> None:
        self.counts[group][ended.outcome] += 1
        for name, value in (("seconds", ended.seconds), ("mib", ended.mib)):
            self.most[name] = round(max(self.most[name], value), 2)
        if ended.outcome not in GOOD:
            self.failures.append({"group": group, "case": what, **vars(ended)})
            print(f"{group}: {what}: {ended.outcome}\n{ended.text[-600:]}", flush=True)


def damaged_files(template: Path, seed: int, part: float, counts: Counts) -> None:
    for name, kind in KINDS.items():
        begin, case = time.monotonic(), template.parent / "case"
        normal, expected = _undamaged(template, case, kind)
        for number, (way, damage) in enumerate(cases(kind.form, round(200 * part), round(15 * part), round(80 * part))):
            rng = random.Random(f"{seed} {name} {number}")
            path = _copy(template, case, kind)
            damage(path, rng)
            whole = way in ("rewritten", "replaced")
            ended = in_process(partial(_read, case, kind, expected, whole))
            counts.add(name, f"{way} {number}", limited(ended, normal))
        print(f"{name}: {dict(counts.counts[name])} in {time.monotonic() - begin:.0f} s", flush=True)


def _copy(template: Path, case: Path, kind: Kind) -> Path:
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(template, case, symlinks=True)
    if kind.path.startswith(("stored", "packed", "unpacked")):
        kind.read(case)  # as in every later run, its checksums have been compared
    return (case / kind.path).resolve()


def _undamaged(template: Path, case: Path, kind: Kind) -> tuple[Ended, str]:
    """The cost of reading and using a good file, and the digest of its content."""
    _copy(template, case, kind)
    expected = digest(kind.read(case))
    _copy(template, case, kind)

    def work() -> str:
        assert digest(kind.read(case)) == expected
        kind.use(case)
        return "equal"

    normal = in_process(work)
    assert normal.outcome == "equal", normal
    return normal, expected


def _read(case: Path, kind: Kind, expected: str, whole: bool) -> str:
    """Read the file as the program does; one that is whole is used to the end."""
    found = kind.read(case)
    if digest(found) == expected:
        return "equal"
    if not whole:
        log = case / "Logs" / "run" / "train.log"
        told = log.exists() and "metrics.jsonl was damaged" in log.read_text()
        return "sentence" if told else "silent damage"
    kind.use(case)
    return "other content"


def command_lines(template: Path, seed: int, number: int, counts: Counts) -> None:
    case = template.parent / "case"
    normal = Ended("equal", seconds=5.0, mib=200.0)
    for program, config in CONFIGS.items():
        for index in range(number // 2):
            words = random_line(config, random.Random(f"{seed} {program} {index}"))
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(template, case, symlinks=True)

            def work(program: str = program, words: list[str] = words) -> str:
                os.chdir(case)
                run_line(program, words, case)
                return "equal"

            counts.add(f"command lines of {program}", " ".join(words)[:300], limited(in_process(work), normal))


def kills(folder: Path, seed: int, number: int, counts: Counts) -> None:
    """Kill trainings at random moments, resume them, and compare their weights with an undisturbed run's."""
    rng, group = random.Random(seed), "kills of a training"

    def work(config: Any) -> str:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run_program(lambda: train_and_save_often(config))
        return "equal"

    def weights(place: Path) -> str:
        state = torch.load(place / "checkpoints" / "run" / "last.pt", weights_only=True)
        return digest({key: state[key] for key in ("student", "guide", "optimizer", "average", "objective", "epoch")})

    settings = {"epochs": 3, "limit_train": 64}
    begin = time.monotonic()
    assert in_process(lambda: work(train_config(folder / "whole", **settings))).outcome == "equal"
    duration, expected = time.monotonic() - begin, weights(folder / "whole")
    killed = trial = 0
    while killed < number:
        trial += 1
        place, before = folder / f"trial-{trial}", killed
        for attempt in range(100):
            moment, which = rng.uniform(0, 0.9 * duration), rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            spare = killed >= number or attempt > 5  # then it may finish

            def after(pid: int, moment: float = moment, which: int = which, spare: bool = spare) -> None:
                if not spare:
                    time.sleep(moment)
                    os.kill(pid, which)

            ended = in_process(lambda place=place: work(train_config(place, **settings)), after)
            if ended.outcome == "equal":
                break
            killed += 1
            if (which, ended.outcome) not in (
                (signal.SIGKILL, "signal"),
                (signal.SIGTERM, "sentence"),
                (signal.SIGTERM, "signal"),
            ):
                counts.add(group, f"trial {trial}", ended)
        left = [path for path in place.rglob("*.tmp")]
        same = weights(place) == expected and not left
        outcome = "equal" if same else "silent damage"
        for _ in range(killed - before):
            counts.add(group, f"trial {trial} {left}", Ended(outcome))
        shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the cases")
    parser.add_argument("--quick", dest="scale", action="store_const", const=0.1, help="a tenth of the cases")
    args = parser.parse_args()
    part, counts, begin = args.scale, Counts(), time.monotonic()
    torch.set_num_threads(1)
    datasets.digits.load = cache(datasets.digits.load)  # every case would parse them again
    with tempfile.TemporaryDirectory() as folder:
        (template := Path(folder) / "template").mkdir()
        prepare(template)
        damaged_files(template, args.seed, part, counts)
        files = sum(map(Counter.total, counts.counts.values()))
        command_lines(template, args.seed, round(500 * part), counts)
        kills(Path(folder) / "kills", args.seed, round(50 * part), counts)
    shown = [name for name in OUTCOMES if name in GOOD or any(c[name] for c in counts.counts.values())]
    rows = [[group, *(str(c[name]) for name in shown)] for group, c in counts.counts.items()]
    result = {
        "files": files,
        "scale": part,
        "bit_flips_a_kind": round(200 * part),
        "failures": counts.failures,
        "counts": {group: {name: c[name] for name in OUTCOMES} for group, c in counts.counts.items()},
        "most": counts.most,
        "units": "cases; most: seconds of CPU time and MiB of one case beyond the undamaged file",
        "seed": args.seed,
        "seconds": round(time.monotonic() - begin),
        **provenance(torch.device("cpu")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "faults.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.out / "faults.md").write_text(markdown_table(["cases", *(OUTCOMES[name] for name in shown)], rows) + "\n")
    print((args.out / "faults.md").read_text())
    sys.exit(f"error: {len(counts.failures)} cases ended badly, see {args.out}/faults.json" if counts.failures else 0)


if __name__ == "__main__":
    run_program(main)
