"""Ways to break the core, each with the tests that must notice: the proof that they can fail.

test_mutations.py makes each change in a copy of the package and runs the named tests there. `old` must occur exactly
once in its file, so a change of the core that moves it asks for a look here.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """file: below geraft/core. tests: names in tests/core/test_rules.py, each of which must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "an event is forgotten in one role",
        "raft.py",
        "([Role.PRE_CANDIDATE], RequestVoteReply, election.count_pre_vote),",
        "",
        ("test_rule_01_every_event_has_one_place_in_every_role",),
    ),
    Mutation(
        "effects depend on chance that was not passed in",
        "replication.py",
        "    first_index = raft.append_own(proposal.kind, proposal.commands)",
        "    import random\n"
        "    first_index = raft.append_own(proposal.kind, (b'%f' % random.random(), *proposal.commands[1:]))",
        ("test_rule_01_equal_state_and_event_give_equal_effects",),
    ),
    Mutation(
        "a lower term is handled like our own",
        "raft.py",
        "        if message.term < self.term:",
        "        if message.term < 0:",
        (
            "test_rule_02_a_lower_term_is_refused_with_ours",
            "test_rule_02_an_answer_of_another_term_does_not_count",
        ),
    ),
    Mutation(
        "a deposed leader is not told of our term",
        "raft.py",
        "            elif isinstance(message, Heartbeat):",
        "            elif False:",
        ("test_rule_02_a_lower_term_is_refused_with_ours",),
    ),
    Mutation(
        "replies do not make a leader step down",
        "raft.py",
        "            if isinstance(message, RequestVoteReply) and message.pre_vote and message.granted:",
        "            if isinstance(message, RequestVoteReply | AppendEntriesReply | HeartbeatReply):",
        ("test_rule_02_a_higher_term_is_adopted_and_a_leader_steps_down",),
    ),
    Mutation(
        "anybody is listened to",
        "raft.py",
        "message.sender, message.sender_store) is not None:",
        "message.sender, message.sender_store) is not None and False:",
        ("test_rule_02_a_replaced_store_is_not_listened_to",),
    ),
    Mutation(
        "prev is not checked",
        "replication.py",
        "    if prev.index > log.base.index and log.term_at(prev.index) != prev.term:",
        "    if prev.index > log.last_entry.index:",
        ("test_rule_03_entries_that_do_not_follow_the_log_are_rejected",),
    ),
    Mutation(
        "only the entry that conflicts is replaced",
        "replication.py",
        "                _truncate_to(raft, first_new - 1)",
        "                return",
        (
            "test_rule_03_a_conflict_drops_everything_after_it",
            "test_rule_03_a_configuration_that_is_dropped_is_rolled_back",
        ),
    ),
    Mutation(
        "an append drops all that follows it, conflict or not",
        "replication.py",
        "            if first_new > verified:\n                continue  # we have all of it",
        "            if first_new > verified:\n                _truncate_to(raft, verified)\n                continue",
        ("test_rule_03_a_message_that_was_overtaken_drops_nothing",),
    ),
    Mutation(
        "a dropped configuration stays in force",
        "log.py",
        "            self.configurations.pop()",
        "            break",
        ("test_rule_03_a_configuration_that_is_dropped_is_rolled_back",),
    ),
    Mutation(
        "what is committed may be dropped",
        "replication.py",
        "            if first_new <= raft.commit_index:",
        "            if False:",
        ("test_rule_03_nothing_committed_is_dropped",),
    ),
    Mutation(
        "the follower commits up to its own end",
        "replication.py",
        "    raft.commit_to(min(request.commit_index, verified))",
        "    raft.commit_to(request.commit_index)",
        ("test_rule_03_no_more_is_committed_than_the_message_verified",),
    ),
    Mutation(
        "heartbeats carry the leader's commit index",
        "replication.py",
        "                commit_index=min(raft.commit_index, progress.match_index),",
        "                commit_index=raft.commit_index,",
        ("test_rule_03_a_heartbeat_tells_no_more_than_the_follower_acknowledged",),
    ),
    Mutation(
        "entries of earlier terms are committed by counting",
        "replication.py",
        "    if index <= raft.commit_index or raft.log.term_at(index) != raft.term:",
        "    if index <= raft.commit_index:",
        ("test_rule_04_an_entry_of_an_earlier_term_is_not_committed_by_counting",),
    ),
    Mutation(
        "the leader counts itself before its disk has the entry",
        "replication.py",
        "    index = agreed_index(raft, raft.durable_index)",
        "    index = agreed_index(raft, raft.log.last_entry.index)",
        ("test_rule_04_we_count_ourselves_only_once_durable",),
    ),
    Mutation(
        "learners count",
        "membership.py",
        "        groups = (self.voters, self.outgoing) if self.outgoing else (self.voters,)",
        "        groups = (self.voters + self.learners,)",
        ("test_rule_04_the_voters_of_the_latest_configuration_count",),
    ),
    Mutation(
        "half is a majority",
        "quorum.py",
        "        reached = values[(len(values) - 1) // 2] if values else 0",
        "        reached = values[len(values) // 2] if values else 0",
        ("test_rule_04_a_leader_outside_the_configuration_does_not_count_itself",),
    ),
    Mutation(
        "a vote is told before it is durable",
        "election.py",
        "    if granted and not request.pre_vote:\n        raft.send_when_durable(request.sender, reply)",
        "    if granted and not request.pre_vote:\n        raft.send(request.sender, reply)",
        ("test_rule_05_a_vote_is_durable_before_it_is_given",),
    ),
    Mutation(
        "what is in memory counts as durable",
        "raft.py",
        "        if self._has_unsaved or self._persists_sent > self._persists_done:",
        "        if self._has_unsaved:",
        (
            "test_rule_05_a_vote_is_durable_before_it_is_given",
            "test_rule_05_entries_are_durable_before_they_are_acknowledged",
        ),
    ),
    Mutation(
        "a term is told before it is durable",
        "raft.py",
        "        if self.durable_term == self.term:\n            self.send(to, message)",
        "        if True:\n            self.send(to, message)",
        ("test_rule_05_a_term_is_durable_before_it_is_told",),
    ),
    Mutation(
        "our own vote counts at once",
        "election.py",
        "    raft.votes.add(reply.sender)\n    _decide(raft)".replace("    raft", "        raft", 1),
        "        raft.votes |= {reply.sender, raft.id}\n    _decide(raft)",
        ("test_rule_05_our_own_vote_counts_and_is_told_once_durable",),
    ),
    Mutation(
        "votes are asked for before our own is durable",
        "election.py",
        "        raft.send_when_durable(id, raft.message(RequestVote, last_entry=raft.log.last_entry, forced=forced))",
        "        raft.send(id, raft.message(RequestVote, last_entry=raft.log.last_entry, forced=forced))",
        ("test_rule_05_our_own_vote_counts_and_is_told_once_durable",),
    ),
    Mutation(
        "what was truncated counts as durable",
        "raft.py",
        "            event.last_entry is not None\n"
        "            and event.sequence >= self.persists_count_from\n"
        "            and self.log.term_at(event.last_entry.index) == event.last_entry.term\n",
        "            event.last_entry is not None\n",
        ("test_rule_05_what_was_truncated_meanwhile_does_not_count_as_durable",),
    ),
    Mutation(
        "reads do not wait for an entry of our term",
        "reads.py",
        " or raft.reads_confirming or raft.commit_index < raft.noop_index:",
        " or raft.reads_confirming:",
        ("test_rule_06_a_read_waits_for_an_entry_of_our_own_term",),
    ),
    Mutation(
        "lease reads do not wait for an entry of our term",
        "reads.py",
        "    if request.lease and raft.commit_index >= raft.noop_index and holds_lease(raft):",
        "    if request.lease and holds_lease(raft):",
        ("test_rule_06_a_read_waits_for_an_entry_of_our_own_term",),
    ),
    Mutation(
        "any answer confirms a read",
        "reads.py",
        "    while raft.reads_confirming and raft.reads_confirming[0][0] <= agreed:",
        "    while raft.reads_confirming:",
        ("test_rule_06_a_read_needs_a_round_that_started_after_it",),
    ),
    Mutation(
        "a read joins the round that is on its way",
        "reads.py",
        "    raft.reads_waiting.append(request.token)\n",
        "    raft.reads_waiting.append(request.token)\n"
        "    if raft.reads_confirming:\n"
        "        round, tokens, index = raft.reads_confirming.pop()\n"
        "        raft.reads_confirming.append((round, (*tokens, raft.reads_waiting.pop()), index))\n",
        ("test_rule_06_a_read_that_came_during_a_round_needs_the_next_one",),
    ),
    Mutation(
        "the lease lasts as long as the promise, and longer",
        "reads.py",
        "settings.election_timeout_seconds) * (1 - settings.clock_drift_max)",
        "settings.election_timeout_seconds) * (1 + settings.clock_drift_max)",
        ("test_rule_06_a_lease_ends_before_any_follower_may_vote",),
    ),
    Mutation(
        "the lease rests on our own election timeout",
        "reads.py",
        "min(reply.silent_seconds, settings.election_timeout_seconds)",
        "settings.election_timeout_seconds",
        (
            "test_rule_06_a_lease_rests_on_what_the_follower_promises_whatever_ours_is",
            "test_rule_06_a_follower_tuned_to_more_promises_what_it_would_keep_after_a_restart",
        ),
    ),
    Mutation(
        "to be tuned to less shortens what was promised",
        "replication.py",
        "max(raft.silent_until_seconds, raft.now + raft.settings.election_timeout_seconds)",
        "raft.now + raft.settings.election_timeout_seconds",
        ("test_rule_06_a_follower_tuned_to_less_keeps_what_it_promised",),
    ),
    Mutation(
        "silence was promised, and a campaign starts",
        "election.py",
        "raft.now < raft.silent_until_seconds or not raft.detector.suspects(raft.now)",
        "not raft.detector.suspects(raft.now)",
        ("test_rule_06_a_follower_tuned_to_less_keeps_what_it_promised",),
    ),
    Mutation(
        "more is promised than a restart would keep",
        "replication.py",
        "min(raft.settings.election_timeout_seconds, raft.silent_seconds_after_restart)",
        "raft.settings.election_timeout_seconds",
        ("test_rule_06_a_follower_tuned_to_more_promises_what_it_would_keep_after_a_restart",),
    ),
    Mutation(
        "a lease outlives a transfer",
        "transfer.py",
        "        raft.lease_broken = True",
        "        raft.lease_broken = False",
        ("test_rule_06_a_transfer_ends_the_lease",),
    ),
    Mutation(
        "reads are forgotten at step-down",
        "raft.py",
        "            reads.refuse_all(self)\n",
        "",
        ("test_rule_06_step_down_refuses_reads_that_wait", "test_rule_10_step_down_ends_all_that_waits"),
    ),
    Mutation(
        "no pre-vote",
        "election.py",
        "        raft.become_pre_candidate()",
        "        raft.become_candidate(forced=False)",
        ("test_rule_09_a_campaign_starts_with_a_pre_vote_that_changes_nothing",),
    ),
    Mutation(
        "no check-quorum",
        "replication.py",
        "    if not hears_quorum(raft):",
        "    if False:",
        ("test_rule_09_a_leader_without_its_quorum_steps_down",),
    ),
    Mutation(
        "a leader judges itself by its own silence",
        "election.py",
        "    if raft.role is Role.LEADER:\n        return True\n",
        "    if raft.role is Role.LEADER:\n        return False\n",
        ("test_rule_09_a_leader_refuses_votes",),
    ),
    Mutation(
        "a living leader is no reason to refuse",
        "election.py",
        "    if request.term < raft.term or (hears_leader(raft) and not forced):",
        "    if request.term < raft.term:",
        (
            "test_rule_09_a_leader_refuses_votes",
            "test_rule_09_who_hears_a_leader_refuses_votes",
            "test_rule_09_who_restarts_keeps_its_silence",
            "test_rule_06_a_lease_ends_before_any_follower_may_vote",
        ),
    ),
    Mutation(
        "a restart forgets the promise of silence",
        "raft.py",
        "(settings.election_timeout_seconds if ballot.term > 0 else 0)",
        "0",
        ("test_rule_09_who_restarts_keeps_its_silence",),
    ),
    Mutation(
        "a vote given does not put our campaign off",
        "election.py",
        "        raft.detector.restart(raft.now)  #",
        "        #",
        ("test_rule_09_appends_heartbeats_and_votes_given_put_a_campaign_off",),
    ),
    Mutation(
        "appends and heartbeats do not put our campaign off",
        "replication.py",
        "    raft.detector.heard(raft.now)\n",
        "",
        (
            "test_rule_09_appends_heartbeats_and_votes_given_put_a_campaign_off",
            "test_rule_09_regular_heartbeats_do_not_make_the_detector_nervous",
        ),
    ),
    Mutation(
        "no floor on the time to suspicion, no pause, no least deviation",
        "failure_detector.py",
        "min(max(wanted, self.floor_seconds), CAP_FACTOR * self.floor_seconds)",
        "mean + 3 * 0.009 + 0 * wanted",
        ("test_rule_09_regular_heartbeats_do_not_make_the_detector_nervous",),
    ),
    Mutation(
        "a proposal is told of after it was sent",
        "replication.py",
        "    raft.emit(\n        ProposalAccepted(",
        "    for id in raft.progress:\n        send_entries(raft, id)\n    raft.emit(\n        ProposalAccepted(",
        ("test_rule_10_a_proposal_is_registered_before_anyone_can_see_it",),
    ),
    Mutation(
        "waiting writes are forgotten at step-down",
        "raft.py",
        "            self.emit(WaitersOutcomeUnknown(term=old_term))\n",
        "",
        (
            "test_rule_10_step_down_ends_all_that_waits",
            "test_rule_02_a_higher_term_is_adopted_and_a_leader_steps_down",
        ),
    ),
    Mutation(
        "a transfer is forgotten at step-down",
        "raft.py",
        "            transfer.ended(self, term > old_term)\n",
        "",
        ("test_rule_10_step_down_ends_all_that_waits",),
    ),
    Mutation(
        "commitment leaves gaps",
        "raft.py",
        "        first_index = self.commit_index + 1\n        self.commit_index = index",
        "        first_index = index\n        self.commit_index = index",
        ("test_rule_10_commitment_is_told_once_and_without_gaps",),
    ),
    Mutation(
        "a transfer has no end",
        "transfer.py",
        "    if transfer is not None and raft.now >= transfer.deadline_seconds:",
        "    if False:",
        ("test_rule_10_a_transfer_always_ends",),
    ),
    Mutation(
        "terms have no end",
        "election.py",
        "    if raft.term >= INDEX_MAX:",
        "    if False:",
        ("test_rule_11_the_highest_term_there_is_does_no_harm",),
    ),
    Mutation(
        "acknowledgements are believed, whatever they say",
        "replication.py",
        "    if reply.match_index > raft.log.last_entry.index:",
        "    if False:",
        ("test_rule_11_answers_about_what_was_never_sent_do_no_harm",),
    ),
    Mutation(
        "a leader takes appends of its own term",
        "raft.py",
        "        (NOT_LEADING, AppendEntries, replication.answer_append),",
        "        (EVERY_ROLE, AppendEntries, replication.answer_append),",
        (
            "test_rule_11_a_forged_second_leader_of_our_term_does_no_harm",
            "test_rule_01_every_event_has_one_place_in_every_role",
        ),
    ),
    Mutation(
        "a snapshot counts before it is recorded",
        "compaction.py",
        "    raft.emit(RecordSnapshot(snapshot=snapshot))\n\n\ndef count_recorded",
        "    raft.snapshot = snapshot\n    raft.emit(RecordSnapshot(snapshot=snapshot))\n\n\ndef count_recorded",
        ("test_rule_08_a_log_is_cut_behind_a_durable_snapshot_only",),
    ),
    Mutation(
        "the log is cut up to the snapshot",
        "compaction.py",
        "    index = min(raft.snapshot.index - raft.settings.trailing_entries, raft.last_applied)",
        "    index = raft.snapshot.index",
        ("test_rule_08_trailing_entries_and_what_is_not_applied_stay",),
    ),
    Mutation(
        "a cut takes the configuration in force with it",
        "log.py",
        "        del self.configurations[: max(before - 1, 0)]",
        "        del self.configurations[:before]",
        ("test_rule_08_trailing_entries_and_what_is_not_applied_stay",),
    ),
    Mutation(
        "the log is cut under a follower that fetches a snapshot",
        "compaction.py",
        "        if progress.offered is not None and progress.heard_at_seconds >= oldest:",
        "        if False:",
        ("test_rule_08_what_a_follower_needs_that_fetches_a_snapshot_stays",),
    ),
    Mutation(
        "always the newest snapshot is offered",
        "compaction.py",
        "    snapshot = progress.offered\n",
        "    snapshot = None\n",
        ("test_rule_08_a_follower_keeps_the_snapshot_that_it_was_offered",),
    ),
    Mutation(
        "a snapshot of what is committed is fetched",
        "compaction.py",
        "    return entry.index <= raft.commit_index or raft.log.term_at(entry.index) == entry.term",
        "    return raft.log.term_at(entry.index) == entry.term",
        ("test_rule_08_a_snapshot_of_what_is_committed_is_ignored_and_acknowledged",),
    ),
    Mutation(
        "a fetch goes on when the log has come further",
        "raft.py",
        "        if self.fetching is not None and self.fetching.last_entry.index <= index:",
        "        if False:",
        ("test_rule_08_a_log_that_comes_further_ends_the_fetch",),
    ),
    Mutation(
        "a log that reaches as far is kept, whatever it holds",
        "compaction.py",
        "    elif agrees(raft, snapshot.last_entry):",
        "    elif snapshot.index <= raft.log.last_entry.index:",
        ("test_rule_08_a_log_that_conflicts_gives_way_to_the_snapshot",),
    ),
    Mutation(
        "a snapshot is acknowledged before it is durable",
        "compaction.py",
        "        raft.send_when_durable(raft.leader_id, raft.append_reply(match_index=snapshot.index))",
        "        raft.reply(raft.leader_id, raft.append_reply(match_index=snapshot.index))",
        ("test_rule_08_a_log_that_conflicts_gives_way_to_the_snapshot",),
    ),
    Mutation(
        "nobody is told of the snapshot's configuration",
        "compaction.py",
        "    raft.configuration_changed()\n",
        "",
        ("test_rule_08_the_configuration_of_an_installed_snapshot_comes_into_force",),
    ),
    Mutation(
        "every snapshot replaces the log",
        "compaction.py",
        "    elif agrees(raft, snapshot.last_entry):",
        "    elif False:",
        ("test_rule_08_a_log_that_agrees_by_now_is_kept",),
    ),
    Mutation(
        "a snapshot is installed beside what the app is at",
        "compaction.py",
        "    if snapshot is None or raft.applying:",
        "    if snapshot is None:",
        ("test_rule_08_a_snapshot_is_installed_after_what_the_app_was_handed_before",),
    ),
    Mutation(
        "a snapshot is taken from whom it was asked, whoever leads now",
        "raft.py",
        "        if leader_id and self.fetching is not None and self.fetching.leader != leader_id:",
        "        if False:",
        ("test_rule_08_a_snapshot_comes_from_the_leader_we_know_only",),
    ),
    Mutation(
        "nothing is appended while a snapshot comes",
        "replication.py",
        "    hear_leader(raft, request.sender)\n    log = raft.log\n",
        "    hear_leader(raft, request.sender)\n    log = raft.log\n    if raft.fetching:\n        return\n",
        ("test_rule_08_appends_and_heartbeats_are_answered_during_a_fetch",),
    ),
)
