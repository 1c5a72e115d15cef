"""install.sh on a real systemd: installing, upgrading, failing, and that nothing of it is left behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Callable

import pytest
from installed import CHECKOUT, CONFIG, SERVICE, WHEELHOUSE, Host

pytestmark = [pytest.mark.booted, pytest.mark.timeout(300)]

Boot = Callable[..., AbstractContextManager[Host]]
OPT = "/opt/ollama-metrics"


@pytest.fixture
def fresh(booted_host: Boot) -> Iterator[Host]:
    """A machine without the agent, for one test."""
    with booted_host() as host:
        yield host


@pytest.fixture(scope="module")
def installed(booted_host: Boot) -> Iterator[Host]:
    """A machine with the agent; what a test changes in it, it puts back."""
    with booted_host() as host:
        host.first = host.install()  # type: ignore[attr-defined]
        yield host


def refused(process: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one sentence of an installation that failed."""
    assert process.returncode == code, (process.stdout, process.stderr)
    lines = [line for line in process.stderr.splitlines() if line.startswith("install.sh: ")]
    assert len(lines) == 1, process.stderr
    assert "Not undone" not in process.stderr
    return lines[0]


# -- installing --------------------------------------------------------------------------------------------------------


def test_it_ends_with_the_answer_and_three_commands(installed: Any) -> None:
    """The last thing that an operator sees is /metrics' answer and how to see the status, the log and the settings."""
    said = installed.first.stdout
    assert '"cpu_percent"' in said
    for command in (f"systemctl status {SERVICE}", f"journalctl -u {SERVICE}", CONFIG):
        assert command in said


def test_uninstall_leaves_nothing_behind(fresh: Host) -> None:
    """File by file and user by user, the host is after install, upgrade and `--uninstall --purge` what it was."""
    before = fresh.snapshot()
    fresh.install("--listen", "127.0.0.1:11435", "--socket")
    fresh.install()
    assert fresh.changes(before) != []
    fresh.run(f"{OPT}/install.sh", "--uninstall", "--purge", timeout=120)
    assert fresh.changes(before) == []
    assert fresh.shell(f"systemctl list-units --all --no-legend '{SERVICE}*'") == ""


def test_uninstall_keeps_settings_and_state(fresh: Host) -> None:
    """Without --purge the settings and the state stay, and the next installation finds them."""
    fresh.install("--window", "30")
    fresh.run(f"{CHECKOUT}/install.sh", "--uninstall", timeout=120)
    assert "OLLAMA_METRICS_WINDOW" in fresh.read(CONFIG)
    assert fresh.shell(f"ls {OPT} 2>&1 || :").startswith("ls: cannot access")
    fresh.install()
    assert fresh.metrics()["window_seconds"] == 30


def test_a_dry_run_changes_nothing(fresh: Host) -> None:
    """--dry-run prints the steps and changes no file; it needs no root."""
    before = fresh.snapshot()
    said = fresh.install("--dry-run", "--listen", "127.0.0.1:9").stdout
    assert "venv" in said
    assert "systemctl" in said
    as_nobody = fresh.run(
        "setpriv", "--reuid", "nobody", "--clear-groups", f"{CHECKOUT}/install.sh", "--dry-run"
    )
    assert "systemctl" in as_nobody.stdout
    assert fresh.changes(before) == []


# -- the Ollama that is there ------------------------------------------------------------------------------------------


def test_an_ollama_on_the_host_is_expected_and_its_requests_are_counted(fresh: Host) -> None:
    """Where there is an ollama.service, one that has never answered is failing, and requests are counted from its
    journal, without an option; uninstalled, nothing of that is left in the settings."""
    fresh.add_ollama("--access-log")
    fresh.shell("systemctl stop ollama")
    said = fresh.install("--ollama-grace", "0").stdout
    assert "OLLAMA_METRICS_OLLAMA is http://127.0.0.1:11434" in said
    assert "it does not answer there now" in said
    assert fresh.setting("OLLAMA_METRICS_OLLAMA") == "http://127.0.0.1:11434"
    assert fresh.setting("OLLAMA_METRICS_OLLAMA_LOG") == "journal:ollama.service"
    fresh.wait(lambda: fresh.metrics()["status"] == "failing")
    fresh.shell("systemctl start ollama")
    fresh.wait(lambda: fresh.metrics()["status"] == "ok")
    fresh.wait(lambda: fresh.metrics()["collectors"]["ollama_log"]["success"])
    body = '{"options": {"num_predict": 1}}'
    fresh.shell(f"curl -sf http://127.0.0.1:11434/api/generate -d '{body}'")
    fresh.wait(lambda: fresh.metrics()["ollama"]["requests"]["count"] == 1)
    fresh.run(f"{OPT}/install.sh", "--uninstall", timeout=120)
    assert fresh.setting("OLLAMA_METRICS_OLLAMA") is None
    assert fresh.setting("OLLAMA_METRICS_OLLAMA_LOG") is None
    assert fresh.setting("OLLAMA_METRICS_OLLAMA_GRACE") == "0"


