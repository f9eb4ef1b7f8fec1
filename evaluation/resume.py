"""Where the processes of an evaluation save their results, and how the same command resumes from them."""

from pathlib import Path
from typing import Any

from evaluation.results import PerImageResults, differences
from utils.distributed import ProcessGroup
from utils.errors import UserError


def state_path(folder: Path, rank: int) -> Path:
    """The state file of a process."""
    return folder / f"autoattack.state{f'-{rank}' if rank else ''}.npz"


def clear(folder: Path) -> None:
    """Remove the state files, including those that a kill left half written."""
    for path in folder.glob("autoattack.state*"):
        path.unlink(missing_ok=True)


def resume(
    folder: Path, fingerprint: dict[str, Any], empty: PerImageResults, group: ProcessGroup
) -> PerImageResults | None:
    """Return the merged results of all processes of an interrupted evaluation, however many they were; None if none.

    Args:
        empty: results of this evaluation before anything has run; those in the files must have its shapes.

    Raises:
        UserError: a state file is damaged, or of an evaluation with another fingerprint; or the processes' differ.
    """
    for rank, theirs in enumerate(group.gather(fingerprint)):
        if differ := differences(theirs, fingerprint):
            raise UserError(f"process {rank} has other files or settings ({differ}): give all machines the same")
    # One process of each machine reads, whether or not the machines share the folder.
    paths = sorted(folder.glob("autoattack.state*.npz")) if group.local_rank == 0 else []
    here = _merged([PerImageResults.load(path, fingerprint, empty) for path in paths if path.is_file()])
    everywhere = _merged([
        PerImageResults.load(data, fingerprint, empty, "the state of another machine")
        for data in group.gather_bytes(here.to_bytes(fingerprint) if here else b"")
        if data
    ])  # fmt: skip
    data = group.broadcast_bytes(everywhere.to_bytes(fingerprint) if everywhere else b"")
    return PerImageResults.load(data, fingerprint, empty, "the state of rank 0") if data else None


def gather_results(results: PerImageResults, fingerprint: dict[str, Any], group: ProcessGroup) -> None:
    """At rank 0 merge the results of all other processes into its own."""
    if group.size > 1:
        for data in group.gather_bytes(results.to_bytes(fingerprint))[1:]:
            results.merge(PerImageResults.load(data, fingerprint, results, "the result of another process"))


def _merged(found: list[PerImageResults]) -> PerImageResults | None:
    for other in found[1:]:
        found[0].merge(other)
    return found[0] if found else None
