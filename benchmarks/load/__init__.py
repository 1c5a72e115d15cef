"""A load tester for an Ollama, or for the front of a pool of them: people who ask, read the stream, and think.

Its HTTP is aiohttp's. httpx is there already, for the official client has it, but spends several times the CPU on
each line of a stream: with 174 streams of 50 tokens a second it would measure itself.
"""