def test_where_ollama_is_follows_its_unit_until_an_operator_says_it(fresh: Host) -> None:
    """An upgrade follows the unit's OLLAMA_HOST; what an operator has taken out or has set, by hand or by option and
    be it the same, stays through upgrades, and what was set through uninstalling."""
    ollama = "OLLAMA_METRICS_OLLAMA"
    fresh.add_ollama()
    fresh.install()
    assert fresh.setting(ollama) == "http://127.0.0.1:11434"
    listen_on(fresh, ":11440")
    fresh.install()
    assert fresh.setting(ollama) == "http://127.0.0.1:11440"

    fresh.shell(f"sed -i 's/^{ollama}=.*/#&/' {CONFIG}")
    fresh.install()
    assert fresh.setting(ollama) is None
    fresh.shell(f"echo \"{ollama}='http://localhost:11440'\" >> {CONFIG}")
    fresh.install()
    assert fresh.setting(ollama) == "http://localhost:11440"

    listen_on(fresh, ":11434")
    fresh.install("--ollama", "http://127.0.0.1:11440")
    assert fresh.setting(ollama) == "http://127.0.0.1:11440"
    fresh.install()
    assert fresh.setting(ollama) == "http://127.0.0.1:11440"
    fresh.run(f"{OPT}/install.sh", "--uninstall", timeout=120)
    assert fresh.setting(ollama) == "http://127.0.0.1:11440"


def listen_on(host: Host, address: str) -> None:
    """Have Ollama listen elsewhere, as its manual says."""
    host.write(
        "/etc/systemd/system/ollama.service.d/override.conf",
        f"[Service]\nEnvironment=OLLAMA_HOST={address}\n",
    )
    host.shell("systemctl daemon-reload; systemctl restart ollama")


# -- upgrading ---------------------------------------------------------------------------------------------------------


def test_an_upgrade_turns_nobody_away(installed: Host) -> None:
    """Under 50 polls a second an upgrade to another version fails no poll; the process stays, the version changes."""
    pid = installed.pid
    version = f"{CHECKOUT}/ollama_metrics/__init__.py"
    text = installed.read(version)
    try:
        newer = text.replace('"0.', '"7.')
        assert newer != text
        installed.write(version, newer)
        wheel(installed)
        with installed.polled() as polled:
            installed.install()
        assert polled.result["failed"] == []
        assert polled.result["polls"] > 100
        assert polled.result["kept_connections"] == 1
        assert installed.metrics()["agent"]["version"].startswith("7.")
        assert installed.pid == pid
    finally:
        installed.write(version, text)
        installed.install()
    assert not installed.metrics()["agent"]["version"].startswith("7.")


def wheel(host: Host) -> None:
    """Put this checkout's wheel into the wheelhouse, as `make wheelhouse` would."""
    source, version = host.machine.path(f"{CHECKOUT}/ollama_metrics/__init__.py").read_text(), ""
    if match := re.search(r'__version__ = "([^"]+)"', source):
        version = match[1]
    # A wheel is an archive of files: the one that is there under another version.
    host.run("/usr/bin/python3", "-c", RENAME_WHEEL, WHEELHOUSE, CHECKOUT, version)


RENAME_WHEEL = r"""
import base64, hashlib, pathlib, sys, zipfile
wheelhouse, checkout, version = sys.argv[1:]
old = sorted(pathlib.Path(wheelhouse).glob("ollama_metrics-*.whl"))[0]
old_version = old.name.split("-")[1]
new = old.with_name(old.name.replace(old_version, version, 1))
files = {}
with zipfile.ZipFile(old) as archive:
    for name in archive.namelist():
        content = archive.read(name)
        if name.startswith("ollama_metrics/"):
            content = (pathlib.Path(checkout) / name).read_bytes()
        if name.endswith("/METADATA"):
            content = content.replace(f"Version: {old_version}".encode(), f"Version: {version}".encode(), 1)
        files[name.replace(f"-{old_version}.dist-info", f"-{version}.dist-info")] = content
record = next(name for name in files if name.endswith("/RECORD"))
rows = []
for name, content in files.items():
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    rows.append(f"{name}," if name == record else f"{name},sha256={digest},{len(content)}")
    if name == record: rows[-1] += ","
files[record] = "\n".join(rows).encode()
with zipfile.ZipFile(new, "w") as archive:
    for name, content in files.items():
        archive.writestr(name, content)
"""


