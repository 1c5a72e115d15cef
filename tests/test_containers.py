"""The Containerfile: its linter, its steps run here in place of an image, and what comes of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from ports import free_port

from ollama_metrics.fleet import AGENT_PORT

pytestmark = pytest.mark.deploy
REPOSITORY = Path(__file__).parents[1]
CONTAINERFILE = REPOSITORY / "Containerfile"
PREFIX = "/opt/ollama-metrics"
STATE = "/var/lib/ollama-metrics"
# Both ways of having Ollama's log in a file as well: the script, and its default for the log's place.
LOG = "/var/log/ollama/ollama.log"


class Step(NamedTuple):
    """One instruction: of which stage it is, its word, and the rest with its lines joined."""

    stage: int
    word: str
    rest: str


def steps() -> list[Step]:
    """The instructions of the Containerfile; stage 0 is what stands before the first FROM."""
    text = re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text("utf-8"), flags=re.MULTILINE)
    found, stage = [], 0
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            stage += word == "FROM"
            found.append(Step(stage, word, rest))
    return found


def only(word: str, stage: int) -> str:
    """The one instruction of this kind in a stage."""
    (found,) = (step.rest for step in steps() if (step.stage, step.word) == (stage, word))
    return found


def variables() -> dict[str, str]:
    """ENV of the image."""
    return dict(part.split("=", 1) for part in shlex.split(only("ENV", 2)))


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.component
def test_hadolint_has_nothing_to_say(component: Callable[[str], str], tmp_path: Path) -> None:
    """The linter is silent about the Containerfile, and not by nature."""
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = component(str(beside) if beside.exists() else "hadolint")

    def lint(path: Path) -> tuple[int, str]:
        done = subprocess.run(
            [hadolint, str(path)], capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, done.stdout + done.stderr

    assert lint(CONTAINERFILE) == (0, "")
    worse = tmp_path / "Containerfile"
    worse.write_text(CONTAINERFILE.read_text("utf-8").replace("${PYTHON}-slim-bookworm", "latest"))
    assert lint(worse)[0] != 0


def test_the_context_is_what_is_copied() -> None:
    """Docker and Podman leave out the same, which is all but what the Containerfile copies; that is there."""
    ignored = (REPOSITORY / ".containerignore").read_text("utf-8")
    assert (REPOSITORY / ".dockerignore").read_text("utf-8") == ignored
    let_in = [line[1:] for line in ignored.splitlines() if line.startswith("!")]
    assert ignored.splitlines()[1] == "*"
    copied = [
        name
        for step in steps()
        if step.word == "COPY" and not step.rest.startswith("--from=")
        for name in step.rest.split()[:-1]
    ]
    assert sorted(copied) == sorted(let_in)
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []


def test_the_image_is_nobody_in_particular() -> None:
    """It runs as a number that is not root's, from images of one version that is named, and keeps its state."""
    user, group = map(int, only("USER", 2).split(":"))
    assert (user, group) == (11435, 11435)
    (run,) = (step.rest for step in steps() if (step.stage, step.word) == (2, "RUN"))
    assert f"install -d -o {user} -g {group} -m 0755 {STATE}" in run
    assert only("VOLUME", 2) == STATE == variables()["OLLAMA_METRICS_STATE_DIR"]
    assert only("EXPOSE", 2) == str(AGENT_PORT)
    bases = [step.rest.split()[0] for step in steps() if step.word == "FROM"]
    assert bases == ["docker.io/library/python:${PYTHON}-slim-bookworm"] * 2
    assert re.fullmatch(r"PYTHON=3\.\d+", only("ARG", 0))


