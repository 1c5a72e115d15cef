"""The pages that are written by the program: docs/METRICS.md and docs/CONFIGURATION.md.

`python -m ollama_metrics.reference metrics` (or `configuration`) prints one. Not imported by the
agent.
"""

from __future__ import annotations

import sys

from .config import CONFIG_VARIABLE
from .exposition_text import TABLES
from .metrics import Table
from .ollama import LogReading, Model, OllamaReading
from .placement import VideoMemory
from .reference_example import example
from .reference_history import history
from .settings import SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Key, type, meaning. The keys are the contract; test_reference.py compares them with a rendered document.
TOP_LEVEL = (
    ("cpu_percent", "number", "CPU in use, 0-100, mean over the window. *"),
    ("ram_percent", "number", "Memory not available to new work, 0-100, as last read. *"),
    ("gpu_count", "integer", "GPUs that the host should have, or has when that is more. *"),
    ("gpu_avg_utilization_percent", "number", "Mean over the GPUs, 0-100; 0.0 without GPUs. *"),
    ("gpu_avg_memory_percent", "number", "Mean over the GPUs, 0-100, as last read. *"),
    ("gpus", "list", "One entry for each GPU that answers; empty when none can be read."),
    (
        "timestamp",
        "number",
        "Unix seconds of the oldest reading behind the numbers; null before any.",
    ),
    (
        "weight",
        "number",
        "cpu + ram + 1.5 utilization + 1.5 memory, of the five fields as served, unless `--weight` or "
        "`--capacity` say otherwise.",
    ),
    ("status", "string", "`ok`, `degraded`, `failing` or `draining`."),
    ("reasons", "list", "Sentences for a person: what is wrong, what stands in for what."),
    ("window_seconds", "number", "The window of this answer."),
    (
        "age_seconds",
        "number",
        "Age of the oldest reading behind the numbers (memory that stands still: up to 5 s more); null before any.",
    ),
    (
        "instant",
        "object",
        "The last readings, unaveraged, without any stand-in; null where unknown.",
    ),
    ("gpu_expected", "integer", "GPUs that the host should have."),
    ("collectors", "object", "Health of each collector, by its name."),
    ("agent", "object", "Version, uptime, requests."),
    ("window", "object", "Means and maxima of what was measured within the window."),
    ("host", "object", "Capacity of the host; null when it cannot be read."),
    ("driver", "object", "Versions of the NVIDIA driver; null without one."),
    (
        "ollama",
        "object",
        "Ollama as it was last seen; null where it is left alone (`--ollama none`).",
    ),
    ("vram", "object", "Room for models on the GPUs; null without GPUs."),
    (
        "weight_components",
        "object",
        "What each field and the requests in flight add to `weight` (`--weight`), before `--capacity`.",
    ),
    (
        "load",
        "number",
        "0-1: the weight over the most that a host of this kind can have, so that unlike ones compare.",
    ),
    (
        "drain",
        "object",
        "`reason`, `since` and `until` (Unix seconds, null: until resumed) of a drained host; else null.",
    ),
    ("network", "list", "What each network interface has moved; null when it cannot be read."),
    ("disks", "list", "What each disk has moved; null when it cannot be read."),
)


def metrics() -> str:
    """docs/METRICS.md: every key of the JSON document and every Prometheus family."""
    return "\n".join([*_introduction(), *_json(), *history(), *_prometheus()]) + "\n"


