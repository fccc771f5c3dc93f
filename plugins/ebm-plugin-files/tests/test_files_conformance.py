"""Every rule of the conformance kit, on small files that are written here."""

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import ebmcore.testing


def examples() -> Path:
    """A directory with a table, two folders of images and an alignment; it is removed when Python ends."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    random = np.random.default_rng(0)
    np.savetxt(directory / "table.csv", random.normal(size=(20, 3)), delimiter=",", header="a,b,c", comments="")
    for name in ("cats", "dogs"):
        (directory / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(
                directory / "images" / name / f"{i}.png"
            )
    sequences = ("".join(random.choice(list("-ACDE"), 6)) for _ in range(10))
    (directory / "family.fasta").write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(sequences)))
    return directory


EXAMPLES = examples()
OPTIONS = {
    "array": {"path": EXAMPLES / "table.csv", "scale": "standard"},
    "images": {"path": EXAMPLES / "images"},
    "sequences": {"path": EXAMPLES / "family.fasta"},
}

test_conformance = ebmcore.testing.conformance("ebm-plugin-files", options=OPTIONS)