@pytest.mark.parametrize(
    ("broken", "how"),
    [
        ("__init__.py", "raise RuntimeError('this version is broken')\n"),
        ("endpoints.py", "raise RuntimeError('this version is broken')\n"),
    ],
)
def test_a_version_that_does_not_work_is_never_switched_to(
    installed: Host, broken: str, how: str
) -> None:
    """A new version that fails when it is tried is not switched to: no poll fails, exit 1, the old one goes on."""
    pid, before = installed.pid, installed.shell(f"readlink {OPT}/current")
    path = f"{CHECKOUT}/ollama_metrics/{broken}"
    text = installed.read(path)
    try:
        installed.write(path, text + how)
        wheel_in_place(installed)
        with installed.polled() as polled:
            sentence = refused(installed.install(check=False))
        assert polled.result["failed"] == []
        assert "new version" in sentence
        assert "settings" not in sentence
    finally:
        installed.write(path, text)
        wheel_in_place(installed)
    assert installed.shell(f"readlink {OPT}/current") == before
    assert installed.pid == pid


def wheel_in_place(host: Host) -> None:
    """The wheelhouse's wheel with the checkout's modules in it, under the version that it has."""
    source = host.read(f"{CHECKOUT}/ollama_metrics/__init__.py")
    match = re.search(r'__version__ = "([^"]+)"', source)
    assert match
    host.run("/usr/bin/python3", "-c", RENAME_WHEEL, WHEELHOUSE, CHECKOUT, match[1])


def test_a_version_that_does_not_get_ready_is_rolled_back(installed: Host) -> None:
    """A new version that passes when it is tried and is not ready as a service: the old one is back and answers."""
    before = installed.shell(f"readlink {OPT}/current")
    path = f"{CHECKOUT}/ollama_metrics/daemon.py"
    text = installed.read(path)
    try:
        # Only the daemon itself is broken: `once` and `check` work.
        installed.write(
            path,
            text.replace(
                "        self._take_signals()\n", "        raise RuntimeError('no daemon')\n", 1
            ),
        )
        assert "no daemon" in installed.read(path)
        wheel_in_place(installed)
        sentence = refused(installed.install("--timeout", "15", check=False))
        assert "ready" in sentence
    finally:
        installed.write(path, text)
        wheel_in_place(installed)
    assert installed.shell(f"readlink {OPT}/current") == before
    installed.wait_until_ready()
    assert installed.metrics()["status"] == "ok"
    assert len(installed.shell(f"ls {OPT}/versions").split()) <= 2


# -- what makes it fail, and what is left then: nothing ---------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(booted_host: Boot) -> Iterator[Host]:
    """A machine that no installation succeeds on; it stays as it was booted."""
    with booted_host() as host:
        host.before = host.snapshot()  # type: ignore[attr-defined]
        yield host


def unchanged(host: Any) -> None:
    assert host.changes(host.before) == []


def test_not_root(bare: Host) -> None:
    """An ordinary user is told to use sudo."""
    process = bare.run(
        "setpriv", "--reuid", "nobody", "--clear-groups", f"{CHECKOUT}/install.sh", check=False
    )
    assert "needs root" in refused(process)
    unchanged(bare)


def test_no_systemd(bare: Host) -> None:
    """Where no systemd runs (a container, say) it says so."""
    process = bare.run(
        "unshare", "--mount", "sh", "-c",
        f"mount -t tmpfs none /run/systemd && exec {CHECKOUT}/install.sh", check=False,
    )  # fmt: skip
    assert "systemd does not run here" in refused(process)
    unchanged(bare)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frobnicate"], "there is no option --frobnicate"),
        (["--listen"], "--listen needs a value"),
        (["--purge"], "--purge goes with --uninstall"),
        (["now"], "what is now?"),
    ],
)
def test_called_wrongly(bare: Host, arguments: list[str], said: str) -> None:
    """A mistake on the command line is one sentence and exit code 2."""
    process = bare.run(f"{CHECKOUT}/install.sh", *arguments, check=False)
    assert said in refused(process, code=2)


def test_a_setting_that_the_agent_would_refuse(bare: Host) -> None:
    """A value that is not usable is told in the agent's words, and nothing has changed."""
    sentence = refused(bare.install("--window", "soon", check=False))
    assert "'soon' is not usable" in sentence
    assert CONFIG in sentence
    unchanged(bare)


