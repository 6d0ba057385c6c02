"""Each way to break the core in mutations.py is noticed by the tests that it names, and every rule has one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

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


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_broken_core_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "geraft", tmp_path / "geraft"
    )  # with what is compiled: only the broken file is compiled anew
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("core_servers.py", "test_rules.py"):
        shutil.copy(ROOT / "tests" / "core" / name, tests / name)
    broken = tmp_path / "geraft" / "core" / mutation.file
    broken.write_text(broken.read_text().replace(mutation.old, mutation.new))
    named = [f"tests/test_rules.py::{name}" for name in mutation.tests]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *named],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    failed = set(re.findall(r"^FAILED \S*::(test_\w+)", result.stdout, re.MULTILINE))
    assert set(mutation.tests) <= failed, f"{set(mutation.tests) - failed} did not notice; failed: {failed}"
