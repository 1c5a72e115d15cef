"""What the agent tells of itself."""

from __future__ import annotations

from .frozen import dataclass
from .metrics import counter, gauge, info

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


@dataclass(frozen=True)
class AgentBuild:
    """Which agent this is."""

    PREFIX = "ollama_agent_build"
    LABELS = ()

    version: Optional[str] = info("Version of the agent.")
    python: Optional[str] = info("Version of the Python that runs it.")


@dataclass(frozen=True)
class AgentStats:
    """What the agent has served so far; None of it where there is no daemon (`once`)."""

    PREFIX = "ollama_agent"
    LABELS = ()

    uptime_seconds: Optional[float] = gauge("Seconds since the agent started.")
    start_time_seconds: Optional[float] = gauge("Unix time at which the agent started.", json=None)
    requests_total: Optional[int] = counter("Requests that were answered.")
    requests_refused_total: Optional[int] = counter(
        "Requests that were answered with an error of the client's."
    )
    connections: Optional[int] = gauge("Connections that are open.")
    connections_evicted_total: Optional[int] = counter(
        "Connections closed for being too slow or too many."
    )