def configuration() -> str:
    """docs/CONFIGURATION.md: every setting."""
    lines = [
        "# Configuration",
        "",
        "Each setting is an option of `ollama-metrics serve` and an environment variable, and the variable",
        "may stand in a file of settings. Defaults < file < environment < command line: what stands",
        "further right wins. An empty value counts as not set. `make docs` writes this page from the code.",
        "",
        "| option | variable | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for one in SETTINGS:
        cells = (f"`{one.option} {one.metavar}`", f"`{one.variable}`", one.default_text, one.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    once = [one.option for one in SETTINGS if not one.serve_only]
    lines += [
        "",
        "`OLLAMA_METRICS_LISTEN` holds several addresses apart by commas or spaces.",
        f"`ollama-metrics once` knows {', '.join(f'`{option}`' for option in once)}, and `--format`.",
        "",
        "A value that is not usable ends the command with exit code 2 and one line that names the",
        "option or the variable, the value, and what would be accepted. An address that cannot be",
        "listened on ends it with exit code 1.",
        "",
        "## The file of settings",
        "",
        f"`--config FILE`, or `{CONFIG_VARIABLE}=FILE`, names it. An installed service has",
        "`/etc/ollama-metrics/environment`.",
        "",
        "```sh",
        "# A NAME=VALUE in each line. Empty lines and those that begin with # or ; are passed over.",
        "OLLAMA_METRICS_LISTEN=127.0.0.1:11435",
        'OLLAMA_METRICS_EXPECTED_GPUS="4"',
        "```",
        "",
        "Quotes around a value, single or double, are taken off. Nothing else has a meaning in it: no",
        "variable is expanded, a backslash is a backslash, a # behind a value belongs to it. The names are",
        f"the variables above but for `{CONFIG_VARIABLE}`; another name, a name that is given twice",
        "and whatever is no NAME=VALUE are mistakes, told with the file and the line.",
        "",
        "`ollama-metrics check`, with the options of `serve`, says whether `serve` would take its options,",
        "variables and file: exit code 0, or 2 with the line that `serve` would end with.",
        "",
        "## Reading it anew",
        "",
        "SIGHUP (`systemctl reload ollama-metrics`) has the agent execute itself anew, in the same process,",
        "with its sockets and connections kept: file and program are then those on disk, options and",
        "environment those that it was started with. What would not start is not executed: a line in the",
        "log says why, and the agent goes on as it was. An address that is configured no more is closed,",
        "but only after the new ones are bound: to go from 0.0.0.0 to 127.0.0.1 on the same port takes a",
        "restart. With a terminal SIGHUP means its end, and ends the agent.",
    ]
    return "\n".join(lines) + "\n"


def _introduction() -> list[str]:
    return [
        "# Metrics",
        "",
        "Everything that the agent serves, written from the table in its code by `make docs`.",
        "",
        "`GET /metrics` answers JSON, or Prometheus text 0.0.4 or OpenMetrics 1.0 to clients that",
        "name those in `Accept`; `?format=json|prometheus|openmetrics` overrides the header and",
        "`?window=SECONDS` (from the sampling interval to 120, rounded up to whole seconds) the window",
        "of that answer. Other parameters are passed over.",
        "",
        "What a device does not report is `null` in JSON and an absent series in Prometheus: never",
        "0, NaN or a placeholder.",
    ]


def _json() -> list[str]:
    lines = [
        "",
        "## JSON",
        "",
        "Keys never change their meaning; new ones only ever come after these. The fields marked *",
        "are what a balancer reads. They are the host's numbers when `status` is `ok`; on a failing",
        "host they say so in the balancer's own terms (weight 500), because whatever is broken looks",
        "idle and idle wins. See the table in [ROBUSTNESS.md](ROBUSTNESS.md).",
        "",
        "| key | type | meaning |",
        "| --- | --- | --- |",
        *(f"| `{key}` | {kind} | {meaning} |" for key, kind, meaning in TOP_LEVEL),
    ]
    titles = {
        "ollama_gpu": "gpus[]",
        "ollama_gpu_mig": "gpus[].mig_instances[]",
        "ollama_host": "host",
        "ollama_host_network": "network[]",
        "ollama_host_disk": "disks[]",
        "ollama_cgroup": "ollama.cgroup",
    }
    titles.update({"ollama_agent_collector": "collectors.NAME", "ollama_gpu_driver": "driver"})
    for table in TABLES:
        # These share their prefixes with others.
        title = _OLLAMA_TITLES.get(table.title, titles.get(table.prefix))
        if title is not None and table.metrics[0].attribute != "status":
            lines += ["", f"### `{title}`", "", "| key | meaning |", "| --- | --- |"]
            lines += [
                f"| `{m.json}` | {_IN_JSON.get(m.attribute, m.help)} |"
                for m in table.metrics
                if m.json is not None
            ]
            lines += [f"| `{key}` | {meaning} |" for key, meaning in _BESIDES.get(title, ())]
    lines += [
        "",
        "Which interfaces and disks: those with hardware behind them in sysfs. Loopback, bridges, bonds,",
        "VLANs, tunnels, partitions, loop devices, RAID and logical volumes would count the same bytes",
        "again. In a container's network namespace no interface has hardware: all but loopback count, and",
        "they are the container's own (so an agent that shares Ollama's namespace tells Ollama's traffic).",
        "They are read every 30 s. What Ollama itself reads from disks is in `ollama.cgroup`.",
    ]
    lines += ["", "### Example", "", "```json", example().decode().rstrip(), "```"]
    return lines


# What means something else in JSON than in Prometheus.
_IN_JSON = {"utilization_ratio": "Share of time in which a kernel ran, mean over the window."}
_OLLAMA_TITLES = {
    Table(OllamaReading).title: "ollama",
    Table(Model).title: "ollama.models[]",
    Table(LogReading).title: "ollama.requests",
    Table(VideoMemory).title: "vram",
}
_BESIDES = {
    "ollama": (
        (
            "models",
            "The models that are loaded, or were two minutes ago at most: `collectors` has their age.",
        ),
        ("requests", "What Ollama's log says of its requests; null where no log is followed."),
        ("cgroup", "What Ollama's cgroup has used; null where that cannot be read."),
    ),
    "ollama.models[]": (
        (
            "placement",
            "`gpus`: index, uuid and memory used (MB) of each GPU that the model sits on; `cpu_percent`: the CPU's "
            "share; `unknown`: why the GPUs, or the memory on them, are not known, else null.",
        ),
    ),
    "ollama.requests": (
        ("count", "Inference requests that were answered within the window."),
        ("rate_per_second", "The same by the second."),
        ("error_percent", "Share of them that failed (status 500 and above); null without any."),
        ("p50_seconds", "Half of them took no longer; within 5 %, as p95 and p99."),
        ("p95_seconds", "95 % of them took no longer."),
        ("p99_seconds", "99 % of them took no longer."),
        ("by_status", "All requests since the agent started, by method, endpoint and status."),
        ("errors", "All errors since the agent started, by kind."),
    ),
    "vram": (("ollama", "What Ollama's runners use of each GPU, where the driver tells it."),),
    "gpus[]": (
        ("utilization_instant_percent", "The last reading by itself."),
        ("utilization_max_percent", "The highest reading within the window."),
        ("mig_instances", "The GPU's MIG instances."),
    ),
    "collectors.NAME": (
        ("stuck", "Whether no cycle has ended for three intervals."),
        ("age_seconds", "Age of the last good reading; null before any."),
    ),
}


def _prometheus() -> list[str]:
    lines = [
        "",
        "## Prometheus",
        "",
        "Only what was measured; a verdict's made-up numbers never appear here. Utilization is the",
        "last reading, not the window's mean: Prometheus averages by itself.",
    ]
    for table in TABLES:
        labels = ", ".join(f"`{name}`" for name, _ in table.labels) or "none"
        lines += ["", f"### {table.title}", "", f"Labels: {labels}.", ""]
        lines += ["| family | type | meaning |", "| --- | --- | --- |"]
        infos = [metric for metric in table.metrics if metric.kind == "info"]
        if infos:
            names = ", ".join(f"`{metric.attribute}`" for metric in infos)
            lines.append(f"| `{table.prefix}_info` | info | Always 1; labels {names}. |")
        lines += [
            _family_row(table, metric)
            for metric in table.metrics
            if metric.kind not in ("info", "detail")
        ]
    return lines


def _family_row(table: Table, metric: Any) -> str:
    kind, meaning = metric.kind, metric.help
    if kind == "state":
        kind = "gauge"
        meaning += (
            " Label `"
            + metric.attribute
            + "`: "
            + ", ".join(f"`{one}`" for one in metric.states)
            + "."
        )
    return f"| `{table.family(metric)}` | {kind} | {meaning} |"


PAGES = {"metrics": metrics, "configuration": configuration}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PAGES:
        sys.exit(f"usage: python -m ollama_metrics.reference {'|'.join(PAGES)}")
    sys.stdout.write(PAGES[sys.argv[1]]())
