"""Why a goal is missed, by its key: written by hand, printed only while it is missed."""

from __future__ import annotations

_HOST = (
    "it is memory that has to be fetched again, not instructions: caches are cold after a second, and warm "
    "the same cycle takes a third. Measured in place, in the daemon's sampling thread (2-core VM, a slow "
    "hour): waking up and going to sleep 110 us of CPU, /proc/stat 105 us, /proc/meminfo 90 us every "
    "5 s while memory stands still, the rest of the reading 50 us, publishing it 75 us, the looks for "
    "a drain and at the verdict 70 us; besides, every 30 s, 0.8 ms for interfaces and disks and 0.2 ms for "
    "a driver that may have come"
)
_OLLAMA = (
    "a check costs 2.1 to 2.6 ms of CPU every 5 s, and what is left below the line by the agent without it "
    "is a fraction of that. Measured in place, part by part (caches cold, 2-core VM, a slow hour): GET "
    "/api/version 550 us, GET /api/ps 290 us, counting connections 1,000 us (860 of that in the kernel, "
    "which walks its whole hash of sockets and of listeners), the runners 130 us, the log 120 us, the cgroup "
    "every 15 s 450 us, waking up and publishing 180 us. The peer asks nobody. A kept connection and a whole "
    "look only every 30 s at an Ollama that rests were tried and dropped, for an Ollama that accepts nobody "
    "any more looked well by them (CONTRIBUTING.md). What would meet it is to ask less often, "
    "`--ollama-interval 20`; the price is to notice a dead Ollama 15 s later, which is worse"
)
_BURST = (
    "2,610 requests in 15 rounds, so p99 is the 26 slowest: one round that something disturbs decides it. "
    "p50 is nginx's (2.92 and 2.90 ms in the run with 2.30x), and other whole runs had 1.46x and 1.52x. "
    "What disturbs such a round is not known: a sample of the agent's own takes 0.6 ms of its core, and "
    "nginx has none; everything else on the machine counts as well"
)
_KEPT = (
    "the bytes come from the same memo and code as in the row without Ollama, so that what the rows differ by is "
    "noise: seven rounds of 2 s, on a machine that is disturbed. Four whole runs before had 0.74x to 0.94x"
)
REASONS: dict[str, str] = {
    "keep-alive-nginx-ollama": _KEPT,
    "idle-core": _HOST,
    "idle-prometheus-client": _HOST,
    "idle-core-agent-check": _HOST,
    "idle-prometheus-client-agent-check": _HOST,
    "idle-core-ollama": _OLLAMA,
    "idle-prometheus-client-ollama": _OLLAMA,
    "burst-174-p99": _BURST,
}

UNKNOWN = "not yet found"
