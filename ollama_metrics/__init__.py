"""ollama-metrics: how busy an Ollama host really is, for the balancer in front of it."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
