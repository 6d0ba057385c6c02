"""Everything that decodes bytes refuses what is wrong with the error it promises; a longer run is `make fuzz`."""

from __future__ import annotations

import pytest
from fuzzing import TARGETS, Target, corpus_of, fuzz

from geraft.core import entries
from geraft.pb import geraft_pb2 as pb


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_decoded_or_refused(name: str) -> None:
    target = TARGETS[name]
    inputs = corpus_of(target)
    good = 0
    for data in inputs:
        try:
            target.decode(data)
            good += 1
        except target.allowed:
            pass
    assert good, "no example is a good one: the fuzzing would begin nowhere"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_almost_right_bytes_are_refused_as_promised(name: str) -> None:
    outcome = fuzz(TARGETS[name], seconds=1.0, seed=1)
    assert not outcome.broken, outcome.broken
    assert outcome.runs > 10


def test_a_decoder_that_lets_an_error_out_is_found() -> None:
    """A term that no store can hold, after a batch that is right."""

    def careless(data: bytes) -> None:
        record = pb.EntryBatch.FromString(data)
        assert record.term <= entries.INDEX_MAX

    careful = TARGETS["log_record"]
    outcome = fuzz(Target("careless", careless, careful.allowed, careful.examples), seconds=1.0, seed=1)
    assert any(how.startswith("DecodeError") for how in outcome.broken)
    assert any(how.startswith("AssertionError") for how in outcome.broken)
