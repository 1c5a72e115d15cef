"""`ollama-metrics warm`: has Ollama load a model before the first request has to wait for it."""

from __future__ import annotations

import sys
import time

from .drain_command import duration, fail
from .errors import ConfigError, OllamaAnswer, OllamaDown, OllamaError
from .ollama_api import OllamaApi
from .ollama_stream import order, printable
from .ollama_url import from_ollama_host, parse_url
from .progress import Progress, size, span

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Optional

    from .ollama import Model
    from .ollama_url import OllamaUrl

EPILOG = """\
Ollama loads a model at its first request, which may take minutes. This has it
loaded before a balancer sends one. How long it is kept is said anew by each
request: OLLAMA_KEEP_ALIVE in Ollama's own environment holds for those that say
nothing.
A pull that fails is no failure if Ollama has the model: then that one is loaded.

examples:
  ollama-metrics warm llama3.2 --keep-alive 24h
  ollama-metrics warm llama3.1:70b --host gpu2 --pull
  ollama-metrics warm llama3.2 --wait 60 && ollama-metrics resume

Exit codes: 0 the model is loaded, 1 it is not, 2 bad usage, 130 ended by Ctrl-C.
"""
_MOST_NAME = 256
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.5
_FOREVER = -1
_NO_EMBEDDER = "does not support generate"


def add_options(parser: Any) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="MODEL", help="its name, such as llama3.2 or llama3.1:70b")
    parser.add_argument(
        "--host",
        metavar="URL",
        help="the Ollama to ask (default: OLLAMA_HOST, else http://127.0.0.1:11434)",
    )
    parser.add_argument(
        "--pull", action="store_true", help="pull it first, or its newer version if there is one"
    )
    parser.add_argument(
        "--keep-alive",
        metavar="TIME",
        help="keep it so long, such as 30m or 24h, or until a request says otherwise; -1: for ever "
        "(default: what Ollama is set to, by itself 5m)",
    )
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        default="10m",
        help="how long loading may take, and a pull be stuck (default: %(default)s)",
    )
    parser.add_argument(
        "--wait",
        metavar="TIME",
        default="0s",
        help="wait so long for an Ollama that does not answer yet (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing unless it fails")


