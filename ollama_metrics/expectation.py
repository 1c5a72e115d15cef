"""How many GPUs this host should have: told by the operator, or remembered as the most that was ever seen.

Remembering is what makes a host that boots without its GPUs look busy instead of idle. The number
is one line of text in the state directory and only ever grows; an operator who takes a card out
says so.
"""

from __future__ import annotations

import os

from .nvml import MOST_GPUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

FILE_NAME = "gpus-expected"


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
    ) -> None:
        self._fixed, self._log, self._read_only = fixed, log, read_only
        self._path = os.path.join(directory, FILE_NAME) if directory and fixed is None else None
        self._complained = False
        self.count = fixed if fixed is not None else self._remembered()

    @property
    def how_to_change(self) -> str:
        """What an operator does who took a card out; one clause, to be put behind a reason."""
        if self._path is None:
            return "if a card was taken out, set --expected-gpus to the number left and restart the agent"
        return f"if a card was taken out, delete {self._path} and restart the agent, or set --expected-gpus"

    def saw(self, count: int) -> None:
        """Note that `count` GPUs are here; more than ever before are remembered."""
        if self._fixed is not None or count <= self.count:
            return
        self.count = count
        if self._path is not None and not self._read_only:
            self._remember(self._path, count)

    def _remembered(self) -> int:
        if self._path is None:
            return 0
        try:
            with open(self._path, encoding="ascii") as file:
                count = int(file.read(32))
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
            return 1

    def _remember(self, path: str, count: int) -> None:
        scratch = f"{path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with open(scratch, "w", encoding="ascii") as file:
                file.write(f"{count}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._log(
                    "warning", f"the number of GPUs cannot be remembered across restarts: {error}"
                )
            try:
                os.unlink(scratch)
            except OSError:
                pass  # it was never made
