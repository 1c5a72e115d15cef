"""`ollama-metrics resume`: takes the file away that drains this host."""

from __future__ import annotations

from .drain_command import WHO, Service, add_service_options, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

EPILOG = """\
Exit codes: 0 the host is not drained (any more), 1 it could not be done or
seen, 2 bad usage.
"""


def add_options(parser: Any) -> None:
    """The options of this command."""
    add_service_options(parser)


def run(options: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """End the drain; returns the exit code. Raises ConfigError."""
    service = Service(options, environ)
    try:
        was = service.file.end()
    except OSError as error:
        return fail(f"{service.file.path} cannot be removed: {error}; {WHO}")
    print("resumed" if was else "it was not drained")
    seen = service.await_status(lambda document: document.get("drain") is None)
    if seen is None:
        return fail(
            f"the agent at {service.url} does not answer; nobody can tell whether it has seen it"
        )
    if not seen:
        return fail(
            f"the agent at {service.url} is drained still: is {service.file.path} its state directory's?"
            " set --state-dir"
        )
    return 0
