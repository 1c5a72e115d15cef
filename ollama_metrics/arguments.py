"""Reads a plain `serve` command line without argparse, a third of a megabyte and a fifth of the start.

argparse is the referee: what is read here it would read the same way. Everything that it could have
something to say about (`--help`, another command, a mistake) is left to it. What the options' texts
mean is config.py's business.
"""

from __future__ import annotations

from .settings import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional


def plain_options(argv: Sequence[str]) -> Optional[dict[str, Any]]:
    """The options after `serve` as argparse returns them, setting name -> text, list of texts or None.

    None for a command line that is not plain: one with anything but `--name VALUE` and
    `--name=VALUE`, or with a VALUE that begins with a hyphen.
    """
    if not argv or argv[0] != "serve":
        return None
    settings = {setting.option: setting for setting in SETTINGS}
    found: dict[str, Any] = dict.fromkeys(setting.name for setting in SETTINGS)
    words = iter(argv[1:])
    for word in words:
        option, equals, text = word.partition("=")
        setting = settings.get(option)
        if setting is None:
            return None
        if not equals:
            text = next(words, "-")
        if text.startswith("-"):
            return None
        if setting.repeatable:
            found[setting.name] = [*(found[setting.name] or ()), text]
        else:
            found[setting.name] = text
    return found
