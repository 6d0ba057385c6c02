"""The code in geraft/pb is what proto/ generates: nobody edited it, nobody forgot to run `make proto`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_generated_code_is_what_proto_generates(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="generating needs the dev extra, which `make test-all` leaves out")
    subprocess.run([sys.executable, str(ROOT / "tools/generate_code.py"), str(tmp_path)], check=True, timeout=60)
    fresh = {path.name: path.read_text() for path in (tmp_path / "geraft/pb").iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "geraft/pb").glob("*_pb2*")}
    assert fresh.keys() == kept.keys()
    for name, text in fresh.items():
        assert kept[name] == text, f"geraft/pb/{name} is not what proto/ generates: run `make proto`"
