"""MNIST from the files that are in use."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
import torch

from ebm_plugin_datasets.mnist import Mnist
from ebmcore.errors import UsageError

GREY = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
EXPECTED = torch.from_numpy(GREY > 127.5).float().unsqueeze(1)


def idx(images):
    return struct.pack(">4I", 0x803, len(images), 28, 28) + images.tobytes()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def damaged(content, at):
    return content[:at] + bytes(255 - byte for byte in content[at : at + 50]) + content[at + 50 :]


GZIPPED = gzip.compress(idx(GREY // 64))
ARCHIVE = npz(x_train=GREY, x_test=GREY)
OBJECTS = npz(x_train=np.array([None, "an image"], dtype=object), x_test=GREY)


def write(directory, how):
    if how == "npz":
        np.savez(directory / "mnist.npz", x_train=GREY, x_test=GREY[:3], y_train=np.zeros(7))
        return
    if how == "bits":
        bits = np.packbits((GREY > 127.5).reshape(7, 784), axis=1)
        np.savez_compressed(directory / "bits.npz", tr=bits, te=bits[:3])
        return
    for part, images in (("train", GREY), ("t10k", GREY[:3])):
        if how == "gzipped":
            (directory / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        else:
            (directory / f"{part}-images{how}idx3-ubyte").write_bytes(idx(images))


@pytest.mark.parametrize("how", ["-", ".", "gzipped", "npz", "bits"])
def test_file_formats_give_same_pixels(how, tmp_path):
    """Each kind of file gives the same pixels."""
    write(tmp_path, how)
    data = Mnist(tmp_path)
    assert torch.equal(data.train, EXPECTED)
    assert torch.equal(data.test, EXPECTED[:3])
    assert (data.shape, data.state_space) == ((1, 28, 28), "binary")


def test_grey_levels_are_scaled(tmp_path):
    write(tmp_path, "npz")
    data = Mnist(str(tmp_path), binary=False)
    torch.testing.assert_close(data.train[:, 0], torch.from_numpy(GREY).float() / 255 * 2 - 1)
    assert data.state_space == "continuous"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", r"holds no MNIST: put train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz there"),
        ("train-images-idx3-ubyte", b"\x00" * 20, "is not a whole idx file"),
        ("train-images-idx3-ubyte", idx(GREY)[:-1], "is not a whole idx file"),
        ("train-images-idx3-ubyte.gz", b"nothing", "cannot be read"),
        ("train-images-idx3-ubyte.gz", GZIPPED[:-100], "idx3-ubyte.gz cannot be read .*: get it again"),
        ("train-images-idx3-ubyte.gz", damaged(GZIPPED, 50), "idx3-ubyte.gz cannot be read .*: get it again"),
        ("train-images-idx3-ubyte", idx(GREY[:0]), "idx3-ubyte is an idx file of no images: get it again"),
        ("mnist.npz", b"nothing", "cannot be read"),
        ("mnist.npz", b"", r"mnist\.npz cannot be read .*: get it again, or move it away"),
        ("mnist.npz", ARCHIVE[:-100], r"mnist\.npz cannot be read .*: get it again, or move it away"),
        ("mnist.npz", damaged(ARCHIVE, 1000), r"x_train in .*mnist\.npz cannot be read .*: get the file"),
        ("mnist.npz", damaged(ARCHIVE, 100), r"x_train in .*mnist\.npz cannot be read .*: get the file"),
        ("mnist.npz", OBJECTS, r"x_train in .*mnist\.npz .*Object arrays.* from arrays of bytes"),
        ("mnist.npz", npy(GREY), r"mnist\.npz is a single array, not an archive of several: write it with numpy\.savez"),
    ],
)
def test_damaged_files_raise_with_advice(name, content, message, tmp_path):
    """Files that are not MNIST raise an error with advice."""
    if name and name.startswith("train"):
        write(tmp_path, "-")
        (tmp_path / "train-images-idx3-ubyte").unlink()
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        Mnist(tmp_path)


def test_foreign_archive_raises(tmp_path):
    """An archive of something else raises an error."""
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((3, 5)), x_test=np.zeros((3, 5)))
    with pytest.raises(UsageError, match=r"holds float64 \(3, 5\), not images"):
        Mnist(tmp_path)


def test_missing_directory_raises(tmp_path):
    """A directory that is not there raises an error."""
    with pytest.raises(UsageError, match="holds no MNIST"):
        Mnist(tmp_path / "nothing")


def test_bits_have_no_grey_levels(tmp_path):
    write(tmp_path, "bits")
    with pytest.raises(UsageError, match="have no grey levels: leave binary on"):
        Mnist(tmp_path, binary=False)
