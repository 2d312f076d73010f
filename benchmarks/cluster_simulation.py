"""A cluster of many nodes on one machine, with tasks that only sleep: where does it bend?

    python -m benchmarks.cluster_simulation                # six minutes, some GB of memory
    python -m benchmarks.cluster_simulation --nodes 1 4 --seconds 0.1 1

The nodes are Ray's own simulation: real schedulers and real worker processes, which here share
this machine's cores. What is measured is how well the workers are kept asleep: the share of the
time that they would need at best. As the tasks cost nothing, all else is the cost of dealing them
out, from one driver.
"""

import argparse
import os
import time

# Before Ray is imported; this cluster talks to nobody but itself.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

from resfool import parallel

CPUS = 4  # of each node
ROUNDS = 5  # tasks of each worker


def main() -> None:
    """Simulate clusters of some sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[1, 4, 16], help="(default: 1 4 16)"
    )
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[0.1, 1, 2, 10], help="(default: 0.1 1 2 10)"
    )
    arguments = parser.parse_args()
    print(
        "| nodes | workers | a task's seconds | tasks | seconds | at best | kept busy | tasks/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for nodes in arguments.nodes:
        simulate(nodes, arguments.seconds)


def simulate(nodes: int, lengths: list[float]) -> None:
    """A line for each length of the tasks."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=CPUS, object_store_memory=80 * 1024**2)
        cluster.wait_for_nodes()
        workers = nodes * CPUS
        run(cluster.address, workers, 1.0)  # starts the processes
        for seconds in lengths:
            count = ROUNDS * workers
            took = run(cluster.address, count, seconds)
            best = ROUNDS * seconds
            cells = [nodes, workers, f"{seconds:g}", count, f"{took:.1f}", f"{best:.1f}"]
            cells += [f"{best / took:.0%}", f"{count / took:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(address: str, count: int, seconds: float) -> float:
    """How long some sleeping tasks take, each sent by itself, as many ahead as `map` sends."""
    with parallel.Pool(sleep, backend="ray", ray_address=address, ahead=True) as pool:
        for place in range(count):
            pool.submit(place, seconds)
        began = time.perf_counter()
        for _, outcome in pool.finished():
            assert outcome is None, outcome
        return time.perf_counter() - began


def sleep(seconds: float, report: parallel.Report) -> None:
    """A task."""
    time.sleep(seconds)


if __name__ == "__main__":
    main()
