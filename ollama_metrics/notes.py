"""Small files in the state directory: read whatever lies there, written whole or not at all.

The folder is the service's, and root may write there, too (`ollama-metrics drain`): no link is followed.
"""

from __future__ import annotations

import contextlib
import os
import stat

_MOST_BYTES = 4096


def read_note(path: str) -> str:
    """The first bytes of a regular file, whatever else may lie there under its name.

    Raises OSError, and ValueError where it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no file")
        return os.read(fd, _MOST_BYTES).decode("utf-8", "replace").strip()
    finally:
        os.close(fd)


def write_note(path: str, text: str) -> None:
    """Put `text` under `path`, for everybody to read. Raises OSError; nothing else is left behind then."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    scratch = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(scratch)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(scratch, flags, 0o644)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)  # whatever the umask of who writes
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(fd)
        os.replace(scratch, path)
        _sync_folder(folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


def _sync_folder(folder: str) -> None:
    """Have the new name outlive a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
