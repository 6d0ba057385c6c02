"""The Raft algorithm: pure and deterministic. An event goes in, effects come out.

Nothing here knows gevent, gRPC, a disk, a clock or global chance: time arrives as `Tick`, chance as a `random.Random`.

    entries       EntryId, EntryKind, EntryBatch: what the log is made of
    membership    Member, Configuration: who votes
    snapshots     Snapshot: the record of the app's state at one entry
    messages      what servers tell each other
    events        what can happen to a server
    effects       what the runtime must do about it
    raft          Raft: the state, step(), every become_*(), HANDLERS and IGNORED
    election      votes, pre-vote, check-quorum        replication  AppendEntries on both sides, commit
    reads         ReadIndex and lease reads            transfer     leadership transfer
    compaction    snapshots recorded, sent and installed, and the log cut off behind them
    log           where the log's terms change, and its newest entries
    progress      what the leader knows of one follower
    quorum        majorities                           failure_detector  phi accrual
    invariants    what must hold after every step
"""
