"""Each way to break the core in mutations.py is noticed by the tests that it names, and every rule has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from broken_package import Mutation, noticed_by
from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "tests" / "core" / "test_rules.py"


def rule_tests() -> set[str]:
    return set(re.findall(r"^def (test_rule_\w+)", RULES.read_text(), re.MULTILINE))


def test_every_mutation_fits_the_core_and_names_tests_that_exist() -> None:
    for mutation in MUTATIONS:
        source = (ROOT / "geraft" / "core" / mutation.file).read_text()
        assert source.count(mutation.old) == 1, mutation.name
        assert set(mutation.tests) <= rule_tests(), mutation.name
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_every_test_of_a_rule_is_proved_by_a_mutation() -> None:
    proved = {name for mutation in MUTATIONS for name in mutation.tests}
    by_shape = {"test_rule_02_every_message_names_its_sender_its_store_and_its_term"}  # a mutation would not import
    assert rule_tests() - proved == by_shape


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str] | str]:
    """By mutation: the tests that failed, or what went wrong else."""
    return noticed_by(MUTATIONS, "core/", RULES, tmp_path_factory.mktemp("core"))


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_broken_core_is_noticed(mutation: Mutation, failed: dict[str, set[str] | str]) -> None:
    assert failed[mutation.name] == set(mutation.tests)
