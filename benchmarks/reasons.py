"""Why a goal is missed, by its key: written by hand, printed only while it is missed."""

from __future__ import annotations

_HOST = (
    "some four fifths of it are not the agent's own. Measured in place, in a thread that does "
    "one thing after half a second's sleep (median of 8, 2-core VM): waking up alone costs "
    "80-100 us of CPU, waking up with psutil's cpu_times and virtual_memory 390-430 us "
    "(reading /proc/stat and /proc/meminfo without parsing them, 110 and 70 us of that), the "
    "agent's whole cycle 480-520 us. It crosses the line on a slow minute of the machine and "
    "stays below it on a fast one; the ratio to prometheus_client in the same run says the same "
    "with less noise"
)
_OLLAMA = (
    "the agent without the collector is at four fifths of the line by itself, and what is asked "
    "every 5 s costs some 2 ms of CPU. Measured in place, part by part (caches cold, 2-core VM): "
    "GET /api/version 350-600 us, GET /api/ps 200-300 us, counting connections in the kernel's "
    "table 700-1,200 us (400-700 of that in the kernel, which walks its whole hash of sockets; "
    "more while thousands of them are in TIME_WAIT), the runners 80-140 us, the cgroup every "
    "15 s 300-450 us. What would meet it is to ask less often, `--ollama-interval 15`; the price "
    "is to notice a dead Ollama 10 s later, which is worse"
)
REASONS: dict[str, str] = {
    "idle-core": _HOST,
    "idle-core-ollama": _OLLAMA,
    "idle-prometheus-client-ollama": _OLLAMA,
}

UNKNOWN = "not yet found"
