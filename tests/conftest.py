"""Options of our own for pytest, and what must be set before anything imports grpc."""

from __future__ import annotations

import os

# geraft sets it when it is imported; some test modules import grpc before that, and children of a fork then abort.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, not whether the property holds.
settings.register_profile("geraft", deadline=None)
settings.load_profile("geraft")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write what the scenarios print now into tests/scenarios/*.txt"
    )
