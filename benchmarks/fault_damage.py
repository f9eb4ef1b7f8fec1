"""Ways to damage a file. Used by ``benchmarks.faults``."""

import copy
import functools
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import add_checksum, remove_checksum

Damage = Callable[[Path, random.Random], None]


def flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def overwrite_bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((2, 8, 64))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def cut_or_repeat(path: Path, rng: random.Random) -> None:
    """Leave out a piece, or write one twice."""
    content = path.read_bytes()
    a, b = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
    path.write_bytes(content[:a] + content[b:] if rng.random() < 0.5 else content[:b] + content[a:])


DAMAGE: dict[str, Damage] = {"truncated": truncate, "bytes": overwrite_bytes, "pieces": cut_or_repeat}


class Code:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("code-was-run",)


def odd_values(rng: random.Random, old: Any) -> Any:
    """Another value in the place of one: of another type, out of range, or hostile."""
    if isinstance(old, np.ndarray):
        return rng.choice(_odd_arrays(old))
    odd = [
        None, "text", "", -1, 0, 10**30, 2**63, 1.5, float("nan"), float("inf"), True, [], {}, [1], {"a": 1}, "\ud800",
    ]  # fmt: skip
    if isinstance(old, torch.Tensor):
        odd += 2 * _odd_tensors(old)
    elif isinstance(old, (int, float)) and not isinstance(old, bool):
        odd += [-old, old + 1, old * 1000, str(old)]
    elif isinstance(old, str):
        odd += [old.upper(), old * 1000, f"{old}/../..", f"{old}\n\x00`", "wrn-100000-1", "wrn-34-64", "9" * 5000]
    return copy.deepcopy(rng.choice(odd))


def _odd_tensors(old: torch.Tensor) -> list[torch.Tensor]:
    flat, nan = old.flatten(), torch.full_like(old.float(), float("nan"))
    expanded = torch.zeros(1).expand(max(old.numel(), 1)).reshape(old.shape)
    return [
        torch.zeros(0), torch.zeros(()), flat[:-1].clone(), flat.clone(), old.double(), old.to(torch.complex64),
        old.int(), old.bool(), old.half(),
        old[None].clone(), old.float() * 1e30, nan, expanded, torch.zeros(1).expand(10**6),
        torch.empty(10**9, 0), torch.empty(3, device="meta"), torch.zeros(2, 2).to_sparse(),
    ]  # fmt: skip


def _odd_arrays(old: np.ndarray) -> list[np.ndarray]:
    odd = [
        old.astype("S16"), old.astype("U40"), old[None], old.T, old.ravel()[:-1], np.zeros(0), np.array(None),
        np.array([object()]), np.array("\ud800"), np.full(old.shape, "\ud800"), np.zeros(2**20, np.complex64),
        np.asfortranarray(old), np.zeros((0, *old.shape[1:]), old.dtype),
    ]  # fmt: skip
    if old.dtype.kind in "iufb":
        odd += [old.astype(np.float64), np.full(old.shape, -7), np.full(old.shape, 2**62), np.full(old.shape, np.nan)]
    return odd


def mutate(content: Any, rng: random.Random) -> Any:
    """Another content: a random entry is replaced, removed, renamed or added."""
    if not isinstance(content, (dict, list)) or not content or rng.random() < 0.03:
        return odd_values(rng, content)
    key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
    child = content[key]
    if isinstance(child, (dict, list)) and child and rng.random() < 0.85:
        content[key] = mutate(child, rng)
    elif rng.random() < 0.7:
        content[key] = odd_values(rng, child)
    elif isinstance(content, dict):
        value = content.pop(key)
        if rng.random() < 0.5:
            content[
                rng.choice((f"{key}x", 3, f"block1.layer.{'9' * rng.choice((2, 5000))}.bn1.weight", f"module.{key}"))
            ] = value
    else:
        del content[key]
    return content


def write_mutated(form: str) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        if form == "torch":
            torch.save(mutate(torch.load(path, weights_only=True), rng), path)
        elif form == "npz":
            with np.load(path) as file:
                arrays = mutate(dict(file), rng)
            arrays = arrays if isinstance(arrays, dict) else {"x": arrays}
            with open(path, "wb") as file:
                rng.choice((np.savez, np.savez_compressed))(file, **{str(k): v for k, v in arrays.items()})
        elif form == "json":
            content = mutate(remove_checksum(json.loads(path.read_text())), rng)
            path.write_text(json.dumps(add_checksum(content) if isinstance(content, dict) else content))
        elif form == "lines":
            lines = [remove_checksum(json.loads(line)) for line in path.read_text().splitlines()]
            lines = mutate(lines, rng)
            path.write_text(
                "".join(json.dumps(line) + "\n" for line in (lines if isinstance(lines, list) else [lines]))
            )
        else:
            overwrite_bytes(path, rng)

    return damage


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


@functools.cache
def _bomb() -> bytes:
    """A zip file of 4 MB whose members unpack to 4 GiB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name in ("archive/data.pkl", "image.npy", "x_train.npy", "fingerprint.npy"):
            with file.open(name, "w", force_zip64=True) as member:
                for _ in range(64):
                    member.write(bytes(1 << 24))
    return stream.getvalue()


def _huge_array(path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 16, 16, 3)})
    with zipfile.ZipFile(path, "w") as file:
        for name in ("image", "label", "x_train", "y_train", "x_test", "y_test", "fingerprint", "clean_prediction"):
            file.writestr(f"{name}.npy", stream.getvalue())


def _code_in_npz(path: Path) -> None:
    arrays = {name: np.array([Code()], object) for name in ("image", "label", "x_train", "y_train", "fingerprint")}
    with open(path, "wb") as file:
        np.savez(file, **arrays)


STRANGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "a page of HTML": lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Code())),
    "a torch file with code": lambda path: torch.save({"student": Code(), "fc.weight": Code()}, path),
    "an npz with code": _code_in_npz,
    "a zip that unpacks to 4 GiB": lambda path: path.write_bytes(_bomb()),
    "a header of 2**50 bytes": _huge_array,
    "nested lists": lambda path: path.write_text("[" * 100_000),
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(10_000)),
}


def cases(form: str, flips: int, others: int, mutations: int) -> Iterator[tuple[str, Damage]]:
    """Every way to damage a file of this kind, with the name of its group."""
    for make in STRANGE.values():
        yield "replaced", lambda path, rng, make=make: _replace(path, make)
    for _ in range(flips):
        yield "bit flip", flip_a_bit
    for _ in range(others):
        yield from DAMAGE.items()
    for _ in range(mutations if form != "raw" else 0):
        yield "rewritten", write_mutated(form)
