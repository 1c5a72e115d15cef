"""What a balancer is to get from a failing host: the policies of `--on-failure`.

`pessimistic`: the highest weight, 500, at once. `error`: the same with status 503. `last-good`: the
last numbers that were good, for at most `LAST_GOOD_SECONDS`, then pessimistic.
"""

from __future__ import annotations

PESSIMISTIC, ERROR, LAST_GOOD = ON_FAILURE = ("pessimistic", "error", "last-good")
LAST_GOOD_SECONDS = 120.0
