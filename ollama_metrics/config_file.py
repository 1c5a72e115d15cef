"""Reads a file of settings: lines of NAME=VALUE, as in a file that systemd's EnvironmentFile= names.

The agent reads it itself, for the environment of a process stays as it was when systemd started it,
and a reload is to bring what the file says by then.
"""

from __future__ import annotations

import os
import stat

from .config import FILE_VARIABLES
from .errors import ConfigError

_LARGEST = 1 << 16


def read_config_file(path: str, source: str = "--config") -> dict[str, str]:
    """The values by variable name; `source` is the option or variable that gave the path.

    Raises ConfigError, which names the file and the line.
    """
    try:
        # Non-blocking, for a FIFO that nobody writes to would never open.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # What a FIFO or a terminal has to say is not there a second time, when a reload asks.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(source, path, "it is no regular file; give the path of one")
            content = os.read(fd, _LARGEST + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(
            source,
            path,
            f"it cannot be read ({error.strerror}); give the path of a file of settings",
        ) from None
    except ValueError:
        raise ConfigError(source, path, "give the path of a file of settings") from None
    if len(content) > _LARGEST:
        raise ConfigError(source, path, f"give the path of a file of at most {_LARGEST} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(source, path, "it is not UTF-8; give the path of a text file") from None
    return parse_config_file(text, path)


def parse_config_file(text: str, name: str) -> dict[str, str]:
    """The values in `text`, the content of the file `name`.

    Empty lines and those that begin with # or ; are passed over. Quotes around a value, single or
    double, are taken off; nothing else has a meaning within it.

    Raises ConfigError.
    """
    values: dict[str, str] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        where = f"{name}, line {number}"
        variable, equals, value = line.partition("=")
        variable, value = variable.rstrip(), value.strip()
        if not equals or not (variable + value).isprintable():
            raise ConfigError(where, line, "give NAME=VALUE")
        if variable not in FILE_VARIABLES:
            raise ConfigError(where, variable, f"the settings are {', '.join(FILE_VARIABLES)}")
        if variable in values:
            raise ConfigError(where, variable, "it is given twice; give it once")
        if value[:1] in ("'", '"'):
            if len(value) < 2 or value[-1] != value[0]:
                raise ConfigError(where, value, "close the quote at the end of the line")
            value = value[1:-1]
        values[variable] = value
    return values
