"""What pyfuse3 asks of us: which options the kernel is to be told, and to hear of the first request.

The requests themselves are answered by `answers.py`. For those that have no answer there, libfuse says so (ENOSYS), and
the kernel does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Callable


class Operations(pyfuse3.Operations):
    """Of one mount. `on_init` is called when the kernel's first request has come in."""

    def __init__(self, on_init: Callable[[], None], *, write_back: bool) -> None:
        super().__init__()
        self.enable_writeback_cache = write_back
        self._on_init = on_init

    def init(self) -> None:
        self._on_init()
