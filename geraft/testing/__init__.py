"""Tools to test with, for geraft and for those who build on it. Import them by module: they need the extra `test`.

storage_suite.py    StorageSuite: what every RaftStorage must do
scenarios.py        stories of a cluster in text, with the effects they must have
virtual.py          one server on virtual time, with a disk that writes when told
simulation/         Simulation: a whole cluster on virtual time, under faults that one seed decides
cluster.py          Cluster: real `geraft serve` processes to kill, halt and restart; LinkedCluster: to cut off, too
links.py            TCP proxies between two parties, to be cut one way or both, slowed and broken
namespaces.py       network namespaces, to lose packets below TCP
chaos/              Chaos: such a cluster under load and random faults, and the verdict on what callers saw
linearizability.py  is what callers saw linearizable? a recorder and a checker
models.py           for it: register, key-value store, counter, lock
determinism.py      assert_deterministic: does the same log give the same state everywhere?
"""
