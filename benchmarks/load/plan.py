"""What is to be asked, by how many, for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PROMPTS = (
    "Why is the sky blue?",
    "Write a haiku about a server room at night.",
    "Explain to a child of ten how a refrigerator gets cold.",
    "Name three differences between TCP and UDP, one sentence each.",
    "Summarize the plot of Romeo and Juliet in five sentences.",
    "What is the difference between weather and climate?",
    "Give me a recipe for a soup from what is left in most kitchens.",
    "Translate into French: the early bird catches the worm.",
)


@dataclass(frozen=True)
class Plan:
    """A run. `requests` and `duration` end it, whichever comes first; None: it does not."""

    url: str
    model: str
    users: int
    api: str = "generate"
    ramp_up: float = 0.0  # seconds until the last user has begun
    duration: float | None = None  # seconds in which requests are begun
    requests: int | None = None
    think: float = 0.0  # mean seconds between an answer and the next request of a user
    silence: float = 300.0  # seconds without a byte after which a request has failed
    grace: float = 30.0  # seconds for what runs when the time is over
    prompts: Sequence[str] = PROMPTS
    options: Mapping[str, Any] = field(default_factory=dict)  # Ollama's, such as num_predict
    headers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 1

    @property
    def endpoint(self) -> str:
        return f"{self.url}/api/{self.api}"

    def document(self, prompt: str) -> dict[str, Any]:
        """The body of a request."""
        said: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt}]}
            if self.api == "chat"
            else {"prompt": prompt}
        )
        return {"model": self.model, "stream": True, "options": dict(self.options), **said}
