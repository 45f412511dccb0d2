"""Four Ray nodes on this machine, until standard input closes. A process of its own: Ray is global to one."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1, resources={"prefill_node": 1})
    for _ in range(2):
        cluster.add_node(num_cpus=1, resources={"decode_node": 1})
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
