"""A process ends, and forks, however its transports and clients stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real processes, started and ended for each story: minutes together

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

PATCH = "from gevent import monkey; monkey.patch_all()\n"

OPEN = """
import sys, time, threading
from transport_harness import Peer, wait_until, batch
from geraft.client import Client
from geraft.errors import OutcomeUnknown
n1, n2 = Peer("n1"), Peer("n2")
n1.transport.set_peers({"n2": n2.address})
n2.transport.set_peers({"n1": n1.address})
wait_until(lambda: n1.transport.send("n2", n1.heartbeat(1)) or n1.has_event("connected"))
n1.leader = ("n1", n1.address)
client = Client([n1.address])
assert client.apply(b"w") == b"echo w"
n1.answer_calls = False
def wait():
    try:
        client.apply(b"never answered", 60)
    except OutcomeUnknown:
        pass
threading.Thread(target=wait, daemon=True).start()
wait_until(lambda: len(n1.calls) == 2)
print("open", flush=True)
"""

ENDINGS = {
    "by falling off its end": "",
    "by sys.exit in the middle": "sys.exit(0)",
    "after stopping everything": "client.close(); n1.stop(); n2.stop()",
    "after stopping a node only": "n1.stop()",
}

FORK = """
import os
child = os.fork()
if child == 0:
    try:
        client.apply(b"x")
    except Exception as error:
        os._exit(7 if type(error).__name__ == "NodeForked" else 1)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
n1.answer_calls = True
assert client.apply(b"after") == b"echo after"
import subprocess
for _ in range(5):
    subprocess.run(["true"], check=True)
assert client.apply(b"again") == b"echo again"
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends(ending: str, patch: str) -> None:
    done = run(patch + OPEN + ENDINGS[ending])
    assert (done.returncode, done.stdout) == (0, "open\n"), done.stderr
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_a_fork_harms_neither_side(patch: str) -> None:
    done = run(patch + OPEN + FORK)
    assert (done.returncode, done.stdout) == (0, "open\n"), done.stderr
