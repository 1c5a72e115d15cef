"""Keeps out of the daemon's memory what its imports drag in and it never touches.

`http.server` imports, for features of it that a metrics agent has no use for, `ssl`, `bz2`, `lzma`,
`mimetypes`, `html` and more: 5 of its 9 MB. `defer` puts a placeholder in their place that imports
the real module at the first attribute asked of it: nothing is lost, it only comes later. The daemon
calls this before its other imports; a program that imports this package as a library is never
touched.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Callable

# Who imports it -> why the agent does not need it.
#   http.client: ssl (HTTPS clients).  shutil: bz2, lzma, fnmatch (archives).
#   http.server: shutil, mimetypes, html, urllib.parse (serving files).
#   urllib.parse: ipaddress (bracketed hosts).
#   email.utils: random, datetime (message ids, dates), urllib.parse.  email._parseaddr: calendar.
#   email.message: email.header, email.quoprimime, email.base64mime, email._encoded_words,
#   email.encoders, quopri, base64, binascii, string (headers that are not ASCII, and bodies).
#   psutil: base64 (connections).
#   psutil: subprocess, glob (other systems, sensors).
#   dataclasses: inspect (signatures of undocumented classes), copy (asdict), which has weakref.
#   socket: array (file descriptors as messages).
DEFERRED = (
    "ssl",
    "bz2",
    "lzma",
    "inspect",
    "shutil",
    "fnmatch",
    "mimetypes",
    "html",
    "random",
    "datetime",
    "calendar",
    "subprocess",
    "glob",
    "ipaddress",
    "copy",
    "array",
    "urllib.parse",
    "email.header",
    "email.quoprimime",
    "email.base64mime",
    "email.encoders",
    "email._encoded_words",
    "quopri",
    "base64",
    "binascii",
    "string",
)

# Which of them have modules of their own.
PACKAGES = ("html",)
# Of these, functions that others import by name: one that imports them when it is called stands in.
FUNCTIONS = {
    "urllib.parse": ("urlsplit",),
    "email.encoders": ("encode_7or8bit",),
    "email._encoded_words": ("decode_b",),
}


class Deferred(ModuleType):
    """A module that is imported when something in it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        # Only real use may load, not those who look through sys.modules. `import html.entities` is
        # real use; of what is no package the import system asks for its path, too.
        is_path = name == "__path__" and self.__name__ in PACKAGES
        if name.startswith("__") and name != "__all__" and not is_path:
            raise AttributeError(name)
        return getattr(_real(self), name)


def _real(module: Deferred) -> ModuleType:
    """Import what `module` stands for; from now on it has all that the real one has."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
    real: ModuleType = __import__(module.__name__, fromlist=("*",))
    module.__dict__.update(real.__dict__)
    return real


def _later(module: Deferred, name: str) -> Callable[..., Any]:
    """The function of that name in the real module, which is imported when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(_real(module), name)(*args, **kwargs)

    return call


def defer(names: Iterable[str] = DEFERRED) -> None:
    """Make `names` load on first use; a module that is loaded already stays as it is."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = module = Deferred(name)
            package, _, part = name.rpartition(".")
            if package:
                # As an import of the part would; the packages themselves are next to nothing.
                setattr(__import__(package), part, module)
            for function in FUNCTIONS.get(name, ()):
                module.__dict__[function] = _later(module, function)
            if name == "inspect" and (3, 10) <= sys.version_info < (3, 14):
                # Python 3.13's dataclasses asks it for each class; that alone need not load it.
                module.__dict__["get_annotations"] = _annotations
            elif name == "inspect" and sys.version_info >= (3, 14):
                # argparse's colours there are dataclasses without docstrings.
                module.__dict__["signature"] = _signature


def _annotations(cls: type) -> dict[str, Any]:
    """What inspect.get_annotations(cls) returns for a class, from Python 3.10 to 3.13."""
    return dict(cls.__dict__.get("__annotations__", {}))  # noqa: RUF063  # this is in its place


def _signature(*args: Any, **kwargs: Any) -> Any:
    """inspect.signature, but to dataclasses: a class without a docstring gets one without a signature then."""
    if sys._getframe(1).f_globals.get("__name__") == "dataclasses":
        raise ValueError("not worth a megabyte")
    module = sys.modules["inspect"]
    if module.__dict__.get("signature") is _signature:
        del module.__dict__["signature"]
    return module.signature(*args, **kwargs)
