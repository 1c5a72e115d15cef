"""How many GPUs this host should have: told by the operator, or remembered as the most that was ever seen.

Remembering is what makes a host that boots without its GPUs look busy instead of idle. The number
is one line of text in the state directory and only ever grows; an operator who takes a card out
says so.
"""

from __future__ import annotations

import os
import time

from .notes import read_note, write_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

FILE_NAME = "gpus-expected"
# More than any machine holds: nobody expects more, and a driver that names more is not believed.
MOST_GPUS = 256
SAVE_AGAIN_SECONDS = 60.0


class Expectation:
    """The number of GPUs that the host should have, `count`.

    With `fixed` it is that number. Else it is the most ever seen, kept in `directory` (None: kept
    in memory only). `saw` is called by the GPU collector's thread alone; `count` may be read by
    any.
    """

    def __init__(
        self,
        fixed: Optional[int],
        directory: Optional[str],
        log: Callable[[str, str], None],
        read_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed, self._log, self._read_only, self._clock = fixed, log, read_only, clock
        self._path = os.path.join(directory, FILE_NAME) if directory and fixed is None else None
        self._unsaved = False
        self._save_again_at = 0.0
        self._complaint = ""
        self.count = fixed if fixed is not None else self._remembered()

    @property
    def seen(self) -> int:
        """The most GPUs ever seen; 0 where a setting tells how many there should be."""
        return 0 if self._fixed is not None else self.count

    @property
    def how_to_change(self) -> str:
        """What an operator does who took a card out; one clause, to be put behind a reason."""
        if self._path is None:
            return "if a card was taken out, set --expected-gpus to the number left and restart the agent"
        return f"if a card was taken out, delete {self._path} and restart the agent, or set --expected-gpus"

    def saw(self, count: int) -> None:
        """Note that `count` GPUs are here; more than ever before are remembered.

        What could not be written is tried again once a minute, for as long as this is called.
        """
        if self._fixed is not None:
            return
        if count > self.count:
            self.count, self._unsaved, self._save_again_at = count, not self._read_only, 0.0
        if count and self._unsaved and self._clock() >= self._save_again_at:
            self._save_again_at = self._clock() + SAVE_AGAIN_SECONDS
            self._remember()

    def _remembered(self) -> int:
        if self._path is None:
            return 0
        try:
            text = read_note(self._path)
            if not (text.isascii() and text.isdecimal()):
                raise ValueError(f"{text!r} is no number")
            count = int(text)
            if not 1 <= count <= MOST_GPUS:
                raise ValueError(f"{count} is no number of GPUs")
            return count
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except (OSError, ValueError) as error:
            # It is only ever written when there were GPUs: a broken note still says "at least one".
            self._log(
                "warning", f"{self._path} cannot be used ({error}); at least one GPU is expected"
            )
            self._unsaved = not self._read_only  # to be mended by the first GPU that is seen
            return 1

    def _remember(self) -> None:
        try:
            if self._path is None:
                raise OSError("there is no state directory; set --state-dir")
            write_note(self._path, f"{self.count}\n")
            self._unsaved = False
        except OSError as error:
            complaint = f"the number of GPUs cannot be remembered across restarts: {error}"
            if complaint != self._complaint:
                self._complaint = complaint
                self._log("warning", complaint)
