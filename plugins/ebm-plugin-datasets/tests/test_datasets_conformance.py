"""Every rule of the conformance kit; MNIST is read from a few images that are written here."""

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np

import ebmcore.testing


def mnist_directory() -> Path:
    """A directory with a few images in the form of MNIST; it is removed when Python ends."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.savez(directory / "mnist.npz", x_train=grey, x_test=grey[:2])
    return directory


OPTIONS = {"mnist": {"directory": mnist_directory()}}

test_conformance = ebmcore.testing.conformance("ebm-plugin-datasets", options=OPTIONS)
