"""What a command does to files, processes and the network, noted by an audit hook.

Python's own calls are seen here; what libraries of C do to files shows in the snapshots of the
harness.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {  # which arguments are paths that change
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"), slice(0, 1)),
    **dict.fromkeys(("os.chown", "os.utime", "os.mknod", "shutil.rmtree"), slice(0, 1)),
    **dict.fromkeys(("os.rename", "shutil.move"), slice(0, 2)),
    **dict.fromkeys(("os.link", "os.symlink"), slice(1, 2)),
}
_CALLS = {
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system"),
}


# Where the descriptors of the folders are to which these paths are relative, as rmtree's
_FOLDERS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2}


def start(folder: Path, writes: Sequence[str]) -> None:
    """Write one line into ``seen`` for everything that was not allowed, from now on.

    Args:
        folder: of the try.
        writes: paths below work/ that may be written, beside home/, cache/ and tmp/.
    """
    sys.addaudithook(_Hook(folder, writes))


class _Hook:
    """Audit hook of one try."""

    def __init__(self, folder: Path, writes: Sequence[str]) -> None:
        names = ("home", "cache", "tmp", *(f"work/{name}" for name in writes))
        self._allowed = ["/dev/null", "/dev/tty", "/proc/self", *(f"{folder}/{n}" for n in names)]
        self._victim = [f"{folder}/victim"]
        self._note = os.open(folder / "seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._events: Mapping[str, Callable[..., None]] = {
            "open": self._opened,
            **{event: self._changed(event, paths) for event, paths in _CHANGES.items()},
            **{event: self._called(event) for event in _CALLS},
        }

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self._events:
            self._events[event](*arguments)

    def _say(self, text: str) -> None:
        line = text.replace("\n", " ")[:500] + "\n"
        os.write(self._note, line.encode("utf-8", "replace"))

    def _opened(self, path: Any, _: Any, flags: int) -> None:
        if isinstance(path, int) or path is None:
            return
        place = os.path.realpath(os.fsdecode(path))
        if _is_inside(place, self._victim):
            self._say(f"opened the victim: {place}")
        elif flags & _WRITES and not _is_inside(place, self._allowed):
            self._say(f"opened to write: {place}")

    def _changed(self, event: str, paths: slice) -> Callable[..., None]:
        def note(*arguments: Any) -> None:
            for number, path in enumerate(arguments[paths]):
                if isinstance(path, int) or path is None:
                    continue
                parent, name = os.path.split(os.fsdecode(path))  # a link itself, not its target
                folder = (
                    _folder_of(arguments[_FOLDERS[event] + number]) if event in _FOLDERS else ""
                )
                place = f"{os.path.realpath(Path(folder, parent))}/{name}"
                if not _is_inside(place, self._allowed):
                    self._say(f"{event}: {place}")

        return note

    def _called(self, event: str) -> Callable[..., None]:
        return lambda *arguments: self._say(f"{event}: {arguments[-2:]}")


def _folder_of(descriptor: int) -> str:
    return "" if descriptor < 0 else str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _is_inside(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)