def run(options: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Load the model; returns the exit code. Raises ConfigError."""
    url = _url(options["host"], environ)
    warming = Warming(
        url,
        _name(options["model"]),
        duration(options["timeout"], "--timeout"),
        _keep_alive(options["keep_alive"]),
        Progress(None if options["quiet"] else sys.stderr, environ),
    )
    wait = duration(options["wait"], "--wait", 0.0)
    refused = ""
    try:
        warming.await_ollama(wait)
        if options["pull"]:
            try:
                warming.pull()
            except OllamaError as error:
                refused = f"{warming.model} could not be pulled: {error}"
                warming.progress.end()
                fail(f"{refused}; trying what is there")
        said = warming.load()
    except OllamaDown as error:
        warming.progress.end()
        return fail(f"{error}; {_way_out(error, wait)}")
    except OllamaAnswer as error:
        warming.progress.end()
        return fail(warming.explain(error, bool(refused)))
    if not options["quiet"]:
        _say(said)
    return 0


class Warming:
    """What is to be loaded, and where."""

    def __init__(
        self,
        url: OllamaUrl,
        model: str,
        seconds: float,
        keep_alive: Optional[int],
        progress: Progress,
    ) -> None:
        self.url, self.model, self.progress = url, model, progress
        self._seconds, self._keep_alive = seconds, keep_alive
        self._api = OllamaApi(url, _ANSWER_SECONDS)

    def await_ollama(self, seconds: float) -> None:
        """Return when Ollama answers. Raises OllamaError where it does not in time."""
        until = time.monotonic() + seconds
        while True:
            try:
                self._api.version()
                return
            except OllamaError as error:
                # A front of a dead Ollama answers 502.
                passing = isinstance(error, OllamaDown) or (
                    isinstance(error, OllamaAnswer) and error.status >= 500
                )
                if not passing or time.monotonic() >= until:
                    raise
            self.progress.tell(f"waiting for Ollama at {self.url}")
            time.sleep(_POLL_SECONDS)

    def pull(self) -> None:
        """Have Ollama fetch it. Raises OllamaError. Source: POST /api/pull."""
        status: object = None
        for line in order(self.url, "/api/pull", {"model": self.model}, self._seconds):
            status = line.get("status")
            what = printable(status) if isinstance(status, str) else "pulling"
            self.progress.tell(what, _count(line.get("completed")), _count(line.get("total")))
        if status != "success":
            raise OllamaDown(f"{self.url}/api/pull: closed before the end of its answer")
        self.progress.end()

    def load(self) -> str:
        """Have Ollama load it; what to say of that. Raises OllamaError. Source: POST /api/generate."""
        before = self._in_memory()
        self.progress.tell(f"loading {self.model}")
        begun = time.monotonic()
        try:
            self._order("/api/generate", {"stream": False})
        except OllamaAnswer as error:
            if _NO_EMBEDDER not in str(error):
                raise
            # A model for embeddings is loaded by embedding something.
            self._order("/api/embed", {"input": self.model})
        took = time.monotonic() - begun
        self.progress.end()
        how = "was loaded already" if before is not None else f"loaded in {span(took)}"
        return f"{self.model}: {how}{_where(self._in_memory())}"

    def explain(self, error: OllamaAnswer, pulled: bool) -> str:
        """A sentence of what went wrong and what to do."""
        said = f"{self.model} is not loaded: {error}"
        if error.status == 404:
            other = (
                "is the name right?" if pulled else "pull it with --pull, or look at `ollama list`"
            )
            return f"{said}; {other}"
        if error.status in (429, 503):
            return f"{said}; try again when Ollama has less to do"
        if error.status >= 500 or error.status == 200:
            return f"{said}; Ollama's log has more: journalctl -u ollama"
        return f"{said}; is {self.url} Ollama's own address?"

    def _order(self, path: str, more: dict[str, Any]) -> None:
        asked: dict[str, Any] = {"model": self.model, **more}
        if self._keep_alive is not None:
            asked["keep_alive"] = self._keep_alive
        whole = False
        for line in order(self.url, path, asked, self._seconds):
            whole = line.get("done") is True or "embeddings" in line
        if not whole:
            raise OllamaAnswer(f"{self.url}{path} answered without saying that it is done")

    def _in_memory(self) -> Optional[Model]:
        """What Ollama says of the loaded model; None where it is not loaded, or that cannot be told."""
        wanted = whole_name(self.model).lower()
        try:
            models = self._api.models()
        except OllamaError:
            return None
        return next((model for model in models if model.name.lower() == wanted), None)


def whole_name(model: str) -> str:
    """A model's name with its tag, as Ollama writes it."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _where(model: Optional[Model]) -> str:
    if model is None:
        return ""
    ratio = model.gpu_ratio
    if ratio is None:
        placed = ""
    elif ratio >= 1:
        placed = ", all of it on GPUs"
    elif ratio > 0:
        placed = f", only {100 * ratio:.0f} % of it on GPUs"
    else:
        placed = ", all of it on the CPU"
    return f", {size(model.size_bytes)}{placed}"


def _count(value: object) -> Optional[int]:
    """A number of bytes; a bool, a fraction and what is below 0 are none."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if whole and isinstance(value, int) else None


def _way_out(error: OllamaDown, wait: float) -> str:
    if "nothing new within" in str(error):
        return "give it longer with --timeout, or look at Ollama's log: journalctl -u ollama"
    hint = "longer with --wait" if wait else "with --wait 60 if it is just starting"
    return f"does Ollama run (systemctl status ollama)? wait for it {hint}"


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:  # nobody reads it; the model is loaded all the same
        sys.stdout = None  # else Python would complain at its end


# -- options -----------------------------------------------------------------------------------------------------------


def _url(host: Optional[str], environ: Mapping[str, str]) -> OllamaUrl:
    source, text = (
        ("--host", host) if host is not None else ("OLLAMA_HOST", environ.get("OLLAMA_HOST", ""))
    )
    try:
        return parse_url(text) if host is not None else from_ollama_host(text)
    except ValueError as error:
        raise ConfigError(source, text, str(error)) from None


def _name(text: str) -> str:
    if not 0 < len(text) <= _MOST_NAME or not text.isprintable() or " " in text:
        raise ConfigError("MODEL", text, "give a model's name, such as llama3.2 or llama3.1:70b")
    return text


def _keep_alive(text: Optional[str]) -> Optional[int]:
    """Seconds; negative: for ever; None: as Ollama is set."""
    if text is None:
        return None
    if text == "-1":
        return _FOREVER
    return max(1, round(duration(text, "--keep-alive")))
