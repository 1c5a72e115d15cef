"""Where Ollama is: the address in `--ollama`, and the one in Ollama's own OLLAMA_HOST. Pure.

Source of OLLAMA_HOST's forms: `Host` in Ollama's envconfig/config.go.
"""

from __future__ import annotations

import re
import socket

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

_PORT = 11434
_HTTP_PORT = 80
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)  # an interface's name or number
# What a path may hold as it stands in a request (RFC 3986, without query and fragment).
_PATH = re.compile(r"[A-Za-z0-9/._~!$&'()*+,;=:@%-]{0,1024}", re.ASCII)
ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_NO_HTTPS = (
    "the agent speaks no https; give Ollama's own http address, such as http://127.0.0.1:11434"
)


@dataclass(frozen=True)
class OllamaUrl:
    """An address of Ollama's.

    `host` is a name or an address (IPv6 without brackets), `path` what a proxy puts before Ollama's
    own paths: empty, or with a slash at its beginning and none at its end.
    """

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"http://{self._authority}{self.path}"

    @property
    def host_header(self) -> str:
        """The Host header. On loopback it is always localhost: Ollama answers 403 there to public names."""
        host = self.host.lower()
        if host.startswith("127.") or host == "::1" or f".{host}".endswith(".localhost"):
            return f"localhost:{self.port}"
        name, percent, _ = self.host.partition("%")
        # A zone means something on this host alone.
        return f"[{name}]:{self.port}" if percent else self._authority

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT = OllamaUrl("127.0.0.1", _PORT)


def parse_url(text: str) -> OllamaUrl:
    """The address in `http://HOST:PORT/PATH`, as an operator writes it.

    The scheme may be left out, and the port, too: it is 11434 then, and 80 after `http://`, as in
    OLLAMA_HOST. An address that stands for all of a host's (0.0.0.0, ::) becomes its loopback. Raises
    ValueError with a clause for a person.
    """
    usual, rest = _without_scheme(text)
    authority, slash, path = rest.partition("/")
    host, port = _host_and_port(authority)
    if not host and port is None:
        raise ValueError(f"{text!r} names no host")
    if port is None:
        number: Optional[int] = usual
    else:
        number = _port(port)
        if number is None:
            raise ValueError(f"{port!r} is no port")
    assert number is not None
    return OllamaUrl(_to_connect(host), number, _path(slash + path))


def from_ollama_host(text: str) -> OllamaUrl:
    """Where the value of OLLAMA_HOST leads a client on the same host.

    As in Ollama: spaces and quotes around it do not matter, an IPv6 address needs no brackets, an
    empty value is the default, and a port that is none is the usual one. Raises ValueError with a
    clause for a person: for https, for port 0 (Ollama would choose one itself), and for what cannot
    be a host.
    """
    text = text.strip().strip("\"'").strip()
    if text == "ollama.com":  # Ollama reads this as https
        raise ValueError(_NO_HTTPS)
    usual, rest = _without_scheme(text)
    authority, slash, path = rest.partition("/")
    host, port = _host_and_port(authority)
    number = usual if port is None else _port(port)
    if number is None:
        if port and not port.strip("0"):
            raise ValueError("port 0 is any port, and cannot be asked")
        number = usual
    return OllamaUrl(_to_connect(host), number, _path(slash + path))


def _without_scheme(text: str) -> tuple[int, str]:
    """The port that is meant where none is given, and what follows the scheme."""
    if not text.isprintable() or " " in text:
        raise ValueError("an address has neither spaces nor control characters")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _PORT, text
    if scheme.lower() == "https":
        raise ValueError(_NO_HTTPS)
    if scheme.lower() != "http":
        raise ValueError(f"{scheme!r} is not http")
    return _HTTP_PORT, rest


def _host_and_port(authority: str) -> tuple[str, Optional[str]]:
    """Host (empty where there is none) and port (None where there is none, not even a colon)."""
    if any(character in authority for character in "@?#"):
        raise ValueError("an address has no user, no query and no fragment")
    whole = _ip(authority.strip("[]"))
    if whole is not None:
        return whole, None
    host, colon, port = authority.rpartition(":")
    if not colon:
        host, port = authority, ""
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{authority!r} is no host and port")
    address = _ip(host)
    if address is None:
        # A name. What looks like an IPv4 address and is none would be taken for another one.
        if (host and not _NAME.fullmatch(host)) or _is_number(host):
            raise ValueError(f"{host!r} is no host")
        address = host
    return address, port if colon else None


def _ip(text: str) -> Optional[str]:
    """The usual spelling of an IP address, None for anything else; an IPv4 address in IPv6 is that of IPv4."""
    text, percent, zone = text.partition("%")
    try:
        if ":" not in text:
            socket.inet_pton(socket.AF_INET, text)
            return None if percent else text
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):  # ValueError: not ASCII, or a NUL
        return None
    if percent:
        usual = socket.inet_ntop(socket.AF_INET6, packed)
        return f"{usual}%{zone}" if _ZONE.fullmatch(zone) else None
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _is_number(host: str) -> bool:
    return bool(host) and not host.strip("0123456789.")


def _port(text: str) -> Optional[int]:
    """The number of a port that can be connected to, else None."""
    if not (text.isascii() and text.isdigit()) or len(text) > 5:
        return None
    return int(text) if 0 < int(text) <= 65535 else None


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("an address has a plain path, without a query or a fragment")
    return text.rstrip("/")


def _to_connect(host: str) -> str:
    """Where a client goes for an address that stands for all of a host's."""
    return ANY_ADDRESS.get(host, host)
