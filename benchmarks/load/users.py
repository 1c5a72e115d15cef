"""The users: each asks, reads the stream to its end, thinks, and asks again. One event loop for all."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.http_exceptions import (
    HttpProcessingError,  # a line too long is one, and no ClientError
)

from benchmarks.load.plan import Plan

_CONNECT_SECONDS = 10.0
_MOST_ERROR_BYTES = 4096
_MOST_WORDS = 120  # characters of an error in the report
_MOST_KINDS = 20  # of failures that are told apart: whoever answers writes them


@dataclass
class Tally:
    """What has come of the requests so far. Times are in seconds."""

    begun: int = 0
    first_tokens: list[float] = field(default_factory=list)  # of requests that were served
    totals: list[float] = field(default_factory=list)  # the same
    rates: list[float] = field(default_factory=list)  # tokens a second within a stream, the same
    tokens: int = 0  # of all requests, by what arrived
    evaluated: int = 0  # of those served, by Ollama's own count
    failures: Counter[str] = field(default_factory=Counter)  # by kind
    running: int = 0
    unfinished: int = 0  # cut off when the run ended
    users: int = 0  # that have begun
    seconds: float = 0.0  # from the first request to the end of the last one

    @property
    def served(self) -> int:
        return len(self.totals)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


class _Failed(Exception):
    """A request that was not served; the text is its kind."""


class Users:
    """Runs a plan; `tally` may be read meanwhile."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self.tally = plan, Tally()
        self._random = random.Random(plan.seed)
        self._over = asyncio.Event()  # no request is begun any more
        self._left = plan.requests

    def end(self) -> None:
        """Begin no request any more; those that run go on."""
        self._over.set()

    async def run(self, stop: asyncio.Event) -> Tally:
        """Until the plan is done, or at once when `stop` is set."""
        plan, began = self._plan, time.monotonic()
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=plan.silence
        )
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=dict(plan.headers)
        ) as session:
            users = {
                asyncio.ensure_future(self._user(session, number)) for number in range(plan.users)
            }
            stopped = asyncio.ensure_future(stop.wait())
            try:
                await self._until(users, stopped, plan.duration)
                self.end()
                if not stopped.done():
                    await self._until(users, stopped, plan.grace)
            finally:
                for task in (*users, stopped):
                    task.cancel()
                results = await asyncio.gather(*users, stopped, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):  # a mistake of this program's
                raise result
        self.tally.seconds = time.monotonic() - began
        return self.tally

    @staticmethod
    async def _until(
        users: set[asyncio.Task[None]], stopped: asyncio.Task[Any], seconds: float | None
    ) -> None:
        """Return when all users are done, the time is over or somebody has stopped it."""
        done = asyncio.ensure_future(asyncio.wait(users))
        await asyncio.wait({done, stopped}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()

    async def _user(self, session: aiohttp.ClientSession, number: int) -> None:
        plan = self._plan
        if await self._is_over(plan.ramp_up * number / plan.users):
            return
        self.tally.users += 1
        while not self._over.is_set() and self._left != 0:
            if self._left is not None:
                self._left -= 1
            prompt = plan.prompts[self.tally.begun % len(plan.prompts)]
            self.tally.begun += 1
            self.tally.running += 1
            try:
                await self._ask(session, prompt)
            except asyncio.CancelledError:
                self.tally.unfinished += 1
                raise
            except _Failed as failure:
                self._failed(str(failure))
            finally:
                self.tally.running -= 1
            if plan.think and await self._is_over(plan.think * self._random.uniform(0.5, 1.5)):
                return

    async def _is_over(self, seconds: float) -> bool:
        """Wait; whether no more is to be begun."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._over.wait(), seconds)
            except asyncio.TimeoutError:
                pass
        return self._over.is_set()

    def _failed(self, kind: str) -> None:
        known = kind in self.tally.failures or len(self.tally.failures) < _MOST_KINDS
        self.tally.failures[kind if known else "others"] += 1

    # -- one request -------------------------------------------------------------------------------

    async def _ask(self, session: aiohttp.ClientSession, prompt: str) -> None:
        """Counts it as served. Raises _Failed."""
        plan = self._plan
        try:
            began = time.monotonic()
            asking = session.post(plan.endpoint, json=plan.document(prompt), allow_redirects=False)
            async with asking as answer:
                if answer.status != 200:
                    words = _error(await answer.content.read(_MOST_ERROR_BYTES))
                    raise _Failed(f"status {answer.status}{words}")
                await self._read(answer, began)
        except asyncio.TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            what = "no connection" if connecting else "nothing came"
            seconds = _CONNECT_SECONDS if connecting else plan.silence
            raise _Failed(f"{what} for {seconds:g} s") from None
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno
            why = os.strerror(number).lower() if number and number > 0 else "no such host"
            raise _Failed(f"cannot connect: {why}") from None
        except (aiohttp.ClientError, OSError):
            raise _Failed("the connection broke off") from None

    async def _read(self, answer: aiohttp.ClientResponse, began: float) -> None:
        tally, first, pieces, last = self.tally, 0.0, 0, {}
        try:
            async for line in answer.content:
                document = json.loads(line)
                if "error" in document:
                    raise _Failed(f"an error in the stream{_error(line)}")
                if _text(document):
                    pieces += 1
                    tally.tokens += 1
                    first = first or time.monotonic()
                if document.get("done"):
                    last = document
        except (ValueError, AttributeError, TypeError, RecursionError, HttpProcessingError):
            raise _Failed("an answer that is not Ollama's") from None
        if not last:
            raise _Failed("the stream ended before it was done")
        ended = time.monotonic()
        tally.first_tokens.append((first or ended) - began)
        tally.totals.append(ended - began)
        count = last.get("eval_count")
        tally.evaluated += count if isinstance(count, int) else pieces
        if pieces > 1 and ended > first:
            tally.rates.append((pieces - 1) / (ended - first))


def _text(document: dict[str, Any]) -> Any:
    """What a line of the stream says, of an answer or of the thinking before it."""
    said = document.get("message", document)
    return said.get("content") or said.get("response") or said.get("thinking")


def _error(body: bytes) -> str:
    """What Ollama says in an error, as an end of a sentence."""
    try:
        said = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    words = " ".join(str(said).split())
    shown = "".join(character if character.isprintable() else "?" for character in words)
    return f": {shown[:_MOST_WORDS]}"
