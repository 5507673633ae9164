"""Ctrl-C where nothing is half done, and never lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType


@contextmanager
def remembered(at_once: bool) -> Iterator[Callable[[], None]]:
    """Within it Ctrl-C is remembered, and raised as KeyboardInterrupt by what is yielded, or at the end.

    Python itself raises it between any two instructions: within a change of state, which stays half done, or within a
    destructor, which swallows it.  Only the main thread is told of it, and of none where it is ignored.

    Parameters:
        at_once: raise it where it comes, too.  Otherwise only a second one is, for whoever does not want to wait.
    """
    before = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or before in (signal.SIG_IGN, None):
        yield lambda: None
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        again, pressed = pressed, True
        if at_once or again:
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
