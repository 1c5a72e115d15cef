"""The units and the settings file as files: what systemd thinks of them, and that they name what the code knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ollama_metrics.config_file import parse_config_file
from ollama_metrics.settings import SETTINGS

REPOSITORY = Path(__file__).parents[1]
UNITS = REPOSITORY / "systemd"


def test_the_settings_file_has_every_setting_with_its_default() -> None:
    """systemd/environment and docs/OPERATIONS.md name each setting once, with the default that the code has."""
    text = (UNITS / "environment").read_text("utf-8")
    assert parse_config_file(text, "environment") == {}
    shown = dict(re.findall(r"^#(OLLAMA_METRICS_[A-Z_]+)=(.*)$", text, re.MULTILINE))
    # Under systemd the state directory is what StateDirectory= makes of it.
    defaults = {
        one.variable: one.default_text if one.name != "state_dir" else "/var/lib/ollama-metrics"
        for one in SETTINGS
        if one.name != "config"
    }
    assert shown == defaults
    page = (REPOSITORY / "docs" / "OPERATIONS.md").read_text("utf-8")
    assert (
        dict(re.findall(r"^\| `(OLLAMA_METRICS_\w+)` \| (\S+) \|", page, re.MULTILINE)) == defaults
    )


def test_each_default_in_the_settings_file_would_be_accepted() -> None:
    """With every comment sign taken away the settings file is still a valid one."""
    text = (UNITS / "environment").read_text("utf-8")
    values = parse_config_file(
        re.sub("^#(OLLAMA_)", r"\1", text, flags=re.MULTILINE), "environment"
    )
    for setting in SETTINGS:
        if setting.name != "config":
            setting.parse(values[setting.variable])


def test_exposure_and_that_each_point_left_has_its_reason(analyze: str) -> None:
    """The exposure is at most 1.5, and what systemd-analyze marks is, all of it, in the table of docs/OPERATIONS.md."""
    process = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", "--threshold=15", str(UNITS / "ollama-metrics.service")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", process.stdout)
    assert match
    assert float(match[1]) <= 1.5
    page = (REPOSITORY / "docs" / "OPERATIONS.md").read_text("utf-8")
    assert f"puts the exposure at {match[1]} " in page
    table = page[page.index("## What the sandbox leaves open") :]
    marked = re.findall(r"^✗ (\S+)", process.stdout, re.MULTILINE)
    assert marked
    for name in marked:
        assert f"`{name}`".replace("|", "\\|") in table


def test_every_relaxation_has_its_reason_on_the_line_above() -> None:
    """In the sandbox each setting that is looser than the tightest one has a comment directly above it."""
    lines = (UNITS / "ollama-metrics.service").read_text("utf-8").splitlines()
    loose = re.compile(
        r"^(PrivateDevices=no|DeviceAllow=|ExecPaths=|NoExecPaths=|ProcSubset=all|RestrictAddressFamilies="
        r"|PrivateUsers=no|SupplementaryGroups=)"
    )
    found = [number for number, line in enumerate(lines) if loose.match(line)]
    assert len(found) >= 8
    for number in found:
        above = lines[number - 1]
        assert above.startswith(("#", "NoExecPaths=")), lines[number]


@pytest.mark.parametrize("unit", ["ollama-metrics.service", "ollama-metrics.socket"])
def test_systemd_knows_every_key(analyze: str, unit: str) -> None:
    """systemd-analyze verify has nothing to say but that the command is not installed (its exit code is 0 for all)."""
    process = subprocess.run(
        [analyze, "verify", *(str(UNITS / name) for name in ("ollama-metrics.service", unit))],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    said = [line for line in process.stderr.splitlines() if "is not executable" not in line]
    assert said == []
