"""What docs/METRICS.md says of /history."""

from __future__ import annotations

# Key and meaning; test_history.py compares them with a rendered document.
HISTORY = (
    ("timestamp", "Unix seconds of the moment that `ago_seconds` count back from."),
    ("seconds", "How far back the answer goes."),
    ("host.ago_seconds", "How many seconds before `timestamp` each reading ended."),
    ("host.cpu_percent", "CPU in use, 0-100, since the reading before."),
    ("host.ram_percent", "Memory not available to new work, 0-100."),
    (
        "gpu.ago_seconds",
        "The same for the readings of the GPUs; `gpu` is null where none are looked at.",
    ),
    ("gpu.gpus[].index", "Index of the GPU in NVML's order; null for one that has been lost."),
    ("gpu.gpus[].uuid", "UUID of the GPU."),
    ("gpu.gpus[].utilization_percent", "Share of time in which a kernel ran, 0-100, as last read."),
    ("gpu.gpus[].memory_percent", "Memory in use over memory of the board, 0-100."),
    (
        "ollama.ago_seconds",
        "The same for the readings of Ollama; `ollama` is null where it is left alone.",
    ),
    ("ollama.in_flight", "Connections that were established to Ollama's port."),
)


def history() -> list[str]:
    """The section of docs/METRICS.md, by its lines."""
    return [
        "",
        "## History",
        "",
        "`GET /history` answers the readings of the last two minutes as JSON, `?seconds=N` (1 to 120, rounded",
        "up to whole seconds) fewer of them. What stands in a list belongs to the time at the same place in",
        "`ago_seconds` of the same object, the oldest first. Readings that come faster than twice a second",
        "are averaged to one for each half second. They are what was measured: a verdict does not change",
        "them, and while nothing is read there is nothing in them.",
        "",
        "| key | meaning |",
        "| --- | --- |",
        *(f"| `{key}` | {meaning} |" for key, meaning in HISTORY),
    ]
