"""A run's directory: it has one owner, and what lies in it is read and written without following a link.

A run may come from somebody else, so its files are not trusted: a link, a named pipe or a device is refused, a new file gets a
name that nobody can have taken before, and of a file no more is read than its kind may hold.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from ebmcore.errors import UsageError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
CONFIG = "config.yaml"  # of a run that the command line has started
_WRITING = ".writing"  # ends the names of what is not complete
_NAMING = 0.2  # seconds that a new owner may need to write its name
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # to open a named pipe would wait for its other end


def open_to_read(path: Path) -> BufferedReader:
    """Opens a regular file of the run to read bytes.

    Raises:
        UsageError: If it is a link or no regular file.
        OSError: If it cannot be opened.
    """
    file: BufferedReader = _open(path, os.O_RDONLY, "rb")
    return file


def read_text(path: Path, limit: int) -> str:
    """Reads a regular file of at most ``limit`` bytes.

    Raises:
        UsageError: If it is a link or no regular file, or holds more, or is not UTF-8.
        OSError: If it cannot be read.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit) if size <= limit else b""
    if size > limit:
        raise UsageError(f"{path} is larger than the {limit:,} bytes that it may have")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all; a link of that name is replaced, not followed."""
    with writing(path) as file:
        file.write(text.encode())


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Context with a file that gets the name ``path`` when it is complete; a link of that name is replaced, not followed."""
    temporary = temporary_name(path)
    try:
        with naming(path), temporary.open("xb") as file:  # exclusive: it opens nothing that is there, and follows no link
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context whose errors name the file: that of a full disk comes from writing, which knows no name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def open_to_append(path: Path) -> IO[str]:
    """Opens a file of the run to append text; it is made if it is missing."""
    file: IO[str] = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "a", newline="")
    return file


def temporary_name(path: Path) -> Path:
    """Returns a hidden name beside ``path`` that nobody can guess; `owned` removes what was left under such names."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_WRITING}")


def check_file(path: Path) -> None:
    """Raises `UsageError` if ``path`` is there and is a link, symbolic or hard, a named pipe, a device or a directory."""
    _refuse_unless(stat.S_ISREG, path, "a regular file")


def check_directory(path: Path) -> None:
    """Raises `UsageError` if ``path`` is there and is a link or no directory."""
    _refuse_unless(stat.S_ISDIR, path, "a directory")


@contextmanager
def owned(run: Path, *, new: bool) -> Iterator[None]:
    """Context in which this process owns the run in that directory: no other one can start or resume a run there.

    The owner holds a lock (``flock``) on the file ``.lock``, which the system releases when the process ends, however it ends.
    Linux passes such locks on to the server of a network file system. Where the file system knows no locks, a warning says so.

    Args:
        run: The directory; made if it is missing.
        new: Whether a new run starts there: it must hold nothing.

    Raises:
        UsageError: If another process owns it, or if a new run would find something there.
    """
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} exists and is not a directory: choose another one (--out)")
    if run.is_symlink() and not run.exists():
        raise UsageError(f"{run} is a link to nothing: choose another directory (--out)")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the directory {run} cannot be made ({error.strerror}): choose another one (--out)") from error
    if new:
        _refuse_content(run)  # before the lock is added to it
    with _open(run / LOCK, os.O_RDWR | os.O_CREAT, "r+", errors="replace") as file:
        _lock(file, run)
        check_directory(run / "checkpoints")
        for left in (*run.glob(f".*{_WRITING}"), *run.glob(f"checkpoints/.*{_WRITING}")):
            remove(left)
        if new:
            _refuse_content(run)  # again, as another run may have ended since
        yield


def remove(path: Path) -> None:
    """Removes a file, a link (not what it points to), or a directory with all that it holds."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except RecursionError as error:
        raise UsageError(f"{path} holds directories too deep within each other: remove it") from error


def _refuse_content(run: Path) -> None:
    held = sorted(path.name for path in run.iterdir() if path.name != LOCK and not path.name.endswith(_WRITING))
    if held:
        by_command, started = (run / CONFIG).is_file(), (run / "checkpoints").is_dir()
        how = f"'ebmcore train --resume {run}'" if by_command else "fit(..., resume=True)" if started else ""
        resume = f", or resume it with {how}" if how else ""
        raise UsageError(f"{run} holds {', '.join(held[:3])}: choose another directory (--out){resume}")


def _lock(file: IO[str], run: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, "no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_NAMING)  # one that has locked the file in this moment has yet to write its name
        owner = file.read(200).strip() or "another process"
        raise UsageError(f"{run} is in use by {owner}: wait until it ends, or stop it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        warnings.warn(f"the file system of {run} has no locks: start no second process there", UserWarning, stacklevel=4)
    with naming(run / LOCK):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _open(path: Path, flags: int, mode: str, **options: Any) -> Any:
    check_file(path)
    # Without following: it may have become a link since.
    return os.fdopen(os.open(path, flags | _NO_FOLLOW | _NO_WAIT, 0o666), mode, **options)


def _refuse_unless(is_right: Any, path: Path, wanted: str) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise UsageError(f"{path} is a link, which is not followed: put {wanted} in its place")
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:  # the file has another name, maybe outside the run
        raise UsageError(f"{path} is a hard link, which is not followed: put a copy in its place")
    if not is_right(found.st_mode):
        raise UsageError(f"{path} is not {wanted}: move it away")
