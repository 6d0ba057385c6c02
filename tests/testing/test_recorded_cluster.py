"""A real cluster under faults: what callers of geraft.kv see while leaders die is linearizable."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from geraft.errors import GeraftError
from geraft.testing.cluster import Cluster, wait_until
from geraft.testing.linearizability import Recorder, assert_linearizable
from geraft.testing.models import CompareAndSet, Delete, Get, KeyValue, KeyValueInput, Put, call_key_value


def any_input(rng: random.Random, value: bytes) -> KeyValueInput:
    key = f"k{rng.randrange(5)}"
    others = [Put(key, value), Delete(key), CompareAndSet(key, None, value)]
    return rng.choice([Get(key), Get(key), Get(key), *others])


@pytest.mark.slow
def test_callers_see_one_store_while_leaders_are_killed(tmp_path: Path) -> None:
    recorder = Recorder()
    ending = threading.Event()
    unexpected: list[BaseException] = []

    def call(cluster: Cluster, number: int) -> None:
        rng = random.Random(number)
        client = cluster.client()
        for count in range(10_000):
            if ending.wait(0.01):
                return
            try:
                with recorder.operation(f"caller {number}", any_input(rng, b"%d/%d" % (number, count))) as one:
                    one.output = call_key_value(client, one.input)
            except GeraftError:
                continue
            except BaseException as error:
                unexpected.append(error)
                return

    def wait_for_calls(count: int) -> None:
        wait_until(f"{count} calls", lambda: len(recorder.history()) >= count or unexpected, 60.0)
        assert not unexpected

    with Cluster(tmp_path, 3) as cluster:
        threads = [threading.Thread(target=call, args=(cluster, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for wanted in (300, 600):
                wait_for_calls(wanted)
                cluster.restart(cluster.leader())
            wait_for_calls(900)
        finally:
            ending.set()
            for thread in threads:
                thread.join()
    assert not unexpected
    report = assert_linearizable(recorder.history(), KeyValue())
    assert report.operations >= 900
