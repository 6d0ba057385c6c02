"""PerProcess: one object for all threads of a process, another one in a forked child."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from geraft import PerProcess


def test_all_threads_get_the_one_that_the_first_of_them_made() -> None:
    all_here = threading.Barrier(16)
    made = PerProcess(object)

    def get(_: int) -> object:
        all_here.wait()
        return made.get()

    assert made.made() is None
    with ThreadPoolExecutor(16) as threads:
        first, *others = threads.map(get, range(16))
    assert all(other is first for other in others)
    assert made.made() is first


def test_a_forked_child_makes_its_own_even_if_the_parent_was_making_one() -> None:
    making, may_go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def make() -> int:
        if os.getpid() == parent:
            making.set()
            may_go_on.wait(30)
        return os.getpid()

    made = PerProcess(make)
    thread = threading.Thread(target=made.get)
    thread.start()
    making.wait(30)  # the parent holds the lock from now on
    child = os.fork()
    if child == 0:
        os._exit(0 if made.made() is None and made.get() == os.getpid() == made.made() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    may_go_on.set()
    thread.join(30)
    assert made.get() == parent


def test_what_could_not_be_made_is_tried_again() -> None:
    answers = iter([OSError("not yet"), "made"])

    def make() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    made = PerProcess(make)
    with pytest.raises(OSError, match="not yet"):
        made.get()
    assert made.get() == made.get() == "made"