def test_an_ollama_that_the_agent_would_refuse(bare: Host) -> None:
    """An address of Ollama's that is not usable is told in the agent's words, and nothing has changed."""
    assert "'https://x' is not usable" in refused(
        bare.install("--ollama", "https://x", check=False)
    )
    unchanged(bare)


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ("", [], "OLLAMA is http://127.0.0.1:11434"),
        ("Environment=OLLAMA_HOST=0.0.0.0 A=1", [], "OLLAMA is http://127.0.0.1:11434"),
        ("Environment=A=1 OLLAMA_HOST=:11440", [], "OLLAMA is http://127.0.0.1:11440"),
        ("Environment='OLLAMA_HOST=[::]' 'B=x y'", [], "OLLAMA is http://[::1]:11434"),
        (
            "Environment=OLLAMA_HOST=:11440\nEnvironmentFile=-/run/ollama.env",
            [],
            "OLLAMA is http://192.0.2.7:11434",
        ),
        ("Environment=OLLAMA_HOST=https://x", [], "OLLAMA_HOST=https://x"),
        ("Environment=OLLAMA_HOST=https://x", ["--ollama", "auto"], "OLLAMA_LOG is journal"),
        ("StandardOutput=null", [], "OLLAMA is http://127.0.0.1:11434"),
        ("", ["--ollama", "none"], ""),
    ],
)
def test_what_ollamas_unit_says_of_it(
    bare: Host, lines: str, options: list[str], said: str
) -> None:
    """A dry run says where Ollama is expected, by the OLLAMA_HOST of its unit as Ollama itself reads it, and which
    log is read; neither where that cannot be, and nothing of what an option says."""
    unit = "/run/systemd/system/ollama.service"
    bare.write("/run/ollama.env", 'A=1\nOLLAMA_HOST="192.0.2.7"\n')
    bare.write(unit, f"[Service]\nExecStart=/bin/true\n{lines}\n")
    bare.shell("systemctl daemon-reload")
    try:
        out = bare.install("--dry-run", *options).stdout
    finally:
        bare.shell(f"rm {unit} /run/ollama.env; systemctl daemon-reload")
    assert said in out
    assert ("OLLAMA_METRICS_OLLAMA is" in out) == ("OLLAMA is" in said)
    logged = "StandardOutput" not in lines and "none" not in options
    assert ("OLLAMA_METRICS_OLLAMA_LOG is journal:ollama.service" in out) == logged


def test_an_address_that_is_none(bare: Host) -> None:
    """What firewalld would be told to let in has to be an address or a network."""
    assert "'balancer'" in refused(bare.install("--allow-from", "balancer", check=False))
    unchanged(bare)


def test_a_port_in_use(bare: Host) -> None:
    """With the port taken nothing is begun; the sentence names the port and whose it is."""
    with bare.popen(
        "/usr/bin/python3", "-c",
        "import socket; s = socket.create_server(('0.0.0.0', 11435)); print('taken', flush=True); input()",
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "taken\n"
        sentence = refused(bare.install(check=False))
    assert "nothing can listen on 0.0.0.0:11435" in sentence
    assert "python3" in sentence
    unchanged(bare)


def test_no_network_and_no_wheelhouse(bare: Host) -> None:
    """Where pip reaches no index it says how to do without, within a minute."""
    sentence = refused(bare.run(f"{CHECKOUT}/install.sh", check=False, timeout=120))
    assert "--wheelhouse" in sentence
    unchanged(bare)


def test_an_empty_wheelhouse(bare: Host) -> None:
    """A wheelhouse without this version's wheel is told before anything is done."""
    sentence = refused(bare.run(f"{CHECKOUT}/install.sh", "--wheelhouse", "/opt", check=False))
    assert "there is no wheel of ollama-metrics" in sentence
    unchanged(bare)


def test_a_python_that_is_too_old(bare: Host) -> None:
    """A Python below 3.9 is refused with its version."""
    # No such Python is to be had from Debian 12: this is today's with another number.
    path = "/usr/local/bin/python3.6"
    bare.write(
        path,
        "#!/bin/sh\n"
        'exec /usr/bin/python3 -I -c "import sys; sys.version_info = (3, 6, 8); exec(sys.argv[1])" "$3"\n',
    )
    bare.shell(f"chmod 755 {path}")
    try:
        sentence = refused(bare.install("--python", path, check=False))
    finally:
        bare.shell(f"rm {path}")
    assert "3.6.8" in sentence
    assert "older than 3.9" in sentence
    unchanged(bare)


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=20m", "MB free"), ("size=400m,nr_inodes=200", "more files")],
    ids=["bytes", "files"],
)
def test_a_disk_that_is_too_small(bare: Host, options: str, said: str) -> None:
    """A disk that has not the room, for bytes or for files, is told before anything is done."""
    bare.shell(f"mount -t tmpfs -o {options} none /opt")
    try:
        assert said in refused(bare.install(check=False))
        assert bare.shell("ls -A /opt") == ""
    finally:
        bare.shell("umount /opt")
    unchanged(bare)


