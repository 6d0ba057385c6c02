"""Majorities by tables; tests/core/test_properties.py compares them with their definition."""

from __future__ import annotations

import pytest

from geraft.core.quorum import agreed_value, is_quorum


def groups(*texts: str) -> tuple[frozenset[str], ...]:
    return tuple(map(frozenset, texts))


@pytest.mark.parametrize(
    ("agreeing", "voters", "expected"),
    [
        ("", ("",), False),  # nobody is a quorum of nobody
        ("1", ("",), False),
        ("1", ("1",), True),
        ("1", ("12",), False),
        ("12", ("12",), True),
        ("1", ("123",), False),
        ("13", ("123",), True),
        ("12", ("1234",), False),  # half is no majority
        ("124", ("1234",), True),
        ("189", ("123",), False),  # others do not count
        ("124", ("123", "345"), False),  # joint: a majority of both (4.3)
        ("1245", ("123", "345"), True),
        ("345", ("123", "345"), False),
    ],
)
def test_is_quorum(agreeing: str, voters: tuple[str, ...], expected: bool) -> None:
    assert is_quorum(set(agreeing), groups(*voters)) is expected


@pytest.mark.parametrize(
    ("values", "voters", "expected"),
    [
        ({}, ("",), 0),
        ({"1": 7}, ("1",), 7),
        ({"1": 7, "2": 5}, ("12",), 5),
        ({"1": 7, "2": 5, "3": 1}, ("123",), 5),
        ({"1": 7, "2": 5, "3": 1, "4": 1}, ("1234",), 1),
        ({"1": 9, "2": 5, "3": 1, "4": 8, "5": 8}, ("123", "345"), 5),
    ],
)
def test_agreed_value(values: dict[str, int], voters: tuple[str, ...], expected: int) -> None:
    assert agreed_value(lambda id: values.get(id, 0), groups(*voters)) == expected
