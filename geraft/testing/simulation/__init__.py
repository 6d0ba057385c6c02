"""A whole cluster in one process on virtual time. One seed decides everything, and replays it exactly.

    Simulation(seed=1, nodes=3, seconds=20.0).run()

cluster.py    Simulation: time, network, and what is asked of the cluster in the end
faults.py     what befalls it, and which storms bring about the rare orders
server.py     one server: the real core, node loop, log writer and applier
clients.py    callers who write, read, give up, and remember what they were told
numbered_clients.py  callers who repeat each write until they know its outcome, and want it applied once
referee.py    judges every step, message and answer; counts the rare situations that were met
register.py   the replicated state
guest.py      a state machine of the user's beside it
agenda.py     virtual time

docs/proof.md says what is checked and what is not.
"""

from geraft.testing.simulation.cluster import Simulation as Simulation
from geraft.testing.simulation.cluster import SimulationFailed as SimulationFailed
from geraft.testing.simulation.faults import Faults as Faults
from geraft.testing.simulation.referee import SITUATIONS as SITUATIONS
