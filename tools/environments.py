"""Virtual environments that hold only what our distributions declare, made without an index and without copies.

Third-party distributions are links into the environment that runs this. Which ones follows from ``Requires-Dist``, from our
wheels on. What no one declares is not there, pip excepted, so that an import that is not declared fails as it does for a user.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import threading
import venv
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path, PurePath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SITE = Path(sysconfig.get_paths()["purelib"])


def declared(requirements: Iterable[str], wheels: Path) -> list[str]:
    """Names of the third-party distributions that the requirements lead to, over our wheels and over each other.

    Raises:
        LookupError: If one of them is not installed here.
    """
    ours = {canonicalize_name(d.name): d for d in metadata.distributions(path=list(map(str, wheels.glob("*.whl"))))}
    found: set[str] = set()
    done: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "the environment") for text in requirements]
    while todo:
        requirement, asker = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            distribution = ours.get(name) or metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise LookupError(f"{asker} requires {requirement}, which is not installed in {SITE}") from None
        if name not in ours:
            found.add(name)
        new = [extra for extra in ("", *sorted(requirement.extras)) if (name, extra) not in done]
        done |= {(name, extra) for extra in new}
        for text in distribution.requires or []:
            wanted = Requirement(text)
            if any(wanted.marker is None or wanted.marker.evaluate({"extra": extra}) for extra in new):
                todo.append((wanted, name))
    return sorted(found)


def linked(names: Sequence[str], folder: Path) -> Path:
    """A folder of links to the files of the named distributions and of no other; made once for each set of names."""
    key = hashlib.sha256("\n".join([str(SITE), *(f"{n} {metadata.version(n)}" for n in names)]).encode()).hexdigest()
    target = folder / key[:12]
    if not target.exists():
        making = folder / f"{key[:12]}.{os.getpid()}.{threading.get_ident()}"
        chosen, others = set[tuple[str, ...]](), set[tuple[str, ...]]()
        for distribution in metadata.distributions(path=[str(SITE)]):
            files = chosen if canonicalize_name(distribution.name) in names else others
            files.update(PurePath(file).parts for file in distribution.files or [])
        others -= chosen  # some hold the files of another, as pytorch-lightning those of lightning-fabric
        making.mkdir(parents=True)
        _link(chosen, others, SITE, making)
        try:
            making.rename(target)
        except OSError:  # another process was faster
            if not target.exists():
                raise
    return target


def _link(chosen: set[tuple[str, ...]], others: set[tuple[str, ...]], source: Path, target: Path) -> None:
    """Links what belongs to the chosen distributions alone, and makes folders of what they share with others."""
    shared = {parts[0] for parts in others}
    for name in {parts[0] for parts in chosen} - {"..", "__pycache__"}:
        if name not in shared:
            (target / name).symlink_to(source / name)
        elif (source / name).is_dir():
            (target / name).mkdir()
            inner, outer = ({parts[1:] for parts in files if parts[0] == name and parts[1:]} for files in (chosen, others))
            _link(inner, outer, source / name, target / name)


class Environment:
    """A virtual environment with some of our distributions; our wheels are the only index that its pip has.

    Args:
        path: Where it is made.
        wheels: The folder of our wheels.
        requirements: What is installed, such as ``"ebm-plugin-pcd[dev]"``. Other requirements, such as ``"pytest"``, are
            linked into it.
        links: Where folders of links are kept for other environments with the same requirements.
    """

    def __init__(self, path: Path, wheels: Path, requirements: Sequence[str], links: Path) -> None:
        self.path, self.bin = path, path / "bin"
        third_party = linked(declared([*requirements, "pip"], wheels), links)
        venv.create(path, with_pip=False, symlinks=True, clear=True)
        (site,) = path.glob("lib/python*/site-packages")
        (site / "third-party.pth").write_text(f"{third_party}\n")
        for script in ("pip", "pytest"):
            (self.bin / script).write_text(f'#!/bin/sh\nexec "{self.bin}/python" -m {script} "$@"\n')
            (self.bin / script).chmod(0o755)
        self.variables = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # What pip would otherwise take from the outside, builds included.
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_NO_BUILD_ISOLATION": "0",  # this is how pip spells "no isolation"
            "PIP_QUIET": "1",
        }
        ours = {path.name.split("-")[0] for path in wheels.glob("*.whl")}
        installed = [text for text in requirements if canonicalize_name(Requirement(text).name).replace("-", "_") in ours]
        if installed:
            self.check("pip", "install", *installed)

    def run(self, *command: str | Path, cwd: Path | None = None, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs a command in the environment, with nothing of this one but the PATH behind its own."""
        return subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env=self.variables,
            cwd=cwd or self.path,
            timeout=seconds,
        )

    def check(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Runs a command that must succeed and returns what it printed."""
        done = self.run(*command, cwd=cwd)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
        return done.stdout
