"""Writes docs/HARDWARE.md from a machine with NVIDIA GPUs; also how its tests read nvidia-smi.

    python tests/hardware_report.py > page.md && mv page.md docs/HARDWARE.md

Without a GPU, or without nvidia-smi to compare with, it ends with exit code 1 and a line that says so.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Callable, NamedTuple, Optional, Union

from ollama_metrics.errors import CollectorError, NotReported, ReadingFailed
from ollama_metrics.expectation import Expectation
from ollama_metrics.gpu import GpuReading, GpuSample
from ollama_metrics.gpu_collector import GpuCollector
from ollama_metrics.metrics import Table
from ollama_metrics.nvml import Session
from ollama_metrics.nvml_device import Device

CALLS = 200
SMI_SECONDS = 60

Value = Union[None, bool, int, float, str]


# -- nvidia-smi -------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What a key of a GPU's JSON entry is called by nvidia-smi, and how far two readings may lie apart.

    `names` are nvidia-smi's, the newest first; `apart` is absolute, `ratio` of the larger one; the wider holds.
    """

    key: str
    names: tuple[str, ...]
    parse: Callable[[str], Value] = float
    apart: float = 0.0
    ratio: float = 0.0


def _switch(text: str) -> bool:
    return {"enabled": True, "disabled": False, "active": True, "not active": False}[text.lower()]


READINGS = (
    Reading("index", ("index",), int),
    Reading("name", ("name",), str),
    Reading("uuid", ("uuid",), str),
    Reading("pci_bus_id", ("pci.bus_id",), str.upper),
    Reading("utilization_instant_percent", ("utilization.gpu",), apart=30),
    Reading("memory_used_mb", ("memory.used",), apart=64),
    Reading("memory_total_mb", ("memory.total",), apart=1),
    Reading("memory_free_mb", ("memory.free",), apart=64),
    Reading("memory_reserved_mb", ("memory.reserved",), apart=64),
    Reading("temperature_c", ("temperature.gpu",), apart=3),
    Reading("power_draw_w", ("power.draw",), apart=10, ratio=0.15),
    Reading("power_limit_w", ("enforced.power.limit",), apart=0.1),
    Reading("sm_clock_mhz", ("clocks.current.sm", "clocks.sm"), apart=45, ratio=0.1),
    Reading("memory_clock_mhz", ("clocks.current.memory", "clocks.mem"), apart=10, ratio=0.02),
    Reading("pstate", ("pstate",), lambda text: int(text.lstrip("P"))),
    Reading("ecc_corrected", ("ecc.errors.corrected.volatile.total",), int),
    Reading("ecc_uncorrected", ("ecc.errors.uncorrected.volatile.total",), int),
    Reading("pcie_generation", ("pcie.link.gen.gpucurrent", "pcie.link.gen.current"), int),
    Reading("pcie_width", ("pcie.link.width.current",), int),
    Reading("fan_speed_percent", ("fan.speed",), apart=5),
    Reading("encoder_utilization_percent", ("utilization.encoder",), apart=30),
    Reading("decoder_utilization_percent", ("utilization.decoder",), apart=30),
    Reading("mig_enabled", ("mig.mode.current",), _switch),
)
# Entries of `throttle_reasons`, by what nvidia-smi calls them behind `clocks_event_reasons.`.
THROTTLE = {
    "gpu_idle": "gpu_idle",
    "applications_clocks_setting": "applications_clocks_setting",
    "software_power_cap": "sw_power_cap",
    "hardware_slowdown": "hw_slowdown",
    "sync_boost": "sync_boost",
    "software_thermal_slowdown": "sw_thermal_slowdown",
    "hardware_thermal_slowdown": "hw_thermal_slowdown",
    "hardware_power_brake": "hw_power_brake_slowdown",
}
_PREFIXES = ("clocks_event_reasons", "clocks_throttle_reasons")
_ALL = (
    *READINGS,
    *(
        Reading(
            f"throttle_reasons.{ours}", tuple(f"{prefix}.{theirs}" for prefix in _PREFIXES), _switch
        )
        for ours, theirs in THROTTLE.items()
    ),
)


class NotComparable(Exception):
    """There is nothing to compare with, and why."""


