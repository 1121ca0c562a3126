"""A Ray cluster of several nodes on this host, as a process of its own: it ends them, and no other Ray, when it ends.

    python -m tests.launch.nodes 2     # a head without CPUs and two nodes with one CPU each

Prints the address. Each line of its input is `lose` (the newest node is gone at once) or `add` (one more).
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Starts the nodes and obeys until the input ends."""
    memory = 100 * 1024 * 1024
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(int(sys.argv[1]))]
    print(f"address {cluster.address}", flush=True)
    for line in sys.stdin:
        if line.strip() == "lose":
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        else:
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=memory))
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
