"""Extra training images, such as generated ones: the npz form in which the field shares them, larger than memory."""

import struct
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.npz import check_members, read_header
from utils.errors import UserError
from utils.files import in_turn, write_atomically

LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip member: ends with the lengths of its name and of its extra field
BLOCK = 1 << 24  # labels or bytes checked at a time
Form = tuple[tuple[int, ...], np.dtype]


@dataclass(frozen=True)
class ExtraData:
    """Images to mix into every batch.

    Attributes:
        images: (M, H, W, 3) uint8; labels: (M,) integers; both memory-mapped: only what a batch needs is read.
        fraction: of every batch, in (0, 1).
        fingerprint: the checksums that the npz file holds of them, which their content was compared with.
    """

    images: np.ndarray
    labels: np.ndarray
    fraction: float
    fingerprint: str

    def count(self, batch_size: int) -> int:
        """How many images of a batch are extra ones."""
        return round(self.fraction * batch_size)


def load_extra(path: str | Path, fraction: float, image_shape: tuple[int, ...], num_classes: int) -> ExtraData:
    """Open an npz file with the keys ``image`` (M, H, W, 3) uint8 and ``label`` (M,).

    A member that np.savez wrote is memory-mapped where it lies. One that np.savez_compressed wrote is unpacked first,
    once, into a .npy file beside the npz file.

    The content is compared with the checksums of the npz file once; ``FILE.checked`` beside it holds what was compared,
    and the size and times of the file then.

    Args:
        fraction: of every batch, in (0, 1).
        image_shape: (H, W, 3) of the data set that they are mixed into; num_classes: its classes.

    Raises:
        UserError: no such file, a truncated one, another image size or form, no images, labels outside the classes, or
            no room to unpack it.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        with zipfile.ZipFile(path) as file:
            members = {}
            for key in ("image", "label"):
                if f"{key}.npy" not in file.namelist():
                    raise UserError(f"--extra-data {path} has no key {key!r}: it must hold image and label")
                members[key] = file.getinfo(f"{key}.npy")
            _check_form(path, *check_members(file, tuple(members)), tuple(image_shape))
            images, labels = (_open(path, file, info) for info in members.values())
    except FileNotFoundError as error:
        raise UserError(f"--extra-data {path}: there is no such file") from error
    except UserError:
        raise
    except Exception as error:  # a damaged file makes zipfile, zlib, struct and numpy raise nearly anything
        raise UserError(f"--extra-data {path} is not a readable npz file ({error}): write or copy it again") from error
    blocks = [labels[i : i + BLOCK] for i in range(0, len(labels), BLOCK)]
    low, high = min(int(b.min()) for b in blocks), max(int(b.max()) for b in blocks)
    if low < 0 or high >= num_classes:
        raise UserError(f"--extra-data {path}: labels run from {low} to {high}, outside the {num_classes} classes")
    fingerprint = "-".join(f"{info.CRC:08x}" for info in members.values())
    return ExtraData(images, labels, fraction, fingerprint)


def _check_form(path: Path, image: Form, label: Form, image_shape: tuple[int, ...]) -> None:
    """Raises: UserError: shapes or types are not what they must be."""
    (images, image_type), (labels, label_type) = image, label
    where = f"--extra-data {path}"
    if image_type != np.uint8 or len(images) != 4 or not np.issubdtype(label_type, np.integer) or len(labels) != 1:
        raise UserError(
            f"{where}: image is {image_type} {images} and label {label_type} {labels}, "
            "they must be uint8 (M, H, W, 3) and integers (M,)"
        )
    if images[0] == 0 or images[0] != labels[0]:
        raise UserError(f"{where}: {images[0]} images and {labels[0]} labels, there must be one label an image")
    if images[1:] != image_shape:
        raise UserError(f"{where}: images are {images[1:]}, those of the data set {image_shape}")


def _open(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One member as a read-only memory map."""
    if info.compress_type != zipfile.ZIP_STORED:
        return np.load(_unpack(path, file, info), mmap_mode="r", allow_pickle=False)
    file.open(info).close()  # compares the two headers of the member
    with open(path, "rb") as raw:
        raw.seek(info.header_offset)
        begin = info.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size)))
        raw.seek(begin)
        shape, fortran, dtype, header = read_header(raw, info)
    if not has_checksum(path, info.CRC, begin, info.file_size):
        raise ValueError(f"the checksum of {info.filename} is wrong")
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing to map
    return np.memmap(path, dtype, "r", begin + header, shape, order="F" if fortran else "C")


def _unpack(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Path:
    """The .npy file of a compressed member, written if it is not there yet; its name holds the member's checksum."""
    target = path.with_name(f"{path.stem}-{Path(info.filename).stem}-{info.CRC:08x}.npy")

    def unpack(unpacked: BinaryIO) -> None:
        with file.open(info) as packed:
            while block := packed.read(BLOCK):
                unpacked.write(block)

    def is_there() -> bool:
        return target.is_file() and has_checksum(target, info.CRC, 0, info.file_size)

    if is_there():
        return target
    try:
        with in_turn(path.with_name(f"{path.name}.lock")):  # of several processes one unpacks it
            if not is_there():
                write_atomically(target, unpack)
    except UserError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise UserError(
            f"--extra-data {path} is compressed and cannot be unpacked beside itself ({reason}): make "
            "room there, or write it with np.savez, which needs no unpacking"
        ) from error
    return target


def has_checksum(path: Path, crc: int, begin: int, size: int) -> bool:
    """Whether these bytes of a file have this CRC-32.

    They are read once: ``FILE.checked`` notes it together with the file's size and times, which change when it is
    written to. Where the folder cannot be written, they are read each time.
    """
    stat = path.stat()
    version = f"size {stat.st_size} modified {stat.st_mtime_ns} changed {stat.st_ctime_ns}"
    line = f"{version} crc32 {crc:08x} of {size} bytes at {begin}"
    notes = path.with_name(f"{path.name}.checked")
    known = notes.read_text(errors="replace").splitlines() if notes.is_file() else []
    if line in known:
        return True
    if _crc32(path, begin, size) != crc:
        return False
    known = [other for other in known if other.startswith(f"{version} ")]
    with suppress(UserError):
        write_atomically(notes, lambda file: file.write("".join(f"{each}\n" for each in [*known, line]).encode()))
    return True


def _crc32(path: Path, begin: int, size: int) -> int | None:
    """CRC-32 of the bytes; None if there are fewer."""
    crc = 0
    with open(path, "rb") as file:
        file.seek(begin)
        while size > 0 and (block := file.read(min(BLOCK, size))):
            crc, size = zlib.crc32(block, crc), size - len(block)
    return None if size else crc
