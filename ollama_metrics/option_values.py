"""The text of an option, turned into its value; pure. Each function raises ValueError for what is not acceptable."""

from __future__ import annotations

import math
import socket
from dataclasses import replace

from .expectation import MOST_GPUS
from .frozen import dataclass
from .ollama_url import ANY_ADDRESS, OllamaUrl, parse_url
from .weight import COEFFICIENTS, DEFAULT, Weighting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable, Optional, Union

_UNIT_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:_.@\\-"
_UNIT_SUFFIXES = (
    *("service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer"),
    *("slice", "scope"),
)
_LONGEST_UNIT = 255


@dataclass(frozen=True)
class Address:
    """Where to listen: a host name or address (IPv6 without brackets) and a port, 0 for any free one."""

    host: str
    port: int

    @property
    def from_here(self) -> Address:
        """Where this host itself reaches who listens there: on any address is on loopback, too."""
        return Address(ANY_ADDRESS.get(self.host, self.host), self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`ADDR:PORT`, `[IPv6]:PORT` or `NAME:PORT`. Raises ValueError."""
    host, colon, port = text.strip().rpartition(":")
    if (
        not colon
        or not host
        or not (port.isascii() and port.isdigit())
        or len(port) > 5
        or int(port) > 65535
    ):
        raise ValueError(text)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError(text)
    elif ":" in host:
        raise ValueError(text)
    if not host or not host.isprintable() or any(character in host for character in " []/@"):
        raise ValueError(text)
    if host.replace(".", "").isdigit() and not _is_ipv4(host):
        raise ValueError(text)
    return Address(host, int(port))


def _is_ipv4(host: str) -> bool:
    parts = host.split(".")
    return len(parts) == 4 and all(
        part.isdigit() and len(part) <= 3 and int(part) <= 255 for part in parts
    )


def _is_ipv6(host: str) -> bool:
    """Whether `host` is an IPv6 address, with or without the zone of a link-local one (`%eth0`)."""
    address, percent, zone = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: not ASCII, or a NUL
        return False
    return bool(zone) or not percent


def seconds(least: float, most: float) -> Callable[[str], float]:
    """A parser of seconds within these bounds."""

    def parse(text: str) -> float:
        value = math.nan if "_" in text else float(text)  # 1_0 is Python's, not a person's
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(text)
        return value

    return parse


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    """A parser of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return parse


def parse_gpus(text: str) -> Optional[int]:
    """A number of GPUs; None for `auto`."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 3 or int(text) > MOST_GPUS:
        raise ValueError(text)
    return int(text)


def parse_ollama(text: str) -> Union[str, OllamaUrl, None]:
    """`auto`, an address, or None for `none`."""
    return None if text == "none" else "auto" if text == "auto" else parse_url(text)


def parse_on_or_off(text: str) -> bool:
    """`on` or `off`."""
    return one_of(("on", "off"))(text) == "on"


def parse_log(text: str) -> tuple[str, str]:
    """(kind, name) of `none`, `journal:UNIT` and `file:/PATH`, a unit with its suffix and a path from the root.

    Source: systemd.unit(5). A relative path would be below a folder that a service does not choose.
    """
    kind, _, name = text.partition(":")
    if text == "none" or (kind == "file" and name.startswith("/") and "\0" not in name):
        return kind, name
    if kind != "journal" or not name or name[0] in "-@" or name.strip(_UNIT_CHARACTERS):
        raise ValueError(text)
    prefix, dot, suffix = name.rpartition(".")
    if not dot or suffix not in _UNIT_SUFFIXES:
        prefix, name = name, f"{name}.service"
    # Of a template, `ollama@`, there are only instances.
    if not prefix or prefix.endswith("@") or len(name) > _LONGEST_UNIT:
        raise ValueError(text)
    return kind, name


def parse_path(text: str) -> str:
    """Anything that a file may be called."""
    if not text or "\0" in text:
        raise ValueError(text)
    return text


def parse_cgroup(text: str) -> str:
    """`auto`, `none` or a path that does not lead upwards."""
    if ".." in text.split("/"):
        raise ValueError(text)
    return parse_path(text)


def parse_agent_check(text: str) -> Optional[Address]:
    """An address, or None for `none`."""
    return None if text == "none" else parse_address(text)


def parse_weight(text: str) -> Weighting:
    """`cpu=1,gpu_util=2`: the coefficients that are named, each once; the others stay as they are."""
    given: dict[str, float] = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        if name in given or name not in COEFFICIENTS:
            raise ValueError(text)
        given[name] = seconds(0.0, 100.0)(number)
    weighting = replace(DEFAULT, **given)
    if not weighting.cpu + weighting.ram:
        raise ValueError(text)  # a host without GPUs would weigh nothing, and win
    return weighting
