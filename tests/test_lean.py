"""What the daemon keeps out of its memory, and that nothing is lost by it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import ollama_metrics
from ollama_metrics.lean import DEFERRED

# Serves as the command does; once it listens, a thread asks for every page, writes down which
# modules have really been imported, and ends it as systemd would.
DAEMON = """
import os, re, signal, sys, threading

listening = threading.Event()

class Log:
    text = ""
    def fileno(self):
        raise OSError("no file is behind it")

    def write(self, text):
        self.text += text
        if not text.startswith("ollama-metrics: "):
            sys.__stderr__.write(text)
        if "listening" in self.text:
            listening.set()

    def flush(self):
        pass

def ask():
    listening.wait(30)
    import socket  # now, for it imports what the daemon does without
    port = int(re.search(r"listening on http://127.0.0.1:(\\d+)", sys.stderr.text).group(1))
    real = set()
    # At last with a query, which is what takes urllib.parse.
    for target in ("/metrics", "/health", "/health/ollama", "/-/ready", "/-/healthy", "/", "/nothing",
                   "/metrics?format=prometheus", "/metrics?format=openmetrics", "/metrics?window=60"):
        if "?" in target and not real:
            real = {n for n, m in sys.modules.items() if type(m).__name__ != "Deferred"}
            assert "urllib.parse" not in real
        with socket.create_connection((b"127.0.0.1", port)) as client:
            client.sendall(f"GET {target} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n".encode())
            assert client.recv(65536).startswith(b"HTTP/1.1 ")
    later = {n for n, m in sys.modules.items() if type(m).__name__ != "Deferred"} - real
    sys.stdout.write("\\n".join(sorted(real | later - {"urllib.parse"})))
    os.kill(os.getpid(), signal.SIGTERM)

sys.stderr = Log()
sys.argv = ["ollama-metrics", "serve", "--listen", "127.0.0.1:0", "--interval", "0.1"]
threading.Thread(target=ask, daemon=True).start()
from ollama_metrics.cli import main
sys.exit(main())
"""


# Where this package and psutil are. Interpreters are started without site (-S), for an editable
# installation, a debugger or a coverage tool has modules of its own imported there.
PATH = os.pathsep.join(
    str(Path(str(module.__file__)).parents[1]) for module in (ollama_metrics, psutil)
)


def python(code: str, **variables: str) -> str:
    """What a fresh interpreter prints that runs `code`; fails when that fails or warns."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
    process = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code],
        env={**inherited, "PYTHONPATH": PATH, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, ""), process
    return process.stdout


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a daemon that has served every page has imported."""
    home = tmp_path_factory.mktemp("home")
    return set(python(DAEMON, HOME=str(home)).split())


def driver_library() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


# What psutil makes real use of as long as it runs on Python 2 too (before 7.0).
OLD_PSUTIL = {"shutil", "subprocess", "tokenize"}
# What the standard library itself makes use of as it is imported (annotationlib, for dataclasses).
NEW_PYTHON = {"ast"} if sys.version_info >= (3, 14) else set()


@pytest.mark.parametrize(
    "name",
    [
        *("typing", "logging", "asyncio", "concurrent", "multiprocessing", "pickle", "decimal"),
        *("argparse", "gettext", "unittest", "xml", "importlib.metadata", "idna"),
        *("encodings.idna", "http.cookies", "ctypes.util", "ast", "tokenize", "zipfile"),
        *(name for name in DEFERRED if name != "html"),
    ],
)
def test_the_daemon_does_without(modules: set[str], name: str) -> None:
    """A daemon that has served every page has not imported (or has let go of) what it has no use for."""
    assert "ollama_metrics.server" in modules
    assert name not in modules - NEW_PYTHON - (OLD_PSUTIL if "psutil._compat" in modules else set())


@pytest.mark.parametrize("name", ["heartbeat", "renewal", "handover", "config_file", "reference"])
def test_a_daemon_that_nobody_manages_does_without(modules: set[str], name: str) -> None:
    """What a service manager, a file of settings or SIGHUP need is not there before one of them is."""
    assert "ollama_metrics.service_manager" in modules
    assert f"ollama_metrics.{name}" not in modules


@pytest.mark.skipif(driver_library(), reason="there is an NVIDIA library here")
def test_a_host_without_the_drivers_library_does_without_its_binding(modules: set[str]) -> None:
    """pynvml costs megabytes that a host without NVIDIA's library need not spend."""
    assert "ollama_metrics.nvml" in modules
    assert "pynvml" not in modules


