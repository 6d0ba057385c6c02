"""Who holds a store on disk: one process at a time, and none of its forked children. Every such store shares this."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from typing import Final, Protocol

from geraft.errors import StorageFailed, StorageLocked

RESTORE_ADVICE: Final = (
    "Restore the file, or remove the node from the cluster and add it again under a new id with an empty store."
    " Do not start it under its old id without this file: it would forget what it promised"
)

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_ALLOWED: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def advice_for(error: OSError) -> str:
    """What to do about an error of the device or of the system."""
    if error.errno in NO_ROOM:
        return "Free space on the disk"
    if error.errno in NOT_ALLOWED:
        return "Make the directory and the files in it readable and writable"
    return "Check the disk, its free space and the limits of the process"


class Lock:
    """Holds a lock file for as long as it is not released; a dead process holds none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go. In a forked child this leaves the parent's hold alone."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def take_lock(name: str, path: str) -> Lock:
    """Lock the file `name`, made if need be with its directory, for the store at path.

    Raises StorageLocked with the id of the process that holds it.
    """
    try:
        make_directory(os.path.dirname(name))
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageFailed(
            f"can't open {name}: {error}. The directory must exist or be creatable, and be writable", path=path
        ) from error
    lock = Lock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        lock.release()
        raise StorageLocked(
            f"{path} is in use by process {holder}: stop it, or give this node a path of its own", path=path
        ) from None
    except OSError as error:
        lock.release()
        raise StorageFailed(f"can't lock {name}: {error}. Use a local file system", path=path) from error
    with contextlib.suppress(OSError):  # the id is for people; a full disk does not keep us from locking
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return lock


def make_directory(directory: str) -> None:
    """Create the directory and those above it that are missing, durably."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    make_directory(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory)
    sync(parent)


def sync(path: str) -> None:
    """Wait until the disk has the file, or the names that the directory holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_process(path: str, pid: int) -> None:
    """Raises StorageFailed if the store was opened by another process than this one: before a fork. pid: 0 for none."""
    if pid and pid != os.getpid():
        raise StorageFailed(
            f"{path} was opened by process {pid} and is used in {os.getpid()} after a fork:"
            " a child must open a store of its own",
            path=path,
        )


class Holder(Protocol):
    """An open store."""

    def let_go_after_fork(self) -> None:
        """In a forked child: give up the parent's lock, or it would outlive the parent, and touch none of its files."""


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def add_holder(store: Holder) -> None:
    """From now on the store lets go of what it holds in every forked child."""
    _holders.add(store)


def remove_holder(store: Holder) -> None:
    _holders.discard(store)


def _let_go_after_fork() -> None:
    for store in list(_holders):
        store.let_go_after_fork()
    _holders.clear()


os.register_at_fork(after_in_child=_let_go_after_fork)
