"""A progress bar on standard error, fed by the daemon's reports."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol

    class _Bar(Protocol):
        """The part of a tqdm bar that is used; tqdm has no types of its own."""

        n: int
        total: int | None

        def update(self, n: int) -> object: ...
        def close(self) -> None: ...


class Progress:
    """A bar that appears with the first report and changes with the phase. `show` None: only on a terminal."""

    def __init__(self, show: bool | None) -> None:
        self._show = sys.stderr.isatty() if show is None else show
        self._bar: _Bar | None = None
        self._phase = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def __call__(self, phase: str, done: int, total: int | None, unit: str) -> None:
        """Show how far the request is; the signature is `control.Report`."""
        if not self._show:
            return
        if self._bar is None or phase != self._phase:
            self._close()
            import tqdm  # type: ignore[import-untyped]  # 40 ms, and most runs end before there is anything to show

            in_bytes = unit == "bytes"
            bar: _Bar = tqdm.tqdm(
                desc=phase,
                total=total,
                unit="B" if in_bytes else f" {unit}",
                unit_scale=in_bytes,
                unit_divisor=1024,
                leave=False,
                dynamic_ncols=True,
                file=sys.stderr,
            )
            self._bar, self._phase = bar, phase
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
