"""The pages that the program writes are the pages that are in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_metrics import reference

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_page_is_up_to_date(page: str) -> None:
    """docs/METRICS.md and docs/CONFIGURATION.md are what the code writes; `make docs` brings them up to date."""
    assert (DOCS / f"{page.upper()}.md").read_text() == reference.PAGES[page]()


def test_the_page_names_every_key_in_its_order() -> None:
    """The table of the top-level keys has those of a rendered document, in the same order."""
    assert [key for key, _, _ in reference.TOP_LEVEL] == list(json.loads(reference.example()))


def test_every_key_of_an_object_is_described() -> None:
    """Each key of a GPU, of the host, of the driver and of a collector's health stands in the page."""
    page = reference.metrics()
    document = json.loads(reference.example())
    objects = (
        document["gpus"][0],
        document["host"],
        document["driver"],
        document["collectors"]["host"],
    )
    for keys in objects:
        for key in keys:
            assert f"| `{key}` |" in page, key
