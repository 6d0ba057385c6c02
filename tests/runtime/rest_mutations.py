"""Ways to break how groups rest, each with the tests of test_rest.py that must notice: the proof that they can fail.

`old` must occur exactly once in its file, so a change that moves it asks for a look here.
"""

from __future__ import annotations

from broken_package import Mutation

REST = "runtime/rest.py"
PULSE = "transport/pulse.py"

MUTATIONS = (
    # When a leader offers
    Mutation(
        "rest with an uncommitted entry",
        REST,
        "raft.commit_index == raft.last_applied == raft.handed_to_app == last_index",
        "True",
        ("test_a_leader_does_not_rest_while_anything_is_under_way",),
    ),
    Mutation(
        "rest with a write under way",
        REST,
        "            and raft.is_durable\n",
        "",
        ("test_a_leader_does_not_rest_while_anything_is_under_way",),
    ),
    Mutation(
        "rest while callers wait",
        REST,
        "            and not self._loop.has_callers\n",
        "",
        ("test_a_leader_does_not_rest_while_anything_is_under_way",),
    ),
    Mutation(
        "rest while a read is confirmed",
        REST,
        "            and not raft.reads_confirming\n",
        "",
        ("test_a_leader_does_not_rest_while_anything_is_under_way",),
    ),
    Mutation(
        "rest without a quorum",
        REST,
        "        if not is_quorum({raft.id, *asked}, raft.configuration.quorum_groups):\n            return\n",
        "",
        ("test_a_leader_offers_nothing_without_a_quorum_whose_pulses_it_feels",),
    ),
    Mutation(
        "rest at once",
        REST,
        "now - self._idle_since >= self._idle_seconds and ",
        "",
        ("test_a_leader_offers_to_rest_once_it_was_idle_for_long_enough",),
    ),
    Mutation(
        "the idle time goes on through work",
        REST,
        "            self._idle_since = None\n            return\n",
        "            return\n",
        ("test_anything_to_do_makes_the_idle_time_begin_anew",),
    ),
    Mutation(
        "a follower that lags is offered to rest",
        REST,
        "progress.match_index < raft.log.last_entry.index or ",
        "",
        ("test_a_leader_offers_nothing_to_anybody_while_a_follower_that_it_reaches_can_not_rest",),
    ),
    Mutation(
        "rest under an old pulse",
        REST,
        "if now - pulse.seen_at > PULSES_MIN * self._pulse_seconds or not",
        "if not",
        ("test_a_leader_offers_nothing_to_anybody_while_a_follower_that_it_reaches_can_not_rest",),
    ),
    Mutation(
        "who lives is left out while its pulse is not felt",
        REST,
        "                return  # it lives",
        "                continue  # it lives",
        ("test_a_leader_offers_nothing_to_anybody_while_a_follower_that_it_reaches_can_not_rest",),
    ),
    Mutation(
        "who is gone keeps all awake",
        REST,
        "                continue  # down",
        "                return  # down",
        ("test_a_follower_that_is_gone_does_not_keep_the_others_awake",),
    ),
    Mutation(
        "rest whatever the times",
        REST,
        "return self._patience_seconds(raft) >= PULSES_MIN * self._pulse_seconds",
        "return True",
        (
            "test_times_that_are_too_short_for_pulses_keep_everybody_awake",
            "test_a_follower_whose_own_times_are_too_short_for_pulses_refuses",
        ),
    ),
    Mutation(
        "the pause between offers does not grow",
        REST,
        "self._again_seconds = min(2 * self._again_seconds, AGAIN_SECONDS_MAX)",
        "pass",
        ("test_the_pause_after_an_offer_that_came_to_nothing_doubles_up_to_a_longest_one_and_a_rest_ends_it",),
    ),
    # When it rests
    Mutation(
        "one answer is enough",
        REST,
        "if len(self._resting) < len(self._asked):",
        "if not self._resting and self._asked:",
        ("test_a_leader_rests_only_once_all_that_it_asked_do",),
    ),
    Mutation(
        "an answer to an old offer counts",
        REST,
        "answer.number != self._number or ",
        "",
        ("test_an_answer_to_an_earlier_offer_does_not_count",),
    ),
    Mutation(
        "who refuses is not heard",
        REST,
        "        if not answer.resting:\n            return True\n",
        "        if not answer.resting:\n            return False\n",
        ("test_one_that_refuses_ends_the_offer_for_all",),
    ),
    Mutation(
        "an offer has no end",
        REST,
        "return self.state is State.OFFERING and self._clock() > self._offered_until",
        "return False",
        ("test_an_offer_that_is_not_answered_ends_after_a_while",),
    ),
    Mutation(
        "what began during an offer does not matter",
        REST,
        "        if not self._is_idle():\n            return False\n        patience_seconds",
        "        patience_seconds",
        ("test_a_leader_that_is_idle_no_more_when_the_last_answer_comes_does_not_rest",),
    ),
    # When a follower does
    Mutation(
        "an offer of any term is taken",
        REST,
        " or offer.term != raft.term:",
        ":",
        ("test_an_offer_of_another_term_or_of_who_does_not_lead_is_not_taken",),
    ),
    Mutation(
        "anybody's offer is taken",
        REST,
        "offer.sender != raft.leader_id or ",
        "",
        ("test_an_offer_of_another_term_or_of_who_does_not_lead_is_not_taken",),
    ),
    Mutation(
        "a follower rests with another log",
        REST,
        "            and offer.last_entry == raft.log.last_entry\n",
        "",
        ("test_a_follower_refuses_an_offer_if",),
    ),
    Mutation(
        "a follower rests whatever it does",
        REST,
        "            and self._is_idle()\n            and self._bears_pulses(raft)\n",
        "            and self._bears_pulses(raft)\n",
        ("test_a_follower_refuses_an_offer_while_anything_is_under_way",),
    ),
    Mutation(
        "an offer is taken before its withdrawal is seen",
        "runtime/node_loop.py",
        "        self._rest_offers[offer.sender] = offer\n",
        "        if self.rest is not None:\n            self.rest.offered(offer)\n",
        ("test_an_offer_that_is_taken_back_at_once_is_not_taken", "test_what_comes_with_an_offer_is_handled_before_it"),
    ),
    Mutation(
        "a leader thinks of rest before it takes what came with the knock",
        "runtime/node_loop.py",
        "        self._watch_app()\n        self._ticked = True\n",
        "        self._watch_app()\n        if self.rest is not None:\n            self.rest.tick()\n",
        ("test_what_comes_with_a_knock_is_begun_before_a_leader_thinks_of_rest",),
    ),
    # Pulses
    Mutation(
        "an ended pulse counts",
        PULSE,
        "        if self.ended:\n            return False\n",
        "",
        ("test_a_pulse_that_has_ended_does_not_count", "test_a_follower_refuses_an_offer_if"),
    ),
    Mutation(
        "a silent pulse wakes nobody",
        PULSE,
        "if self._resting and now - self.seen_at > self._patience_seconds:",
        "if False:",
        (
            "test_a_pulse_that_falls_silent_wakes_all_that_rest_under_it_after_three_quarters_of_an_election_timeout",
            "test_a_follower_whose_pulse_falls_silent_wakes_the_leader",
        ),
    ),
    Mutation(
        "a stream that ends wakes nobody",
        PULSE,
        "            self._post(self._wake_all)\n",
        "            pass\n",
        ("test_a_stream_that_ends_wakes_both_ends",),
    ),
    Mutation(
        "the patience is that of who came last",
        PULSE,
        "if not self._resting or patience_seconds < self._patience_seconds:",
        "if True:",
        ("test_the_least_patient_decides_when_a_pulse_is_silent",),
    ),
    Mutation(
        "an end of a stream wakes in any thread",
        PULSE,
        "self._post(self._wake_all)",
        "self._wake_all()",
        ("test_the_end_of_a_pulse_wakes_nobody_before_the_hub_comes_to_it",),
    ),
    Mutation(
        "a pulse goes on waking who woke",
        PULSE,
        "resting, self._resting = self._resting, {}",
        "resting = self._resting",
        ("test_a_pulse_wakes_each_that_rests_once_and_nobody_who_left",),
    ),
    # Waking
    Mutation(
        "a leader that wakes tells nobody",
        REST,
        "            for peer, pulse in asked.items():\n"
        "                pulse.leave(self._wake)\n"
        "                self._mail.offer_rest(peer, raft.term, raft.log.last_entry, 0)\n",
        "            for peer, pulse in asked.items():\n                pulse.leave(self._wake)\n",
        (
            "test_a_leader_that_wakes_says_so_to_all_that_it_asked_before_anything_else_leaves",
            "test_a_leader_that_wakes_from_an_offer_says_so_as_well",
            "test_one_that_refuses_ends_the_offer_for_all",
        ),
    ),
    Mutation(
        "a follower wakes silently",
        REST,
        "            self._mail.answer_rest(leader_id, raft.term, self._accepted, False)\n",
        "",
        (
            "test_a_follower_that_wakes_says_so_to_its_leader",
            "test_a_follower_that_wakes_tells_of_the_offer_that_it_took",
            "test_another_offer_to_a_follower_that_rests_is_taken_as_the_first_was",
        ),
    ),
    Mutation(
        "who is woken is told nothing of the pulses",
        REST,
        "        step = self._loop.step\n",
        "        def step(event: Any) -> None:\n"
        "            if type(event) is Tick and event.now_seconds == now:\n"
        "                self._loop.step(event)\n",
        (
            "test_a_follower_that_wakes_is_told_one_heartbeat_at_the_time_of_the_last_pulse",
            "test_a_leader_that_wakes_is_told_one_answer_of_each_at_the_time_of_its_last_pulse",
        ),
    ),
    Mutation(
        "last pulse counts as now",
        REST,
        "            step(Tick(now_seconds=min(pulse.seen_at, now)))\n            step(\n",
        "            step(Tick(now_seconds=now))\n            step(\n",
        ("test_a_follower_that_wakes_is_told_one_heartbeat_at_the_time_of_the_last_pulse",),
    ),
    Mutation(
        "last answer counts as now",
        REST,
        "                    step(Tick(now_seconds=min(pulse.seen_at, now)))\n                    if",
        "                    step(Tick(now_seconds=now))\n                    if",
        ("test_a_leader_that_wakes_is_told_one_answer_of_each_at_the_time_of_its_last_pulse",),
    ),
    Mutation(
        "a wake extends the lease",
        REST,
        "            round=progress.acked_round,\n"
        "            last_applied=progress.applied_index,\n"
        "            silent_seconds=0.0,\n",
        "            round=raft.round,\n"
        "            last_applied=progress.applied_index,\n"
        "            silent_seconds=raft.settings.election_timeout_seconds,\n",
        ("test_a_wake_extends_no_lease",),
    ),
    Mutation(
        "who wakes goes by the time before the rest",
        REST,
        "        step(Tick(now_seconds=now))\n",
        "",
        ("test_a_lease_read_that_wakes_a_leader_does_not_go_by_the_time_before_the_rest",),
    ),
    Mutation(
        "the time since the last pulse is told in one step",
        REST,
        "while now - raft.now > part:",
        "while False:",
        ("test_who_wakes_passes_the_time_since_the_last_pulse_in_steps_that_are_no_pause_of_its_own",),
    ),
    Mutation(
        "a pause of the process itself is told in small steps",
        REST,
        "if part and now - raft.now <= 2 * self._patience_seconds(raft):",
        "if part:",
        ("test_a_pause_of_the_process_itself_is_not_taken_for_the_silence_of_the_others",),
    ),
    Mutation(
        "an ending node is silent",
        REST,
        "        if self.state is State.AWAKE:\n            return\n",
        "        if True:\n            return\n",
        (
            "test_a_node_that_ends_while_it_rests_says_so_and_its_core_is_told_nothing",
            "test_a_node_that_ends_while_it_offers_says_so_and_one_that_is_awake_need_not",
        ),
    ),
    Mutation(
        "a knock wakes a node that rests",
        REST,
        "            return self.state is State.OFFERING and self._clock()",
        "            return self.state is State.RESTING or self._clock()",
        ("test_a_knock_that_was_under_way_wakes_nobody",),
    ),
    Mutation(
        "a node that wakes does not tick again",
        REST,
        "        else:\n            self._resume()\n",
        "",
        ("test_a_leader_that_wakes_says_so_to_all_that_it_asked_before_anything_else_leaves",),
    ),
    # What else a test holds
    Mutation(
        "a group rests although it shall not",
        REST,
        "not self._idle_seconds or self._loop",
        "self._loop",
        ("test_a_group_that_shall_not_rest_offers_nothing",),
    ),
    Mutation(
        "who has no followers does not rest",
        REST,
        "if not is_quorum({raft.id, *asked}, raft.configuration.quorum_groups):",
        "if not asked or not is_quorum({raft.id, *asked}, raft.configuration.quorum_groups):",
        ("test_a_group_of_one_rests_under_no_pulse_at_all",),
    ),
    Mutation(
        "a follower does not answer",
        REST,
        "        self._mail.answer_rest(offer.sender, raft.term, offer.number, resting)\n",
        "",
        (
            "test_a_follower_that_has_nothing_to_do_takes_the_offer_and_says_so",
            "test_a_follower_refuses_an_offer_if",
        ),
    ),
    Mutation(
        "answers are counted, whoever gave them",
        REST,
        "self._resting.add(answer.sender)",
        "self._resting.add(str(len(self._resting)))",
        ("test_an_answer_given_twice_is_one_answer",),
    ),
    Mutation(
        "anybody answers an offer",
        REST,
        " or answer.sender not in self._asked:",
        ":",
        ("test_who_was_not_asked_can_not_answer",),
    ),
    Mutation(
        "an answer to a heartbeat is lost during an offer",
        REST,
        "            self._loop.step(item)  # of a heartbeat before the offer\n",
        "",
        (
            "test_answers_to_heartbeats_before_an_offer_do_not_end_it",
            "test_an_answer_that_tells_of_somebody_who_should_lead_ends_an_offer",
        ),
    ),
    Mutation(
        "what comes to a node that rests is dropped",
        REST,
        "        return True\n\n    def tick",
        "        return self.state is State.OFFERING\n\n    def tick",
        (
            "test_whatever_comes_wakes_a_node_that_rests_and_is_handled_then",
            "test_a_pulse_that_falls_silent_wakes_all_that_rest_under_it_after_three_quarters_of_an_election_timeout",
        ),
    ),
    Mutation(
        "beats are not felt",
        PULSE,
        "        self.seen_at = self._clock()\n",
        "        pass\n",
        (
            "test_a_pulse_is_felt_from_when_its_stream_is_there_and_whenever_it_beats",
            "test_while_all_rest_nothing_is_sent_and_no_core_is_asked",
        ),
    ),
    Mutation(
        "a silent pulse is borne for long",
        REST,
        "PATIENCE = 0.75\n",
        "PATIENCE = 3.0\n",
        (
            "test_a_leader_that_dies_while_all_rest_is_suspected_as_soon_as_any_other",
            "test_a_pulse_that_falls_silent_wakes_all_that_rest_under_it_after_three_quarters_of_an_election_timeout",
        ),
    ),
    Mutation(
        "a follower that woke rests under its pulse for ever",
        REST,
        "            pulse, self._pulse = self._pulse, None\n            pulse.leave(self._wake)\n",
        "            pulse, self._pulse = self._pulse, None\n",
        ("test_who_wakes_rests_under_no_pulse_any_more",),
    ),
    Mutation(
        "nobody knows when a peer was seen",
        REST,
        "return pulse.seen_at if pulse is not None and",
        "return 0.0 if pulse is not None and",
        ("test_status_tells_when_a_peer_was_last_seen_while_all_rest",),
    ),
)
