"""A load tester for an Ollama, or for the front of a pool of them: people who ask, read the stream, and think.

Its HTTP is aiohttp's: all users on one event loop, and streams that are read by line as they come.
"""
