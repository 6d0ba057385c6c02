"""The command `geraft`.

command     what all verbs share: errors as one line, options that several have
serve       one node of the key-value store                kv      put, get, delete, cas, list
status      how a cluster is                               bench   how fast it is
config      settings of running nodes                cluster_info   who leads, who is a member
monitor     the same, live                              log     what a stopped node's log holds
replay      a fresh app, taken to any entry of it       backup  backup and restore
demo        a leader dies and nothing is lost        check-app  is an app deterministic?
simulate    clusters on virtual time, under faults      chaos   real processes, under faults
membership  add-server, remove-server, promote, demote, change-membership, transfer, timeout-now
recover     a cluster that lost its quorum goes on with one store
snapshot    make one now
cluster     nodes in processes of their own, for demo and bench
"""

from __future__ import annotations

import click

from geraft.cli.command import VerbGroup


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="geraft")
def main() -> None:
    """Run and use geraft, a Raft toolkit: a replicated key-value store to try, and tools to look at a cluster.

    \b
    Example: see a leader die while 64 callers write, and nothing get lost
      geraft demo
    """


def _add_verbs() -> None:
    from geraft.cli.backup import backup, restore
    from geraft.cli.bench import bench
    from geraft.cli.chaos import chaos
    from geraft.cli.check_app import check_app
    from geraft.cli.cluster_info import cluster_info
    from geraft.cli.config import config
    from geraft.cli.demo import demo
    from geraft.cli.kv import kv
    from geraft.cli.log import log
    from geraft.cli.membership import (
        add_server,
        change_membership,
        demote,
        promote,
        remove_server,
        timeout_now,
        transfer,
    )
    from geraft.cli.monitor import monitor
    from geraft.cli.recover import recover
    from geraft.cli.replay import replay
    from geraft.cli.serve import serve
    from geraft.cli.simulate import simulate
    from geraft.cli.snapshot import snapshot
    from geraft.cli.status import status

    for verb in (
        demo,
        serve,
        kv,
        status,
        cluster_info,
        config,
        monitor,
        log,
        replay,
        backup,
        restore,
        bench,
        simulate,
        chaos,
        check_app,
        snapshot,
    ):
        main.add_command(verb)
    for verb in (add_server, remove_server, promote, demote, change_membership, transfer, timeout_now, recover):
        main.add_command(verb)


_add_verbs()
