"""FsspecRepository on an object store: moto's S3 server, over HTTP."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from geraft import FsspecRepository
from geraft.errors import StorageCorrupt, StorageFailed

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="snapshots")
    yield url
    server.stop()


def test_snapshots_are_objects_of_a_bucket(url: str) -> None:
    repository = FsspecRepository("s3://snapshots/n1", endpoint_url=url)
    assert repository.indexes() == []
    large = random.Random(1).randbytes(12_000_000)  # more than one part of an upload
    repository.save(5, iter([large[:7_000_000], large[7_000_000:]]))
    repository.save(6, [b"small"])
    repository.save(7, [])
    assert [b"".join(repository.open(index)) for index in (5, 6, 7)] == [large, b"small", b""]
    repository.delete(6)
    repository.delete(6)
    assert FsspecRepository("s3://snapshots/n1", endpoint_url=url).indexes() == [5, 7]
    with pytest.raises(StorageFailed, match="no snapshot"):
        b"".join(repository.open(6))

    def broken_off() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("the sender is gone")

    with pytest.raises(StorageFailed, match="the sender is gone"):
        repository.save(8, broken_off())
    assert repository.indexes() == [5, 7]

    files = repository._files
    name = repository._path(5)
    files.pipe_file(name, files.cat_file(name)[:-20])
    files.invalidate_cache()
    with pytest.raises(StorageCorrupt):
        b"".join(repository.open(5))
