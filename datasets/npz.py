"""Arrays in npz files that strangers made: each member is looked at before it is unpacked."""

import math
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LARGE, LARGEST_RATIO = 100 << 20, 200  # bytes, and how many times a larger array of images may have been compressed


def read_header(raw: BinaryIO, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read the header of a .npy member, from a stream at its beginning.

    Returns:
        Shape, whether in Fortran order, dtype, and the length of the header in bytes.

    Raises:
        ValueError: the member holds no plain array, or is not as long as its header says.
    """
    begin = raw.tell()
    shape, fortran, dtype = READ_HEADER[np.lib.format.read_magic(raw)](raw)
    header = raw.tell() - begin
    if dtype.hasobject:
        raise ValueError(
            f"{info.filename} holds Python objects: save a plain array, of text numpy.array(names, dtype=str)"
        )
    if header + dtype.itemsize * math.prod(shape) != info.file_size:
        raise ValueError(f"{info.filename} holds no plain array")
    if info.file_size > LARGE and info.file_size > LARGEST_RATIO * info.compress_size:
        raise ValueError(f"{info.filename} unpacks to {info.file_size >> 20} MiB of nearly nothing")
    return shape, fortran, dtype, header


def check_members(file: zipfile.ZipFile, names: Sequence[str]) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each of these members.

    Raises:
        ValueError: one holds no plain array, or the file's two lists of members differ.
    """
    for info in file.infolist():
        file.open(info).close()
    found = []
    for name in names:
        info = file.getinfo(f"{name}.npy")
        with file.open(info) as raw:
            shape, _, dtype, _ = read_header(raw, info)
            found.append((shape, dtype))
    return found
