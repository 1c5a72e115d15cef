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
    from typing import Any

# Who imports it -> why the agent does not need it.
#   http.client: ssl (HTTPS clients).  shutil: bz2, lzma, fnmatch (archives).
#   http.server: shutil, mimetypes, html (serving files).  urllib.parse: ipaddress (bracketed hosts).
#   email.utils: random, datetime (message ids, dates).  email._parseaddr: calendar.
#   psutil: subprocess, glob (other systems, sensors).
#   dataclasses: inspect (signatures of undocumented classes).
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
)


class Deferred(ModuleType):
    """A module that is imported when something in it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        # Only real use may load, not those who look through sys.modules (`import html.entities` is
        # real use).
        if name.startswith("__") and name not in ("__path__", "__all__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = __import__(self.__name__, fromlist=("*",))
        self.__dict__.update(real.__dict__)
        return getattr(real, name)


def defer(names: Iterable[str] = DEFERRED) -> None:
    """Make `names` load on first use; a module that is loaded already stays as it is."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = module = Deferred(name)
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


def forget_parser() -> None:
    """Forget the command line's parser, which has done its work; what it held is used again by what comes next."""
    for name in ("argparse", "gettext", "locale"):
        sys.modules.pop(name, None)
