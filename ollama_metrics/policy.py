"""What a balancer is to get from a failing host, and what of Ollama's state makes a host failing or degraded.

The policies of `--on-failure`:

`pessimistic`: the highest weight, 500, at once. `error`: the same with status 503. `last-good`: the
last numbers that were good, for at most `LAST_GOOD_SECONDS`, then pessimistic.
"""

from __future__ import annotations

PESSIMISTIC, ERROR, LAST_GOOD = ON_FAILURE = ("pessimistic", "error", "last-good")
LAST_GOOD_SECONDS = 120.0

# What `--ollama-ignore` can switch off: Ollama does not answer; a model sits on the CPU of a host
# whose GPUs work; Ollama answers slowly; it answers with errors.
DOWN, ON_CPU, SLOW, ERRORS = OLLAMA_RULES = ("down", "on-cpu", "slow", "errors")
# Checks in a row that are not answered until Ollama counts as dead.
OLLAMA_CHECKS = 3
OLLAMA_SLOW_SECONDS = 2.0
# A share of errors above this counts, where there were at least so many requests in the window.
OLLAMA_ERROR_RATIO, OLLAMA_ERROR_REQUESTS = 0.5, 10
