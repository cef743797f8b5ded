"""The id that the kernel chose, in the host's memory: seen there before the launch is over."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

PATIENCE_S = 0.1


class Answer:
    """A word of the host's memory that the GPU writes: launches so far, and below them an id.

    Waiting for it takes 60 to 90 us less than waiting for the end of the launch, so the next one can
    follow at once.

    Args:
        address: of eight bytes that both can reach, zeros.
        settle: waits until nothing that was launched runs any more; raises what went wrong there.
    """

    def __init__(self, address: int, settle: Callable[[], None]) -> None:
        self._word = ctypes.c_uint64.from_address(address)
        self._settle = settle

    def wait(self, launches: int) -> int:
        """The id of the launch with this number, the first being 1.

        Raises:
            RuntimeError: the launch is over and has not answered.
        """
        patience = time.monotonic() + PATIENCE_S
        while (word := self._word.value) >> 32 != launches:
            time.sleep(0)  # lets other threads run
            if time.monotonic() > patience:
                self._settle()
                word = self._word.value
                if word >> 32 != launches:
                    raise RuntimeError("the one-launch decoder ended without choosing an id")
                break
        return word & 0xFFFF_FFFF
