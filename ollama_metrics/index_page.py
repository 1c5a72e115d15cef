"""What the agent says under `/` to people: how this host is, and which pages there are."""

from __future__ import annotations

from . import __version__
from .answer import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .verdict import Verdict

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"

ENDPOINTS = (
    (
        "/metrics",
        "JSON; Prometheus text or OpenMetrics for clients that accept it; ?format=json|prometheus|openmetrics",
    ),
    ("/metrics?window=SECONDS", "the same, utilization averaged over another time (up to 120)"),
    ("/health", "200 when ok or degraded, 503 with the reasons when failing or draining"),
    ("/health/ollama", "200 when Ollama answers, 503 when it does not"),
    ("/-/ready", "200 once there are fresh readings"),
    ("/-/healthy", "200 while the agent answers"),
)

_CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "dt{font-family:monospace}dd{margin:0 0 .6rem}"
)


def index(verdict: Verdict, html: bool) -> Answer:
    """The page, as HTML for browsers or as text."""
    title = f"ollama-metrics {__version__}"
    now = f"{verdict.status}, weight {verdict.weight:g}"
    if not html:
        lines = [title, f"This host is {now}.", *(f"  {reason}" for reason in verdict.reasons), ""]
        lines += [f"{path:25} {what}" for path, what in ENDPOINTS]
        return Answer(200, TEXT, ("\n".join(lines) + "\n").encode())
    page = _page(title, now, verdict.reasons).encode()
    return Answer(200, HTML, page, (("Content-Security-Policy", _CSP),))


def _page(title: str, now: str, reasons: tuple[str, ...]) -> str:
    from html import escape

    said = "".join(f"<li>{escape(reason)}" for reason in reasons)
    links = "".join(
        f'<dt><a href="{escape(_link(path))}">{escape(path)}</a><dd>{escape(what)}'
        for path, what in ENDPOINTS
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>This host is <strong>{escape(now)}</strong>.</p><ul>{said}</ul><dl>{links}</dl></html>\n"
    )


def _link(path: str) -> str:
    """A link that a browser can follow to what it names: on /metrics it would be negotiated back to this page."""
    if path.startswith("/metrics"):
        return "/metrics?format=json" + ("&window=60" if "window" in path else "")
    return path
