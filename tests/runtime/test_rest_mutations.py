"""Each way to break a rest in rest_mutations.py is noticed by the tests that it names, and every test has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from broken_package import Mutation, noticed_by
from rest_mutations import MUTATIONS

HERE = Path(__file__).resolve().parent
TESTS = HERE / "test_rest.py"


def names_of_tests() -> set[str]:
    return set(re.findall(r"^def (test_\w+)", TESTS.read_text(), re.MULTILINE))


def test_every_mutation_fits_and_names_tests_that_exist() -> None:
    for mutation in MUTATIONS:
        source = (HERE.parent.parent / "geraft" / mutation.file).read_text()
        assert source.count(mutation.old) == 1, mutation.name
        assert mutation.tests and set(mutation.tests) <= names_of_tests(), mutation.name
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_every_test_of_a_rest_is_proved_by_a_mutation() -> None:
    assert names_of_tests() == {name for mutation in MUTATIONS for name in mutation.tests}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str] | str]:
    """By mutation: the tests that failed, or what went wrong else."""
    return noticed_by(MUTATIONS, "", TESTS, tmp_path_factory.mktemp("rest"))


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first of them has all the mutations made
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_broken_rest_is_noticed(mutation: Mutation, failed: dict[str, set[str] | str]) -> None:
    assert failed[mutation.name] == set(mutation.tests)
