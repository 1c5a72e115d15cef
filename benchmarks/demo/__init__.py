"""A fleet on one machine, without a GPU: `python -m benchmarks.demo`, and the commands that it tells people to try.

Each host has a loopback address of its own, with the ports that it would have in production: Ollama (the tests'
stand-in) on 11434, the real agent on 11435 and 11437, and GPUs by the tests' stand-in for NVIDIA's library, which
follow the work. Before them are HAProxy and Prometheus with the shipped configurations, and some users.

It is here, and not in deploy/, for nobody is to copy it: it needs the stand-ins of tests/ and the load tester.
"""
