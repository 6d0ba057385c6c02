"""The sites of docs/web.md under the servers that it names: real gunicorn, real Django, real forks and reloaders."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from geraft.client import Client
from geraft.testing.cluster import free_addresses, wait_until

pytestmark = pytest.mark.slow  # a web server and a node are started for each

ROOT = Path(__file__).resolve().parents[2]
DJANGO = ["-m", "django"]
SETTINGS = {"DJANGO_SETTINGS_MODULE": "shop_settings"}


@pytest.fixture
def node_address(tmp_path: Path) -> str:
    """Of the node; the files of the page lie in tmp_path, with this address for the one in the text."""
    (address,) = free_addresses(1)
    page = (ROOT / "docs" / "web.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None, "each example begins with the name of its file"
        (tmp_path / name[1]).write_text(code.replace("127.0.0.1:7001", address))
    return address


@contextmanager
def running(directory: Path, *command: str) -> Iterator[Path]:
    """The command, in a session of its own that ends with the block; gives the file of what it says."""
    log = directory / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{directory}", "PYTHONUNBUFFERED": "1", **SETTINGS},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield log
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM, 3), log.read_text()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too, should any be left
        except ProcessLookupError:
            pass
        process.wait(30)


def ask(site: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(site, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_until_it_serves(site: str, log: Path, path: str) -> None:
    def serves() -> bool:
        try:
            return ask(site, "GET", path)[0] in (200, 404)
        except OSError:
            return False

    try:
        wait_until(f"{site} serves", serves, 60.0)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-4000:]}") from None


def write_and_read(site: str) -> None:
    def visitor(number: int) -> None:
        for turn in range(3):
            value = b"%d-%d" % (number, turn)
            assert ask(site, "PUT", f"/key{number}", value) == (204, b"")
            assert ask(site, "GET", f"/key{number}") == (200, value)

    with ThreadPoolExecutor(8) as visitors:
        list(visitors.map(visitor, range(16)))


@pytest.mark.parametrize(
    ("module", "workers"),
    [
        ("site_with_node:app", ["--threads", "8"]),
        ("site_with_node:app", ["-k", "gevent"]),
        ("site_with_node:app", ["--threads", "8", "--preload"]),
        ("site_with_node:app", ["-k", "gevent", "--preload"]),
        ("shop_wsgi:application", ["--threads", "8"]),
        ("shop_wsgi:application", ["-k", "gevent"]),
    ],
    ids=[
        "flask-threads",
        "flask-gevent",
        "flask-threads-preload",
        "flask-gevent-preload",
        "django-threads",
        "django-gevent",
    ],
)
def test_a_node_lives_in_the_only_worker(tmp_path: Path, node_address: str, module: str, workers: list[str]) -> None:
    (site,) = free_addresses(1)
    command = ["-m", "gunicorn", "-w", "1", "-b", site, *workers, module]
    with running(tmp_path, *command) as log:
        wait_until_it_serves(site, log, "/key")
        write_and_read(site)
    assert "Traceback" not in log.read_text()
    with running(tmp_path, *command) as log:  # over what it left
        wait_until_it_serves(site, log, "/key")
        assert ask(site, "GET", "/key3") == (200, b"3-2")


def test_a_second_worker_is_refused_and_says_why(tmp_path: Path, node_address: str) -> None:
    (site,) = free_addresses(1)
    with running(tmp_path, "-m", "gunicorn", "-w", "2", "--threads", "4", "-b", site, "site_with_node:app") as log:

        def one_refused() -> bool:
            try:
                ask(site, "GET", "/key")
            except OSError:
                return False
            return "StorageLocked" in log.read_text()

        wait_until("a worker finds the store locked", one_refused, 60.0)
        assert "is in use by process" in log.read_text()


def test_djangos_reloader_starts_one_node_and_another_after_a_change(tmp_path: Path, node_address: str) -> None:
    (site,) = free_addresses(1)
    with running(tmp_path, *DJANGO, "runserver", site) as log:
        wait_until_it_serves(site, log, "/key")
        assert ask(site, "PUT", "/key", b"before") == (204, b"")
        time.sleep(1.1)  # the reloader compares the times of files once a second
        (tmp_path / "shop.py").write_text((tmp_path / "shop.py").read_text() + "\n# changed\n")
        wait_until("it reloads", lambda: "reloading" in log.read_text(), 60.0)
        wait_until_it_serves(site, log, "/key")
        assert ask(site, "GET", "/key") == (200, b"before")
    assert "StorageLocked" not in log.read_text()


def test_a_management_command_starts_no_node(tmp_path: Path, node_address: str) -> None:
    done = subprocess.run(
        [sys.executable, *DJANGO, "check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", **SETTINGS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout
    assert not (tmp_path / "n1").exists()


def test_four_workers_share_a_node_beside_them(tmp_path: Path, node_address: str) -> None:
    (site,) = free_addresses(1)
    serve = ["-m", "geraft", "serve", "--id", "n1", "--bootstrap", f"n1={node_address}", "--data-dir", "n1"]
    node_directory = tmp_path / "node"
    node_directory.mkdir()
    (node_directory / "bank.py").write_text((tmp_path / "bank.py").read_text())
    with (
        running(node_directory, *serve, "--app", "bank:Bank"),
        running(tmp_path, "-m", "gunicorn", "-w", "4", "--threads", "4", "-b", site, "site_with_client:app") as log,
    ):
        wait_until_it_serves(site, log, "/balance")
        with ThreadPoolExecutor(16) as visitors:
            answers = list(visitors.map(lambda _: ask(site, "POST", "/deposit/5"), range(100)))
        assert [status for status, _ in answers] == [200] * 100
        assert sorted(int(total) for _, total in answers) == list(range(5, 505, 5)), "each deposit was made once"
        assert ask(site, "GET", "/balance") == (200, b"500")
        with Client(node_address) as client:
            assert client.read(b"") == b"500"
    assert "Traceback" not in log.read_text()