def test_everything_that_is_imported_is_needed(modules: set[str]) -> None:
    """The daemon consists of fewer modules than http.server and psutil have by themselves."""
    code = "import http.server, psutil, json, sys; print(len(sys.modules))"
    own = {name for name in modules if name.startswith("ollama_metrics")}
    assert len(modules - own) < int(python(code))


def test_importing_the_package_costs_nothing() -> None:
    """`import ollama_metrics` imports no other module, starts no thread and defers nothing."""
    code = """
import __future__, json, sys, threading
before = set(sys.modules)
import ollama_metrics
new = set(sys.modules) - before
print(json.dumps([sorted(new), threading.active_count(), ollama_metrics.__all__]))
"""
    new, threads, names = json.loads(python(code))
    assert new == ["ollama_metrics"]
    assert threads == 1
    assert {"OllamaGPUMonitor", "__version__"} <= set(names)


def test_importing_every_module_starts_no_thread_and_defers_nothing() -> None:
    """A program that uses the package as a library keeps its modules as they are."""
    code = """
import importlib, os, pkgutil, sys, threading
import ollama_metrics
files = set(os.listdir("/proc/self/fd"))
for module in pkgutil.iter_modules(ollama_metrics.__path__):
    if module.name != "__main__":
        importlib.import_module("ollama_metrics." + module.name)
assert threading.active_count() == 1
assert set(os.listdir("/proc/self/fd")) == files
assert "pynvml" not in sys.modules
print(sum(type(module).__name__ == "Deferred" for module in sys.modules.values()))
"""
    assert python(code) == "0\n"


DEFER = "from ollama_metrics.lean import Deferred, defer; import sys\n"


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("ssl", "ssl.create_default_context().check_hostname is True"),
        ("bz2", "bz2.decompress(bz2.compress(b'x')) == b'x'"),
        ("lzma", "lzma.decompress(lzma.compress(b'x')) == b'x'"),
        ("inspect", "str(inspect.signature(lambda a, b=1: 0)) == '(a, b=1)'"),
        ("shutil", "shutil.which('sh') is not None"),
        ("fnmatch", "fnmatch.fnmatch('a.py', '*.py')"),
        ("mimetypes", "mimetypes.guess_type('a.html')[0] == 'text/html'"),
        ("html", "html.escape('<') == '&lt;'"),
        ("random", "0 <= random.random() < 1"),
        ("datetime", "datetime.timedelta(days=1).total_seconds() == 86400"),
        ("calendar", "calendar.isleap(2024)"),
        ("subprocess", "subprocess.run(['true'], check=True).returncode == 0"),
        ("glob", "glob.glob('/proc/self/stat') == ['/proc/self/stat']"),
        ("ipaddress", "ipaddress.ip_address('::1').is_loopback"),
        ("copy", "copy.copy([1]) == [1]"),
        ("array", "array.array('i', [1]).itemsize == 4"),
        ("urllib.parse", "urllib.parse.unquote('%41') == 'A'"),
        ("email.header", "str(email.header.Header('a')) == 'a'"),
        ("email.quoprimime", "email.quoprimime.quote('=') == '=3D'"),
        ("email.base64mime", "email.base64mime.body_encode(b'a') == 'YQ==\\n'"),
        ("email.encoders", "email.encoders.encode_noop('') is None"),
        ("email._encoded_words", "email._encoded_words.decode_q(b'a')[0] == b'a'"),
        ("quopri", "quopri.decodestring('=41') == b'A'"),
        ("base64", "base64.b64decode('QQ==') == b'A'"),
        ("binascii", "binascii.hexlify(b'A') == b'41'"),
        ("string", "string.digits == '0123456789'"),
    ],
)
def test_what_is_deferred_works_when_it_is_used(name: str, use: str) -> None:
    """The first use of a deferred module imports the real one, which from then on is the one in sys.modules."""
    code = f"""
defer(["{name}"])
import {name}
assert type({name}) is Deferred and sys.modules["{name}"] is {name}
assert {use}
assert type(sys.modules["{name}"]) is not Deferred
assert {name}.__spec__.name == "{name}"
assert {use}
print("used")
"""
    assert python(DEFER + code) == "used\n"


