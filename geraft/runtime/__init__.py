"""Carries the core's effects out: a hub in a native thread of its own, and one kind of greenlet or thread per file.

hub             the native thread with the node's hub, and the only crossing between threads
pending         writes and reads whose callers are still waiting
node_loop       the only greenlet that calls Raft.step
ticker          turns passing time into Tick, and watches the log writer
log_writer      makes Persist effects durable, many per disk sync (native thread)
applier         feeds committed entries to the app (native thread); readers run process_read
dispatcher      sends blinker signals (native thread)
supervisor      starts, watches and stops the others: none dies in silence
"""
