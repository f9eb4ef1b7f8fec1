"""Where the processes of an evaluation keep their outcomes, and how the same command goes on with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluation.autoattack.attacked_model import AttackedModel, fastest_batch
from evaluation.results import PerImageResults, differences, read_state
from utils.distributed import Team
from utils.errors import UserError

T = TypeVar("T")


def state_path(folder: Path, rank: int) -> Path:
    """Where a process keeps its outcomes."""
    return folder / f"autoattack.state{f'-{rank}' if rank else ''}.npz"


def state_files(folder: Path) -> list[Path]:
    """What the processes of an interrupted evaluation, however many they were, left on this machine."""
    return sorted(folder.glob("autoattack.state*.npz"))


def clear(folder: Path) -> None:
    """Remove the state files, also what a kill left half written."""
    for path in folder.glob("autoattack.state*"):
        path.unlink(missing_ok=True)


def resume(folder: Path, fingerprint: dict[str, Any], team: Team) -> PerImageResults | None:
    """The outcomes of all processes of an interrupted evaluation; None if there was none.

    Raises:
        UserError: a state file is damaged, or of an evaluation with another fingerprint; or the processes' differ.
    """
    for rank, theirs in enumerate(team.gather(fingerprint)):
        if differ := differences(theirs, fingerprint):
            raise UserError(f"process {rank} has other files or settings ({differ}): give all machines the same")
    found = _from_all_machines(folder, lambda path: PerImageResults.load(path, fingerprint), team)
    for other in found[1:]:
        found[0].merge(other)
    return team.broadcast(found[0] if found else None)


def choose_batch_size(queries: AttackedModel, images: np.ndarray, folder: Path, team: Team) -> int:
    """That of the evaluation with which ``resume`` would go on, else what is fastest on rank 0's device and leaves each
    of several processes two chunks.

    Args:
        images: (N, H, W, C), all that are to be attacked.

    Raises:
        UserError: a state file is damaged.
    """
    found = _from_all_machines(folder, lambda path: int(read_state(path)[1].batch_size), team)
    if team.rank == 0 and not found:
        n, height, width, channels = images.shape
        most = n if team.size == 1 else -(-n // (2 * team.size))
        found.append(fastest_batch(queries, (channels, height, width), most))
    return team.broadcast(found[0] if found else None)


def _from_all_machines(folder: Path, read: Callable[[Path], T], team: Team) -> list[T]:
    """At rank 0 what every state file holds, whether or not the machines share the folder; elsewhere nothing."""
    here = [read(path) for path in state_files(folder)] if team.local_rank == 0 else []
    return [value for machine in team.gather(here) for value in machine]


@contextmanager
def only_evaluation(folder: Path) -> Iterator[None]:
    """Raises: UserError: another evaluation is running in this folder."""
    path = folder / "autoattack.lock"
    with open(path, "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another evaluation is running in {folder}: wait for it, or use another --mark") from None
        except (ImportError, OSError):
            pass  # a platform or a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
