"""Whether an Ollama is expected on this host: told by the operator, or remembered since one has answered.

Remembering is what makes a host whose Ollama does not come back after a boot look busy instead of idle.
The note is one line in the state directory, the address at which it answered.
"""

from __future__ import annotations

import os
import time

from .expectation import SAVE_AGAIN_SECONDS
from .notes import read_note, write_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

FILE_NAME = "ollama-expected"


class OllamaExpectation:
    """`expected`: whether an Ollama should answer at `url`.

    `fixed` is the operator's word that it should. Else the note in `directory` tells (None: kept in
    memory only). `saw` is called by the Ollama collector's thread alone; `expected` may be read by any.
    """

    def __init__(
        self,
        url: str,
        fixed: bool,
        directory: Optional[str],
        log: Callable[[str, str], None],
        read_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._log, self._read_only, self._clock = url, log, read_only, clock
        self._path = os.path.join(directory, FILE_NAME) if directory else None
        self._fixed = fixed
        self._saved = fixed or read_only
        self._save_again_at = 0.0
        self._complaint = ""
        self.expected = fixed or self._remembered()

    def saw(self) -> None:
        """Note that Ollama answers. What could not be written is tried again once a minute."""
        self.expected = True
        if not self._saved and self._clock() >= self._save_again_at:
            self._save_again_at = self._clock() + SAVE_AGAIN_SECONDS
            try:
                if self._path is None:
                    raise OSError("there is no state directory; set --state-dir")
                write_note(self._path, f"{self._url}\n")
                self._saved = True
            except OSError as error:
                complaint = f"that Ollama answered cannot be remembered across restarts: {error}"
                if complaint != self._complaint:
                    self._complaint = complaint
                    self._log("warning", complaint)

    def _remembered(self) -> bool:
        if self._path is None:
            return False
        try:
            noted = read_note(self._path)
            if not noted.startswith("http://"):
                raise ValueError(f"{noted[:64]!r} is no address")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError) as error:
            # It is only ever written when an Ollama has answered.
            self._log("warning", f"{self._path} cannot be used ({error}); an Ollama is expected")
            return True
        # Another address is another Ollama: what answered there need not be here.
        self._saved = noted == self._url
        return self._saved
