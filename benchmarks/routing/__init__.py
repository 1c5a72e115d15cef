"""Routing by simulation: what each balancer makes of the same requests: ``python -m benchmarks.routing``.

Hosts, requests and balancers are modelled; the weight, its means and the agent-check's line are the
agent's own code (`sensors.py`). Every figure follows from seeds, so a run repeats byte for byte.
"""