def test_a_disk_that_becomes_full(bare: Host) -> None:
    """A disk that becomes full midway is one sentence about the disk, and what was begun is gone."""
    bare.shell("mount -t tmpfs -o size=200m none /opt")
    try:
        process = begin(bare)
        bare.shell("head -c 300M /dev/zero > /opt/filled 2>/dev/null || :")
        out, err = process.communicate(timeout=60)
        finished = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        assert "the disk of /opt/ollama-metrics became full" in refused(finished)
        assert bare.shell("ls -A /opt") == "filled"
    finally:
        bare.shell("umount /opt")
    unchanged(bare)


def test_ended_by_a_signal_it_undoes_what_it_did(bare: Host) -> None:
    """SIGTERM in the middle leaves nothing behind."""
    process = begin(bare)
    bare.shell("pkill -TERM -o -f '[i]nstall.sh --wheelhouse'")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "ended by a signal" in err
    unchanged(bare)


def test_half_an_installation_is_cleared_away_by_the_next(fresh: Host) -> None:
    """After a run that was killed in the middle the next one says so, clears it away and installs."""
    before = fresh.snapshot()
    process = begin(fresh)
    fresh.shell(
        "pkill -KILL -f '[i]nstall.sh --wheelhouse'; pkill -KILL -f '[o]pt/ollama-metrics/' || :"
    )
    process.communicate(timeout=60)
    assert fresh.changes(before) != []
    assert "An earlier run was cut off" in fresh.install().stdout
    fresh.wait_until_ready()
    fresh.run(f"{OPT}/install.sh", "--uninstall", "--purge", timeout=120)
    assert fresh.changes(before) == []


def test_a_folder_that_is_not_the_installers(bare: Host) -> None:
    """Where /opt/ollama-metrics is somebody's own (a checkout, say) it is refused and left alone."""
    bare.shell(f"mkdir {OPT}; echo mine > {OPT}/notes.txt")
    try:
        assert "is not this installer's" in refused(bare.install(check=False))
        assert bare.read(f"{OPT}/notes.txt") == "mine\n"
    finally:
        bare.shell(f"rm -r {OPT}")
    unchanged(bare)


def test_state_of_before_outlives_a_run_that_fails(fresh: Host) -> None:
    """What the agent remembers (GPUs seen) is kept by --uninstall, and by an installation that fails after it."""
    fresh.install()
    fresh.run(f"{CHECKOUT}/install.sh", "--uninstall", timeout=120)
    fresh.write("/var/lib/ollama-metrics/gpus-expected", "4\n")
    path = f"{CHECKOUT}/ollama_metrics/daemon.py"
    text = fresh.read(path)
    fresh.write(
        path, text.replace("        self._take_signals()\n", "        raise RuntimeError\n", 1)
    )
    wheel_in_place(fresh)
    refused(fresh.install("--timeout", "5", check=False))
    assert fresh.read("/var/lib/ollama-metrics/gpus-expected") == "4\n"


def test_two_ports_are_its_own_when_it_is_upgraded(fresh: Host) -> None:
    """An agent that listens on two ports is upgraded like any other."""
    fresh.install("--listen", "0.0.0.0:11435", "--listen", "127.0.0.1:11440")
    fresh.install()
    assert fresh.get("/-/ready", 11440)


def test_two_at_once(bare: Host) -> None:
    """While one runs another one refuses to."""
    process = begin(bare)
    try:
        sentence = refused(bare.install(check=False))
        assert "another install.sh runs" in sentence
        # It has not undone what the other one did.
        assert bare.shell(f"ls {OPT}/versions/*/bin/python")
    finally:
        bare.shell("pkill -TERM -o -f '[i]nstall.sh --wheelhouse'")
        process.communicate(timeout=60)
    unchanged(bare)


def begin(host: Host) -> Any:
    """An installation that has come as far as making its virtual environment."""
    process = host.machine.popen(
        f"{CHECKOUT}/install.sh", "--wheelhouse", WHEELHOUSE,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    host.wait(lambda: host.shell(f"ls {OPT}/versions/*/bin/python 2>/dev/null || :"))
    return process
