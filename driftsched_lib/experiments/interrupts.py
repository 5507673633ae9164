"""Ctrl-C where nothing is half done, and never lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


@contextmanager
def remembered(at_once: bool) -> Iterator[Callable[[], None]]:
    """Remember Ctrl-C; the function that is yielded raises it as KeyboardInterrupt, and so does the end.

    Python itself raises it between any two instructions: a change of state stays half done, or a destructor swallows
    it.  `at_once` raises it where it comes, too; else only a second one is.  Only the main thread is told of it.
    """
    before, pressed = signal.getsignal(signal.SIGINT), []
    if current_thread() is not main_thread() or before in (signal.SIG_IGN, None):
        yield lambda: None
        return

    def note(*_: object) -> None:
        pressed.append(True)
        if at_once or len(pressed) > 1:
            raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, note)
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()
