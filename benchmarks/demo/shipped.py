"""The shipped configurations, adapted to the demo: where the hosts are, and nothing that needs root. Pure.

Each change has to find what it changes, for else the demo would show something that is not shipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


class ShippedFileChanged(Exception):
    """What is to be adapted is not there (any more)."""


@dataclass(frozen=True)
class Place:
    """Where a host is. The agent's ports are those of every host; Ollama's is the host's own.

    An agent counts the connections to Ollama's port at whatever address: HAProxy and the other hosts
    of this machine must not have the same one.
    """

    name: str
    address: str
    ollama: int
    agent: int
    agent_check: int


def haproxy(text: str, places: Sequence[Place], front: int, state: int, socket: Path) -> str:
    """deploy/haproxy/haproxy.cfg for these hosts, listening on two ports of 127.0.0.1.

    `user`, `group` and `chroot` go: they need root, and a process that changes its user outlives the demo.
    """
    text = _change(text, r"^    (?:chroot|user|group) .*\n", "", times=3)
    text = _change(text, r"^(    bind ):11434$", rf"\g<1>127.0.0.1:{front}")
    text = _change(text, r"^(    bind 127\.0\.0\.1):8404$", rf"\g<1>:{state}")
    text = _change(text, r"/run/haproxy/admin\.sock", str(socket))
    text = _change(text, r"(connect port) 11435\b", rf"\g<1> {places[0].agent}")
    text = _change(text, r"(agent-port) 11437\b", rf"\g<1> {places[0].agent_check}")
    # In each of the two backends the three hosts of the file become those of the demo.
    pool = r"^    server gpu1 \S+:11434 (maxconn \d+)\n(?:    server gpu.*\n)*"
    others = r"^    server gpu1 \S+:11434 track ollama/gpu1\n(?:    server gpu.*\n)*"
    lines = "".join(f"    server {one.name} {one.address}:{one.ollama} \\g<1>\n" for one in places)
    text = _change(text, pool, lines)
    lines = "".join(
        f"    server {one.name} {one.address}:{one.ollama} track ollama/{one.name}\n"
        for one in places
    )
    return _change(text, others, lines)


def prometheus(text: str) -> str:
    """deploy/prometheus/prometheus.yml with no hosts but those in targets/, and at a pace to watch."""
    text = _change(text, r"^(  scrape_interval:) 15s$", r"\g<1> 2s")
    text = _change(text, r"^(  scrape_timeout:) 5s$", r"\g<1> 2s")
    text = _change(text, r"^(  evaluation_interval:) 15s$", r"\g<1> 5s")
    example = (
        r"^    static_configs:\n      - targets:\n(?:          - gpu\S+:11435\n)+"
        r"(?:        labels:\n(?:          .*\n)*)?"
    )
    return _change(text, example, "")


def targets(places: Sequence[Place]) -> str:
    """The file that Prometheus finds the agents by, with their hosts' names."""
    return "".join(
        f'- targets: ["{one.address}:{one.agent}"]\n'
        f"  labels:\n    instance: {one.name}\n    pool: demo\n"
        for one in places
    )


def _change(text: str, pattern: str, by: str, times: int = 1) -> str:
    changed, count = re.subn(pattern, by, text, flags=re.MULTILINE)
    if count != times:
        raise ShippedFileChanged(f"{pattern} is {count} times in the shipped file, not {times}")
    return changed
