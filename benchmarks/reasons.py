"""Why a goal is missed, by its key: written by hand, printed only while it is missed."""

from __future__ import annotations

_HOST = (
    "most of it is not the agent's own. Measured in place, in the daemon's sampling thread with caches "
    "gone cold within the second (2-core VM): waking up 65 us of CPU, psutil's cpu_times 220-230 us, "
    "virtual_memory 110-300 us (every 5 s while memory stands still), the rest of the reading 80 us, "
    "publishing it 60-90 us, the looks for a drain and at the verdict 50-80 us; besides, every 30 s, 1 ms "
    "for interfaces and disks and 0.5 ms for a driver that may have come. Warm, the whole cycle is 130 us: "
    "it is memory that has to be fetched again, not instructions. It crosses the line on a slow minute of "
    "the machine and stays below it on a fast one (0.033-0.040 % on another day); the ratio to "
    "prometheus_client, which pays the same for both readings, says the same with less noise"
)
_OLLAMA = (
    "the agent without the collector is at the line by itself, and a check costs some 2 ms of CPU every 5 s. "
    "Measured in place, part by part (caches cold, 2-core VM): GET /api/version 350-600 us, GET /api/ps "
    "200-300 us, counting connections in the kernel's table 700-1,200 us (400-700 of that in the kernel, "
    "which walks its whole hash of sockets; more while thousands of them are in TIME_WAIT), the runners "
    "80-140 us, the log 130 us, the cgroup every 15 s 300-450 us. A kept connection and a whole look only "
    "every 30 s at an Ollama that rests were tried: 0.079 % of a core and 1.06x, and dropped, for an "
    "Ollama that accepts nobody any more looked well by them (CONTRIBUTING.md). What would meet it is to "
    "ask less often, `--ollama-interval 15`; the price is to notice a dead Ollama 10 s later, which is worse"
)
_BURST = (
    "2,610 requests in 15 rounds, so p99 is the 26 slowest: one round that something disturbs decides it. "
    "p50 is nginx's (2.92 and 2.90 ms in the run with 2.30x), and other whole runs had 1.46x and 1.52x. "
    "What disturbs such a round is not known: a sample of the agent's own takes 0.6 ms of its core, and "
    "nginx has none; everything else on the machine counts as well"
)
REASONS: dict[str, str] = {
    "idle-core": _HOST,
    "idle-prometheus-client": _HOST,
    "idle-core-agent-check": _HOST,
    "idle-prometheus-client-agent-check": _HOST,
    "idle-core-ollama": _OLLAMA,
    "idle-prometheus-client-ollama": _OLLAMA,
    "burst-174-p99": _BURST,
}

UNKNOWN = "not yet found"
