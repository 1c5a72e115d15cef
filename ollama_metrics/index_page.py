"""What the agent says under `/` to people: a line and the list of pages to curl, the live page to a browser.

The live page is a file of its own, `live_page.html`, and the same for every host: it asks for the
numbers itself. It is read when a browser asks for it and not kept.
"""

from __future__ import annotations

import os

from . import __version__
from .answer import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .verdict import Verdict

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"

ENDPOINTS = (
    (
        "/metrics",
        "JSON; Prometheus text or OpenMetrics for clients that accept it; ?format=json|prometheus|openmetrics",
    ),
    ("/metrics?window=SECONDS", "the same, utilization averaged over another time (up to 120)"),
    ("/history", "the last two minutes as JSON arrays; ?seconds=1..120 for less"),
    ("/health", "200 when ok or degraded, 503 with the reasons when failing or draining"),
    ("/health/ollama", "200 when Ollama answers, 503 when it does not"),
    ("/-/ready", "200 once there are fresh readings"),
    ("/-/healthy", "200 while the agent answers"),
)

LIVE_PAGE = "live_page.html"


def text_page(verdict: Verdict) -> Answer:
    """How this host is, and which pages there are."""
    lines = [
        f"ollama-metrics {__version__}",
        f"This host is {verdict.status}, weight {verdict.weight:g}.",
        *(f"  {reason}" for reason in verdict.reasons),
        "",
        *(f"{path:25} {what}" for path, what in ENDPOINTS),
    ]
    return Answer(200, TEXT, ("\n".join(lines) + "\n").encode())


def live_page() -> Answer:
    """The page for a browser. Raises OSError where the package has lost it."""
    # Beside this module, and so of the version that was started, whatever an upgrade brings meanwhile.
    with open(os.path.join(os.path.dirname(__file__), LIVE_PAGE), "rb") as file:
        page = file.read()
    # The page shows what others have named (models, GPUs, reasons): nothing runs in it and nothing is
    # fetched by it but what this very file has.
    policy = (
        f"default-src 'none'; script-src {_hash(page, b'script')}; style-src {_hash(page, b'style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Answer(
        200, HTML, page, (("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer"))
    )


def _hash(page: bytes, element: bytes) -> str:
    """What a Content-Security-Policy allows the page's one inline `element` by."""
    from binascii import b2a_base64

    inline = page.partition(b"<" + element + b">")[2].partition(b"</" + element + b">")[0]
    digest = _sha256()(inline).digest()
    return f"'sha256-{b2a_base64(digest, newline=False).decode()}'"


def _sha256() -> Any:
    """hashlib's, without OpenSSL where Python has one of its own: that is 4 MB, for as long as the agent runs."""
    for module in ("_sha2", "_sha256"):  # since Python 3.12; before
        try:
            return __import__(module).sha256
        except ImportError:
            pass
    return __import__("hashlib").sha256