def test_the_list_of_what_is_deferred_is_tested() -> None:
    """Each module of the list is used by the test above."""
    (mark,) = test_what_is_deferred_works_when_it_is_used.pytestmark  # type: ignore[attr-defined]
    assert tuple(name for name, _ in mark.args[1]) == DEFERRED


def test_functions_that_are_imported_by_name_come_later() -> None:
    """`from X import name` loads nothing where the name is in the list; the call does, and is the real one's."""
    code = """
defer()
from urllib.parse import urlsplit
from email.encoders import encode_7or8bit
from email._encoded_words import decode_b
from email.message import Message
names = ("urllib.parse", "email.encoders", "email._encoded_words")
assert [type(sys.modules[name]) for name in names] == [Deferred] * 3
assert urlsplit("http://a:1/b").port == 1
assert decode_b(b"QQ==")[0] == b"A"
message = Message()
message.set_payload("a")
encode_7or8bit(message)
assert message["Content-Transfer-Encoding"] == "7bit"
assert Deferred not in [type(sys.modules[name]) for name in names]
import urllib.parse
assert urllib.parse.urlsplit is sys.modules["urllib.parse"].urlsplit is not urlsplit
print("called")
"""
    assert python(DEFER + code) == "called\n"


def test_names_can_be_imported_from_a_deferred_module() -> None:
    """`from X import name`, `import X.part` and `from X import *` are real use."""
    code = """
defer(["html", "fnmatch", "random"])
from fnmatch import fnmatch
import html.entities
from random import *
assert fnmatch("a", "a") and html.entities.name2codepoint["amp"] == 38 and 0 <= random() < 1
assert not [n for n in ("html", "fnmatch", "random") if type(sys.modules[n]) is Deferred]
print("imported")
"""
    assert python(DEFER + code) == "imported\n"


def test_making_dataclasses_does_not_load_inspect() -> None:
    """Python 3.13 asks inspect for each dataclass's annotations, and gets them without loading it."""
    code = """
defer(["inspect"])
from dataclasses import dataclass
import inspect

@dataclass(frozen=True)
class Base:
    '''A documented class.'''
    x: int

@dataclass(frozen=True)
class Point(Base):
    '''Another.'''
    y: int = 2

assert type(sys.modules["inspect"]) is Deferred
assert (Point(1).x, Point(1).y) == (1, 2)
if (3, 10) <= sys.version_info < (3, 14):
    assert inspect.get_annotations(Point) == {"y": int}
    assert type(sys.modules["inspect"]) is Deferred
    assert inspect.isclass(Point)
    assert inspect.get_annotations(Point) == {"y": int}
    assert inspect.get_annotations is sys.modules["inspect"].get_annotations
print("made")
"""
    assert python(DEFER + code) == "made\n"


def test_looking_at_a_deferred_module_does_not_load_it() -> None:
    """Who walks through sys.modules, as warnings and pickle do, loads nothing."""
    code = """
defer(["ssl"])
for module in list(sys.modules.values()):
    getattr(module, "__file__", None), getattr(module, "__warningregistry__", None), repr(module)
assert type(sys.modules["ssl"]) is Deferred and "_ssl" not in sys.modules
print("looked")
"""
    assert python(DEFER + code) == "looked\n"


def test_a_name_that_is_not_there_is_missing_as_ever() -> None:
    """A wrong name in a deferred module is an AttributeError, and the module is then the real one."""
    code = """
defer(["glob"])
import glob
try:
    glob.nonsense
except AttributeError as error:
    print(error)
assert glob.glob("/nothing/*") == []
"""
    assert "nonsense" in python(DEFER + code)


def test_two_threads_may_be_the_first() -> None:
    """Threads that use a deferred module at the same time both get the real one."""
    code = """
import threading
defer(["ssl", "datetime", "random"])
import ssl, datetime, random
start, seen = threading.Barrier(8), []

def use():
    start.wait()
    seen.append((ssl.CERT_NONE, datetime.timedelta(1), random.randrange(1)))

threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(seen))
"""
    assert python(DEFER + code) == "8\n"


def test_a_module_that_is_loaded_already_stays() -> None:
    """`defer` never takes a real module away."""
    code = """
import random
defer()
import random as again
print(again is random and type(random) is not Deferred)
"""
    assert python(DEFER + code) == "True\n"


def test_compiled_files_are_found_without_the_source_folder_in_the_path(tmp_path: Path) -> None:
    """The command runs from any directory."""
    process: Any = subprocess.run(
        [sys.executable, "-m", "ollama_metrics", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