class Smi:
    """nvidia-smi, asked for what this release of it can tell."""

    def __init__(self) -> None:
        """Raises NotComparable where there is no nvidia-smi, or one that fails."""
        path = shutil.which("nvidia-smi")
        if path is None:
            raise NotComparable("nvidia-smi is not installed")
        self._path = path
        known = set(re.findall(r'"([\w.]+)"', self._run("--help-query-gpu")))
        self._asked = {
            reading: name
            for reading in _ALL
            for name in [next((name for name in reading.names if name in known), None)]
            if name is not None
        }
        for reading in READINGS[:4]:
            if reading not in self._asked:
                raise NotComparable(f"this nvidia-smi cannot tell {reading.names[0]}")
        self.driver_version = self._run(*self._query("driver_version")).splitlines()[0].strip()
        cuda = re.search(r"CUDA (?:UMD )?Version *: *([\d.]+)", self._run())
        self.cuda_version = cuda.group(1) if cuda else None

    def gpus(self) -> dict[str, dict[str, Value]]:
        """By UUID what each GPU tells under our keys, None for what it does not; keys unknown to it are left out."""
        found = {}
        for line in self._run(*self._query(*self._asked.values())).splitlines():
            texts = [text.strip() for text in line.split(", ")]
            if len(texts) != len(self._asked):
                raise NotComparable(f"nvidia-smi answered what cannot be told apart: {line!r}")
            values = {
                reading.key: None if _is_silent(text) else reading.parse(text)
                for reading, text in zip(self._asked, texts)
            }
            found[str(values["uuid"])] = values
        return found

    def mig_uuids(self) -> set[str]:
        """The UUIDs of all MIG instances."""
        return set(re.findall(r"UUID: (MIG-[\w/-]+)", self._run("-L")))

    def tell(self, name: str) -> str:
        """What it says to one query, of the first GPU."""
        return self._run(*self._query(name)).splitlines()[0].strip()

    @staticmethod
    def _query(*names: str) -> tuple[str, str]:
        return f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self._path, *arguments],
                capture_output=True,
                text=True,
                timeout=SMI_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotComparable(f"nvidia-smi does not end within {SMI_SECONDS} s") from None
        if done.returncode != 0:
            said = " ".join((done.stdout + done.stderr).split())
            raise NotComparable(f"nvidia-smi fails with {done.returncode}: {said}")
        return done.stdout


def _is_silent(text: str) -> bool:
    """`[N/A]`, `[Not Supported]`, `[Insufficient Permissions]`, `[Unknown Error]`, and `N/A` of older ones."""
    return text.startswith("[") or text.upper() == "N/A"


def flat(entry: dict[str, Any]) -> dict[str, Value]:
    """A GPU's JSON entry under the keys of `Smi.gpus`."""
    reasons = entry["throttle_reasons"]
    values = {reading.key: entry[reading.key] for reading in READINGS}
    for reason in THROTTLE:
        values[f"throttle_reasons.{reason}"] = None if reasons is None else reason in reasons
    if values["pci_bus_id"] is not None:
        values["pci_bus_id"] = values["pci_bus_id"].upper()
    return values


def differences(
    before: dict[str, Value], theirs: dict[str, Value], after: dict[str, Value]
) -> list[str]:
    """Where nvidia-smi's reading of a GPU does not lie between ours before and after it, give or take."""
    found = []
    for reading in _ALL:
        if reading.key not in theirs:
            continue
        told, ours = theirs[reading.key], (before[reading.key], after[reading.key])
        if not _lies_between(reading, ours, told):
            found.append(f"{reading.key}: {ours[0]!r}, then {ours[1]!r}; nvidia-smi: {told!r}")
    return found


def _lies_between(reading: Reading, ours: tuple[Value, Value], told: Value) -> bool:
    if told in ours:
        return True
    numbers = [one for one in (*ours, told) if isinstance(one, (int, float))]
    if len(numbers) < 3 or not (reading.apart or reading.ratio):
        return False
    low, high, other = float(min(numbers[:2])), float(max(numbers[:2])), float(numbers[2])
    width = max(reading.apart, reading.ratio * max(high, other))
    return low - width <= other <= high + width


# -- the page ---------------------------------------------------------------------------------------


def page() -> str:
    """The whole page. Raises NotComparable."""
    try:
        opened = time.perf_counter()
        session = Session()
        opened = time.perf_counter() - opened
    except CollectorError as error:
        raise NotComparable(str(error)) from None
    try:
        devices = [device for device in session.devices if isinstance(device, Device)]
        if not devices:
            raise NotComparable("the driver is there, but no GPU that answers")
        smi = Smi()
        collector = GpuCollector(Expectation(None, None, _silent), _silent)
        try:
            gpus, theirs = _sample(collector).gpus, smi.gpus()
            lines = [*_head(session, smi), *_costs(session, opened, collector)]
        finally:
            collector.close()
        table = Table(GpuSample)
        samples = {sample.uuid: sample for sample in gpus}
        for device in devices:
            if device.uuid not in samples:
                raise NotComparable(f"GPU {device.index} answers no more")
            sample = samples[device.uuid]
            entry = table.to_json(sample)
            entry["utilization_instant_percent"] = entry["utilization_percent"]
            lines += _of_device(device, sample, flat(entry), theirs.get(device.uuid, {}))
    finally:
        session.close()
    return "\n".join(lines) + "\n"


def _sample(collector: GpuCollector) -> GpuReading:
    try:
        return collector.collect()
    except CollectorError as error:
        raise NotComparable(str(error)) from None


