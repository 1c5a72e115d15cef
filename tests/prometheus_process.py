"""The real Prometheus in a process of its own, on a loopback port of its own, with any configuration."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from ports import free_port

PATIENCE = 20.0


class Found(NamedTuple):
    """One series of an answer to a query."""

    labels: dict[str, str]
    value: float


class PrometheusProcess:
    """A Prometheus that keeps its data in `folder`; a context manager. The constructor returns when it is ready.

    `configuration` is the text of prometheus.yml, or what is to stand in it (`scrape_job` makes a job);
    relative paths in it are below `folder`, and a folder serves one Prometheus. `port` may be one that
    its own configuration is to name. It looks for its first targets some 5 s after its start only.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        configuration: Union[str, Mapping[str, Any]],
        *options: str,
        port: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config, self._log_file = folder / "prometheus.yml", folder / "prometheus.log"
        if not isinstance(configuration, str):
            configuration = json.dumps(configuration)  # JSON is YAML
        self.config.write_text(configuration, "utf-8")
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={self.config}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--web.enable-lifecycle",
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        try:
            self.wait_until("ready", self._ready)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PrometheusProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, by force where it does not end by itself."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self) -> str:
        """What it has said so far."""
        return self._log_file.read_text("utf-8", "replace")

    def version(self) -> tuple[int, ...]:
        """Its version, major and minor."""
        return tuple(map(int, self.api("status/buildinfo")["version"].split(".")[:2]))

    def api(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API; a query that it refuses fails with its words."""
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise AssertionError(f"{path} {parameters}: {error.code} {said}") from None

    def query(self, expression: str, time: Optional[float] = None) -> list[Found]:
        """The series that an expression gives now, or at a Unix time; of a scalar one without labels."""
        at = {} if time is None else {"time": str(time)}
        data = self.api("query", query=expression, **at)
        if data["resultType"] == "scalar":
            return [Found({}, float(data["result"][1]))]
        return [Found(one["metric"], float(one["value"][1])) for one in data["result"]]

    def wait_for(
        self,
        expression: str,
        true_of: Callable[[list[Found]], object] = bool,
        patience: float = PATIENCE,
    ) -> list[Found]:
        """What an expression gives, as soon as `true_of` it: without one, as soon as it gives any series."""
        found: list[Found] = []

        def true_now() -> object:
            found[:] = self.query(expression)
            return true_of(found)

        self.wait_until(lambda: f"{expression}; it gives {found}", true_now, patience)
        return found

    def wait_until(
        self,
        what: Union[str, Callable[[], str]],
        true_now: Callable[[], object],
        patience: float = PATIENCE,
    ) -> None:
        """Ask until something is true; a failure says what it was, and what the log says."""
        deadline = time.monotonic() + patience
        while not true_now():
            assert self._process.poll() is None, f"Prometheus has ended; log:\n{self.log()}"
            if time.monotonic() > deadline:
                told = what if isinstance(what, str) else what()
                raise AssertionError(f"not within {patience} s: {told}; log:\n{self.log()}")
            threading.Event().wait(0.05)

    def _ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except (URLError, ConnectionError):  # among them HTTPError: it is there and not ready
            return False


def scrape_job(
    name: str,
    *ports: int,
    labels: Optional[Mapping[str, str]] = None,
    **parameters: str,
) -> dict[str, Any]:
    """An entry of scrape_configs for these ports of 127.0.0.1, with `parameters` in the URL."""
    targets = {"targets": [f"127.0.0.1:{port}" for port in ports], "labels": dict(labels or {})}
    params = {key: [value] for key, value in parameters.items()}
    return {"job_name": name, "params": params, "static_configs": [targets]}
