"""Signals that whoever starts the tests ignores."""

import signal


def restore_signals() -> None:
    """Take SIGINT and SIGHUP as a terminal would send them.

    They are ignored in the background and under nohup, and by every process that is started there.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