def _head(session: Session, smi: Smi) -> Iterator[str]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = re.search(r"model name\s*: (.*)", file.read())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield "# Measured on real hardware"
    yield ""
    yield "Written by `tests/hardware_report.py`; do not edit it, write it anew:"
    yield ""
    yield "    make test ARGS='-m gpu'"
    yield "    .venv/bin/python tests/hardware_report.py > page.md && mv page.md docs/HARDWARE.md"
    yield ""
    yield "The first line compares every field of every GPU with nvidia-smi and fails where they differ."
    yield ""
    yield from _rows(
        ("what", "value"),
        ("date", datetime.now(timezone.utc).strftime("%Y-%m-%d")),
        ("CPU", f"{cpu.group(1) if cpu else platform.machine()}, {os.cpu_count()} threads"),
        ("RAM", f"{memory / 2**30:.0f} GiB"),
        ("system", f"{_system()}, Linux {platform.release()}"),
        ("NVIDIA driver", f"{session.driver_version}, nvidia-smi says {smi.driver_version}"),
        (
            "CUDA of the driver",
            f"{session.cuda_version}, nvidia-smi says {smi.cuda_version or 'nothing'}",
        ),
        ("NVML", session.nvml_version),
        ("GPUs", session.count),
        ("persistence mode", smi.tell("persistence_mode")),
        ("Python, nvidia-ml-py", f"{platform.python_version()}, {version('nvidia-ml-py')}"),
    )


def _system() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            name = re.search(r'^PRETTY_NAME="?(.*?)"?$', file.read(), re.MULTILINE)
    except OSError:
        name = None
    return name.group(1) if name else "unknown"


def _costs(session: Session, opened: float, collector: GpuCollector) -> Iterator[str]:
    yield ""
    yield "## What it costs"
    yield ""
    yield f"Microseconds, of {CALLS} calls each; but the opening of a session is one call, at the start."
    yield ""
    yield from _rows(
        ("what", "median", "p99"),
        (
            "opening a session: the binding's import, nvmlInit and all that is asked once",
            f"{opened * 1e6:.1f}",
            "",
        ),
        ("number of GPUs: nvmlDeviceGetCount", *_timed(session.ask_count)),
        ("one full sample of all GPUs", *_timed(lambda: _sample(collector))),
    )


def _of_device(
    device: Device, sample: GpuSample, ours: dict[str, Value], theirs: dict[str, Value]
) -> Iterator[str]:
    yield ""
    yield f"## GPU {device.index}: {device.name}"
    yield ""
    rows, silent = [], []
    for reading in _ALL:
        told = _text(theirs[reading.key]) if reading.key in theirs else "(does not know it)"
        own = _text(ours[reading.key])
        if reading.key == "uuid":  # the page need not tell whose GPU it is
            own, told = _shortened(own), _shortened(told)
        rows.append((f"`{reading.key}`", own, told))
    yield from _rows(("field", "ollama-metrics", "nvidia-smi"), *rows)
    yield ""
    yield "Each reading by itself, in base units:"
    yield ""
    costs = []
    for name, read in _readers():
        value = _once(device, read)
        if isinstance(value, NotReported):
            silent.append(f"- `{name}`: {value}")
        else:
            shown = f"fails: {value}" if isinstance(value, Exception) else str(value)
            if name == "mig_instances":
                shown = f"{len(sample.mig_instances)} of them"
            costs.append((f"`{name}`", shown, *_timed(lambda read=read: _once(device, read))))
    yield from _rows(("reading", "value", "median us", "p99 us"), *costs)
    yield ""
    yield "Not reported:" if silent else "Nothing is unsupported."
    if silent:
        yield ""
        yield from silent
    if sample.mig_instances:
        yield ""
        yield from _rows(
            ("MIG instance", "profile", "used MiB", "of MiB"),
            *(
                (
                    _shortened(one.uuid),
                    one.name,
                    *(_mib(size) for size in (one.memory_used_bytes, one.memory_total_bytes)),
                )
                for one in sample.mig_instances
            ),
        )


def _readers() -> Iterator[tuple[str, Callable[[Device], Any]]]:
    """Every reading of a device, in the table's order, then those that are not a metric by themselves."""
    for field in fields(GpuSample):
        metric = field.metadata.get("metric")
        if metric is not None and metric.read is not None:
            yield field.name, metric.read
    yield "throttle_bits", Device.throttle_bits
    yield "mig_instances", Device.mig_instances


def _once(device: Device, read: Callable[[Device], Any]) -> Any:
    device.refresh()  # else the memory's readings would share one call
    try:
        return read(device)
    except (NotReported, ReadingFailed) as error:
        return error


def _timed(call: Callable[[], Any]) -> tuple[str, str]:
    """Median and 99th percentile of `CALLS` calls, in microseconds."""
    times = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    times.sort()
    return f"{times[CALLS // 2] * 1e6:.1f}", f"{times[CALLS * 99 // 100] * 1e6:.1f}"


def _rows(head: tuple[Any, ...], *rows: tuple[Any, ...]) -> Iterator[str]:
    """A Markdown table."""
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def _text(value: Value) -> str:
    return (
        "not reported"
        if value is None
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _shortened(uuid: str) -> str:
    return uuid[:12] + "..."


def _mib(size: Optional[int]) -> str:
    return "not reported" if size is None else f"{size / 2**20:.0f}"


def _silent(_level: str, _sentence: str) -> None:
    """Take no notice of the collector's log: what it would say is in the page."""


def main() -> int:
    try:
        text = page()
    except NotComparable as error:
        print(f"hardware_report: nothing to report: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
