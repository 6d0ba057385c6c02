"""A blocking client of a cluster: no node in the process, no monkey-patching needed.

client   Client: apply, commit, read, status, cluster_info; retries what may be retried
gateway  Gateway: which servers there are, and which of them leads
"""

from geraft.client.client import Client

__all__ = ["Client"]
