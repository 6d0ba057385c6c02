"""A Flask site whose views write to and read from a node in its own process. Prints the address it serves.

python flask_site.py threaded|patched
"""

# ruff: noqa: E402  (what is patched must be patched before it is imported)

import sys

PATCHED = sys.argv[1] == "patched"
if PATCHED:
    from gevent import monkey

    monkey.patch_all()

import socket

from flask import Flask

from geraft import MemoryRepository, MemoryStorage, RaftNode, to_raft_app
from geraft.kv import KeyValueApp, decode_value, get, put

node = RaftNode(
    to_raft_app(KeyValueApp(), MemoryRepository()),
    MemoryStorage(),
    id="n1",
    listen="127.0.0.1:0",
    bootstrap={"n1": "127.0.0.1:1"},
).start()
site = Flask(__name__)


@site.put("/<key>/<value>")
def write(key: str, value: str) -> str:
    return str(node.commit(put(key, value.encode())))


@site.get("/<key>")
def read(key: str) -> bytes:
    return decode_value(node.read(get(key))) or b""


listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
if PATCHED:
    from gevent.pywsgi import WSGIServer

    WSGIServer(listener, site, log=None).serve_forever()
else:
    from werkzeug.serving import make_server

    make_server("127.0.0.1", 0, site, threaded=True, fd=listener.fileno()).serve_forever()
