"""Native threads that many workers share: each gets its turn, in its own order, whatever the others do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from runtime_parts import wait_until

from geraft.runtime.pool import Pool, Strand
from geraft.runtime.worker import Worker


class Steps(Worker):
    """Its items are functions."""

    def __init__(self, pool: Pool) -> None:
        super().__init__("steps", self._crash, pool)
        self.crashes: list[BaseException] = []
        self.start()

    def _crash(self, error: BaseException) -> None:
        self.crashes.append(error)


class Hog:
    """A worker that always has more to do."""

    def __init__(self, pool: Pool) -> None:
        self.worker = Steps(pool)
        self.turns = 0
        self.enough = False
        self.worker.queue.put(self._turn)

    def _turn(self) -> None:
        self.turns += 1
        if not self.enough:
            self.worker.queue.put(self._turn)


def run_on(worker: Worker, run: Callable[[], Any]) -> Any:
    return worker.run(run, 10.0, lambda: AssertionError("its turn did not come"))


def test_workers_that_always_have_more_to_do_hold_no_thread_for_themselves() -> None:
    """As many of them as there are threads: a group whose log is written all the time starves no other group."""
    pool = Pool("test", 2)
    hogs = [Hog(pool), Hog(pool)]
    wait_until(lambda: all(hog.turns for hog in hogs))
    late = Steps(pool)
    for number in range(20):
        assert run_on(late, lambda number=number: number) == number
    before = [hog.turns for hog in hogs]
    wait_until(lambda: all(hog.turns > turns for hog, turns in zip(hogs, before, strict=True)))
    for hog in hogs:
        hog.enough = True
    pool.end_soon()


def test_a_worker_that_gives_way_keeps_its_order_and_runs_on_one_thread_at_a_time() -> None:
    pool = Pool("test", 3)
    workers = [Steps(pool) for _ in range(8)]
    done: dict[int, list[int]] = {which: [] for which in range(8)}
    busy: set[int] = set()
    overlaps: list[int] = []

    def step(which: int, number: int) -> None:
        if which in busy:
            overlaps.append(which)
        busy.add(which)
        assert workers[which].inside
        done[which].append(number)
        busy.discard(which)

    for number in range(500):
        for which, worker in enumerate(workers):
            worker.queue.put(lambda which=which, number=number: step(which, number))
    assert all(worker.stop(20.0) for worker in workers)
    assert done == {which: list(range(500)) for which in range(8)}
    assert not overlaps
    assert not any(worker.crashes or worker.inside for worker in workers)
    pool.end_soon()


def test_what_was_put_before_the_end_of_a_crowded_pool_is_done() -> None:
    pool = Pool("test", 1)
    gate, done = threading.Event(), [0, 0]
    workers = [Steps(pool), Steps(pool)]

    def count(which: int) -> None:
        done[which] += 1

    workers[0].queue.put(gate.wait)
    for _ in range(100):
        for which, worker in enumerate(workers):
            worker.queue.put(lambda which=which: count(which))
    pool.end_soon()
    gate.set()
    wait_until(lambda: done == [100, 100])


def test_an_item_that_can_not_be_worked_off_does_not_hold_up_those_behind_it() -> None:
    pool = Pool("test", 1)
    done: list[str] = []

    def work_off() -> None:
        while not strand.empty():
            item = strand.get_nowait()
            if item == "bad":
                raise ValueError(item)
            done.append(item)

    strand = Strand(pool, work_off)
    for item in ("good", "bad", "better"):
        strand.put(item)
    wait_until(lambda: done == ["good", "better"])
    strand.put("best")
    wait_until(lambda: done == ["good", "better", "best"])
    pool.end_soon()
