"""Generate the code in geraft/pb from proto/: `python tools/generate_code.py DIRECTORY` (as a rule the root)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(directory: Path) -> None:
    """Write geraft/pb/*_pb2*.py and .pyi below directory, which must exist. Needs the dev extra."""
    from grpc_tools import protoc

    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # protoc-gen-mypy
    outputs = [f"--{plugin}={directory}" for plugin in ("python_out", "mypy_out")]
    services = [f"--{plugin}={directory}" for plugin in ("grpc_python_out", "mypy_grpc_out")]
    without_service = [str(ROOT / "proto" / name) for name in ("kv.proto", "file_store.proto")]
    messages_only = [f"-Igeraft/pb={ROOT / 'proto'}", *outputs, *without_service]
    with_service = [f"-Igeraft/pb={ROOT / 'proto'}", *outputs, *services, str(ROOT / "proto/geraft.proto")]
    for arguments in (messages_only, with_service):
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc refused: see above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
