"""`python -m ollama_metrics` is the command `ollama-metrics`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
