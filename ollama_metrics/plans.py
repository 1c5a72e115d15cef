"""What is to be done about each request head: judged once, then remembered by the head's bytes.

A poller sends the same head every time. Its plan is found by one look-up, and so is the answer that
it has for as long as the application has nothing newer.
"""

from __future__ import annotations

from .answer import Refused
from .request import Request, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any, Optional, Protocol, TypeVar

    from .answer import Answer

    T = TypeVar("T")

    class Application(Protocol):
        """What is served: pages, by keys that stay valid for as long as the program runs."""

        def page(self, method: str, target: str, accept: Optional[str]) -> Hashable:
            """The key of the page that a request asks for. Raises Refused."""

        def version(self) -> object:
            """An object that is another one as soon as pages have to be rendered again."""

        def render(self, page: Hashable) -> Answer:
            """The page as it is now."""

        def refusal(self, status: int, sentence: str) -> Answer:
            """The answer to a request that is refused."""


KEEP, KEEP_1_0, CLOSE = b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n"
_MOST_HEADS, _LARGEST_REMEMBERED_HEAD = 256, 2048
_MOST_PAGES = 160  # more than there are windows to ask for
# A plan stays for as long as its head is known, and with it its answer: a larger one is made anew or shared.
_LARGEST_REMEMBERED_WIRE = 16 << 10


class Plan:
    """What to do about one head: its page or its refusal, and what becomes of the connection.

    `wire` is the answer as it was last sent, good as long as the application's version is
    `version`.
    """

    __slots__ = ("body", "connection", "head_only", "page", "refused", "version", "wire")

    def __init__(self, request: Request, page: Hashable, refused: Optional[Refused]) -> None:
        self.page, self.refused, self.body = page, refused, request.body
        self.head_only = request.method == "HEAD"
        self.connection = (KEEP_1_0 if request.http_1_0 else KEEP) if request.keep_alive else CLOSE
        self.version: object = None
        self.wire = b""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection goes on after the answer."""
        return self.connection is not CLOSE


class Plans:
    """The plans for the heads that have come lately, and the answers rendered for them; both bounded.

    `known` is for the hot path to look a head up in.
    """

    def __init__(self, application: Application) -> None:
        self.known: dict[bytes, Plan] = {}
        self._application = application
        self._answers: dict[Hashable, Answer] = {}
        self._wires: dict[tuple[Hashable, bytes, bool], bytes] = {}
        self._version: object = None
        self._closing = False

    def close_connections(self) -> None:
        """Have every answer from here on say that the connection closes."""
        self._closing = True
        self.known.clear()

    def make(self, head: bytes) -> Plan:
        """The plan for a complete head that is not in `known`; from here on it may be."""
        request = parse(head)
        if request.error is not None:
            plan = refuse(*request.error, request)
        else:
            try:
                plan = Plan(
                    request,
                    self._application.page(request.method, request.target, request.accept),
                    None,
                )
            except Refused as why:
                # A copy: what was raised holds every frame that it came through, this one too.
                plan = Plan(request, None, Refused(why.status, why.sentence, why.headers))
        if self._closing:
            plan.connection = CLOSE
        elif len(head) <= _LARGEST_REMEMBERED_HEAD:
            if len(self.known) >= _MOST_HEADS:
                self.known.clear()
            self.known[head] = plan
        return plan

    def render(self, plan: Plan, version: object) -> bytes:
        """The answer to `plan` for this version, shared by all heads that ask for the same page."""
        if version is not self._version:
            self._answers.clear()
            self._wires.clear()
            self._version = version
        if plan.refused is not None:
            refused = plan.refused
            answer = self._application.refusal(refused.status, refused.sentence)
            answer.headers += refused.headers
            wire = answer.wire(plan.connection, plan.head_only)
        else:
            key = (plan.page, plan.connection, plan.head_only)
            wire = self._wires.get(key) or _kept(
                self._wires, key, self._answer(plan.page).wire(plan.connection, plan.head_only)
            )
        if len(wire) <= _LARGEST_REMEMBERED_WIRE:
            plan.version, plan.wire = version, wire
        return wire

    def _answer(self, page: Hashable) -> Answer:
        return self._answers.get(page) or _kept(self._answers, page, self._application.render(page))


def _kept(cache: dict[Any, T], key: Hashable, value: T) -> T:
    """`value`, put into a cache that is emptied when it is full."""
    if len(cache) >= _MOST_PAGES:
        cache.clear()
    cache[key] = value
    return value


def refuse(status: int, sentence: str, request: Optional[Request] = None) -> Plan:
    """The plan for a request that is refused."""
    return Plan(request or Request(body=True), None, Refused(status, sentence))
