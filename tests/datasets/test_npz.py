"""Hostile npz files: refused with one sentence before they take memory or time."""

import io
import os
import time
import zipfile

import numpy as np
import pytest

from datasets import load_dataset
from datasets.extra import load_extra
from utils.errors import UserError


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header_only(shape, dtype="|u1"):
    """The header of an array that is not there."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


IMAGES, LABELS = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
GOOD = {
    "x_train": npy(IMAGES), "y_train": npy(LABELS), "x_test": npy(IMAGES), "y_test": npy(LABELS),
    "class_names": npy(np.array(["a", "b"])), "image": npy(IMAGES), "label": npy(LABELS),
}  # fmt: skip


def write(path, **changed):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (GOOD | changed).items():
            file.writestr(f"{name}.npy", content)
    return path


def refused(path, part):
    started = time.process_time()
    for load in (lambda: load_dataset(path.stem, path.parent), lambda: load_extra(path, 0.5, (8, 8, 3), 2)):
        with pytest.raises(UserError) as caught:
            load()
        assert part in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - started < 2


def test_good_ones_load(tmp_path):
    path = write(tmp_path / "mine.npz")
    assert len(load_dataset("mine", tmp_path).x_train) == 4
    assert load_extra(path, 0.5, (8, 8, 3), 2).images.shape == (4, 8, 8, 3)


@pytest.mark.parametrize("shape", [(2**40, 8, 8, 3), (4, 8, 8, 2**50), (2**62, 2**62)])
def test_a_size_that_is_not_there(tmp_path, shape):
    refused(write(tmp_path / "mine.npz", x_train=header_only(shape), image=header_only(shape)), "holds no plain array")


def test_a_bomb_is_not_unpacked(tmp_path):
    zeros = npy(np.zeros((50_000, 8, 8 * 8, 3), np.uint8))
    path = write(tmp_path / "mine.npz", x_train=zeros * 2, image=zeros * 2)
    refused(path, "holds no plain array")
    bomb = npy(np.zeros((70_000, 8, 64, 3), np.uint8))
    refused(write(tmp_path / "mine.npz", x_train=bomb, image=bomb), "unpacks to 102 MiB of nearly nothing")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.npz"]


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "mine.npz")
    refused(tmp_path / "mine.npz", "it is no regular file")
