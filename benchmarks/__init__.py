"""Side-by-side measurements of the agent against named peers, in one run: ``python -m benchmarks``.

Absolute rates swing several times over on a shared machine; CPU time per request, resident memory
and the ratios taken within one run hold. Everything here therefore measures the peers in turn,
round by round, and judges ratios (goals.py). Nothing leaves 127.0.0.1.
"""
