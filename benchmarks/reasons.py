"""Why a goal is missed, by its key: written by hand, printed only while it is missed."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "idle-core": (
        "some four fifths of it are not the agent's own. Measured in place, in a thread that does "
        "one thing after half a second's sleep (median of 8, 2-core VM): waking up alone costs "
        "80-100 us of CPU, waking up with psutil's cpu_times and virtual_memory 390-430 us "
        "(reading /proc/stat and /proc/meminfo without parsing them, 110 and 70 us of that), the "
        "agent's whole cycle 480-520 us. It crosses the line on a slow minute of the machine and "
        "stays below it on a fast one (0.0491 % in another run of the same day); the ratio to "
        "prometheus_client in the same run says the same with less noise"
    ),
}

UNKNOWN = "not yet found"