def test_the_gpus_are_only_looked_at() -> None:
    """NVIDIA's runtime is asked for NVML on all GPUs, and for no CUDA."""
    assert variables()["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables()["NVIDIA_DRIVER_CAPABILITIES"] == "utility"


# -- what comes of it ------------------------------------------------------------------------------


def here(command: str, prefix: Path) -> str:
    """A command of the image's with the paths and the Python of this machine."""
    return command.replace(PREFIX, str(prefix)).replace("python3 -m ", f"{sys.executable} -m ")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage leaves behind, made by its own commands."""
    if int(version("pip").split(".")[0]) < 23:
        pytest.skip("pip is older than those of Python's images: it has no --python")
    folder = tmp_path_factory.mktemp("built")
    source, prefix = folder / "source", folder / "prefix"
    source.mkdir()
    for step in steps():
        if (step.stage, step.word) == (1, "COPY"):
            *names, target = step.rest.split()
            for name in names:
                if (REPOSITORY / name).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(REPOSITORY / name, source / target, ignore=ignored)
                else:
                    shutil.copy(REPOSITORY / name, source / target)
    subprocess.run(
        ["sh", "-euc", here(only("RUN", 1), prefix)], cwd=source, check=True, timeout=300
    )
    return prefix


@pytest.mark.component
@pytest.mark.timeout(300)
def test_all_modules_are_compiled_for_good(built: Path) -> None:
    """Each module has its .pyc, which does not ask for its source's time; pip is not there."""
    libraries = built / "lib"
    sources = [path for path in libraries.rglob("*.py") if "site-packages" in path.parts]
    assert {path.parts[-2] for path in sources} >= {"ollama_metrics", "psutil"}
    assert not list(libraries.rglob("pip"))
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == 0b01, compiled  # a hash that is not checked: PEP 552


class ImagesAgent:
    """ENTRYPOINT and CMD with the image's variables, on a port of its own; its state is in `folder`."""

    def __init__(self, built: Path, folder: Path) -> None:
        self.port = free_port()
        command = [*json.loads(only("ENTRYPOINT", 2)), *json.loads(only("CMD", 2))]
        settings = {
            **variables(),
            "PATH": f"{built}/bin:{os.environ['PATH']}",
            "OLLAMA_METRICS_STATE_DIR": str(folder),
            "OLLAMA_METRICS_LISTEN": f"127.0.0.1:{self.port}",
            "OLLAMA_METRICS_OLLAMA": "none",
        }
        self.environment = settings
        program = shutil.which(command[0], path=settings["PATH"])
        assert program == f"{built}/bin/ollama-metrics"
        self.process = subprocess.Popen(
            command, executable=program, env=settings, stderr=subprocess.PIPE, text=True
        )
        self.wait_for_line("listening on")

    def wait_for_line(self, words: str) -> None:
        """Read its log up to a line with these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return
        raise AssertionError(f"it has ended with {self.process.wait()}")

    def health_check(self) -> int:
        """The exit code of HEALTHCHECK."""
        command = json.loads(re.sub(r"^.*? CMD ", "", only("HEALTHCHECK", 2)))
        command = [part.replace("11435", str(self.port)) for part in command]
        return subprocess.run(
            command, executable=sys.executable, env=self.environment,
            stderr=subprocess.DEVNULL, timeout=10, check=False,
        ).returncode  # fmt: skip

    def close(self) -> None:
        """End it as an engine does; its exit code is 0."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        self.process.stderr.read()
        assert self.process.wait(10) == 0
        self.process.stderr.close()


@pytest.fixture
def images_agent(built: Path, tmp_path: Path) -> Iterator[ImagesAgent]:
    """The agent as the image starts it, on a host that has lost its GPU."""
    (tmp_path / "gpus-expected").write_text("1\n")
    agent = ImagesAgent(built, tmp_path)
    yield agent
    if agent.process.poll() is None:
        agent.close()


@pytest.mark.component
@pytest.mark.timeout(300)
def test_a_failing_host_is_no_unhealthy_container(images_agent: ImagesAgent) -> None:
    """The image serves as it is started; HEALTHCHECK is content with a host that fails, and not with no answer."""
    with pytest.raises(HTTPError) as failing:
        urlopen(f"http://127.0.0.1:{images_agent.port}/health", timeout=10)
    failing.value.close()
    assert failing.value.code == 503
    assert images_agent.health_check() == 0
    images_agent.close()
    assert images_agent.health_check() != 0


# -- Ollama's log ----------------------------------------------------------------------------------


def of_compose() -> str:
    return (REPOSITORY / "deploy" / "compose" / "ollama-serve.sh").read_text("utf-8")


def of_kubernetes() -> str:
    text = (REPOSITORY / "deploy" / "kubernetes" / "deployment" / "deployment.yaml").read_text()
    (ollama,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    assert ollama["command"][:2] == ["bash", "-euc"]
    return str(ollama["command"][2])


FAKE_OLLAMA = """\
#!/bin/sh
[ "$1" = serve ] || exit 9
trap 'echo "ended by TERM" >&2; exit 0' TERM
echo 'on stdout'; echo '[GIN] on stderr' >&2
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("script", [of_compose, of_kubernetes])
def test_ollamas_log_is_in_a_file_as_well(script: Callable[[], str], tmp_path: Path) -> None:
    """What Ollama writes goes to the container's log and the file; the signal that ends it reaches Ollama itself.

    A file that has grown large begins anew, and is still written to.
    """
    log, tools = tmp_path / "ollama.log", tmp_path / "bin"
    log.write_text("from the last start\n")
    tools.mkdir()
    (tools / "ollama").write_text(FAKE_OLLAMA)
    (tools / "sleep").write_text(
        '#!/bin/sh\nexec /bin/sleep "$([ "$1" = 60 ] && echo 0.2 || echo "$1")"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    text = script().replace(LOG, str(log)).replace("50000000", "5000")
    process = subprocess.Popen(
        ["bash", "-euc", text],
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: {"on stdout", "[GIN] on stderr"} <= set(log.read_text().splitlines()))
        assert "from the last start" not in log.read_text()
        with log.open("a") as file:
            file.write("x" * 9999)
        wait_until(lambda: not log.read_text())
        os.kill(process.pid, signal.SIGTERM)
        wait_until(lambda: "ended by TERM" in log.read_text())
        assert "\0" not in log.read_text()
        assert process.wait(10) == 0
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert sorted(said) == ["[GIN] on stderr\n", "ended by TERM\n", "on stdout\n"]
    finally:
        os.killpg(
            process.pid, signal.SIGKILL
        )  # the loop that looks at the file goes with the container
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until(true_now: Callable[[], Any], patience: float = 10.0) -> None:
    """Ask until something is true."""
    deadline = time.monotonic() + patience
    while not true_now():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
