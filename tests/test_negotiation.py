"""Which format each client of /metrics gets from its Accept header."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.negotiation import FORMATS, negotiate

# The headers that these versions of Prometheus send, to the letter.
PROMETHEUS = {
    "2.42": (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    ),
    "2.49.0": (
        "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=2"
    ),
    "2.53": (
        "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    ),
    "3.5": (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    ),
}
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,"
    "*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("version", PROMETHEUS)
def test_every_prometheus_gets_openmetrics(version: str) -> None:
    """Prometheus gets OpenMetrics, also from the version that sends a quality above 1."""
    assert negotiate(PROMETHEUS[version]) == "openmetrics"


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "application/json",
        "application/*",
        "application/json, text/plain, */*",
        ", ,",
    ],
    ids=["none (Go)", "empty", "curl", "json", "application", "axios", "commas"],
)
def test_balancers_and_scripts_get_json(accept: Optional[str]) -> None:
    """Who asks for nothing, anything or JSON gets JSON."""
    assert negotiate(accept) == "json"


@pytest.mark.parametrize("accept", [CHROMIUM, FIREFOX, "text/html"])
def test_browsers_get_the_page(accept: str) -> None:
    """A browser gets HTML."""
    assert negotiate(accept) == "html"


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("text/plain;version=0.0.4", "prometheus"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "prometheus"),
        ("text/plain;version=0.0.4;q=0.5,application/json;q=0.4", "prometheus"),
        ("application/json;q=0.4,text/plain;version=0.0.4;q=0.5", "prometheus"),
        ("text/plain;version=0.0.4,application/json", "prometheus"),
        ("text/plain", "json"),
        ("text/plain, */*", "json"),
        ("text/plain,text/html;q=0.1", "html"),
        ("application/json,text/plain", "json"),
        ("text/plain;q=0", "json"),
        ("text/plain;q=0,text/html;q=0.001", "html"),
        ("text/html;q=0,application/openmetrics-text;q=0", "json"),
        ("text/plain;q=high", "json"),
        ("text/plain;q=", "json"),
        ("text/plain;q=nan", "json"),
        ("text/plain;q=-1", "json"),
        ("text/plain;version=0.0.4;q=2,text/html;q=1", "prometheus"),
        ("text/html;q=1,text/plain;q=2", "html"),
        ("text/plain;version=0.0.4;q=inf,text/html", "prometheus"),
        ("*/*;q=2,text/plain;version=0.0.4;q=0.1", "prometheus"),
        ("TEXT/PLAIN; Version=0.0.4 ; Q=0.5", "prometheus"),
        ("text/plain;charset=utf-8;q=0.1, text/html;level=1;q=0.2", "html"),
        ("image/png, application/xml", "json"),
        (";;;q=1,/,text", "json"),
    ],
)
def test_the_best_named_format_wins(accept: str, format: str) -> None:
    """The highest quality wins, the first among equals; 0 or no number rules a format out, wildcards name none."""
    assert negotiate(accept) == format


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                ["text/plain", "text/html", "*/*", ";", ",", "q=", "0.5", "nan", "1e999", " ", "\t"]
            )
        ).map("".join),
    )
)
def test_every_header_has_an_answer(accept: str) -> None:
    """Whatever a client sends, there is a format for it."""
    assert negotiate(accept) in FORMATS
