"""Inference through the networks of the Sparse DNN Graph Challenge, on generated data.

    python tools/graph_challenge.py                             # 1024 neurons, 120 layers
    python tools/graph_challenge.py --neurons 1024 4096 16384 65536 --rows 6000
    python tools/graph_challenge.py --layers 1920 --rows 1000 --threads 1

Networks have the shape of RadiX-Net, with 32 connections a neuron and the challenge's biases;
networks and inputs are generated here, so rates may be compared, and categories not. The rate is
the challenge's: inputs times connections, whether they were computed or not, divided by the time.
Beside it stands the rate of what was computed: rows that have become zero are dropped. The first
rows are also computed with SciPy, and must agree. Public rates of one core of a Xeon of 2016
(LAGraph with SuiteSparse:GraphBLAS): 9.7 to 15.5 billion a second at 1024 neurons, 3.3 to 3.7 at
65,536.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from tqdm import tqdm

from largesparse import info
from largesparse.cli import parse_size, run_command
from largesparse.errors import DataError
from largesparse.radixnet import BIASES, CEILING, RadixNet, generated_inputs, infer, radix_net
from largesparse.threads import resolve_threads


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sizes = {"type": parse_size, "nargs": "+"}
    add("--neurons", **sizes, choices=sorted(BIASES), default=[1024], help="default 1024")
    add("--layers", **sizes, default=[120], help="the challenge has 120, 480, 1920; default 120")
    add("--rows", type=parse_size, default=60_000, help="inputs (default %(default)s)")
    add("--batch-size", type=parse_size, default=64, help="default %(default)s")
    add("--threads", type=parse_size, help="default: all cores")
    add("--repeats", type=parse_size, default=3, help="default %(default)s")
    add("--check-rows", type=parse_size, default=64, help="of SciPy's (default %(default)s)")
    add("--seed", type=int, default=0, help="of the inputs (default %(default)s)")
    return parser


def scipy_rows(network: RadixNet, X: csr_array) -> np.ndarray:
    """Return which rows are not zero at the end, by products of sparse matrices."""
    Y = X.astype(np.float32)
    shape = network.neurons, network.neurons
    for layer in network.layers:
        by_output = csr_array((layer.values, layer.indices, layer.indptr), shape=shape)
        Y = csr_array(Y @ by_output.T)
        Y.data += np.float32(network.bias)  # where there is no signal, ReLU gives 0
        np.clip(Y.data, 0, CEILING, out=Y.data)
        Y.eliminate_zeros()
    return np.flatnonzero(np.diff(Y.indptr))


def measure(network: RadixNet, options: argparse.Namespace) -> dict[str, object]:
    """Return a row of the table."""
    X = generated_inputs(network.neurons, options.rows, seed=options.seed)
    checked = X[: options.check_rows]
    settings = {"batch_size": options.batch_size, "threads": options.threads}
    if not np.array_equal(infer(network, checked, **settings).rows, scipy_rows(network, checked)):
        raise DataError("The backend and SciPy differ in which rows are not zero at the end.")
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        found = infer(network, X, **settings)
        seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    return {
        "neurons": network.neurons,
        "layers": len(network.layers),
        "connections": f"{network.connections:,}",
        "s": round(middle, 2),
        "spread, %": round(100 * (max(seconds) - min(seconds)) / middle),
        "10^9 edges/s": round(X.shape[0] * network.connections / middle / 1e9, 2),
        "computed": round(found.edges / middle / 1e9, 2),
        "alive at the end, %": round(100 * len(found.rows) / X.shape[0], 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every size."""
    options = make_parser().parse_args(argv)
    options.threads = resolve_threads(options.threads, "graph_challenge")
    cases = [(neurons, layers) for neurons in options.neurons for layers in options.layers]
    rows = []
    for neurons, layers in tqdm(cases, unit="network", disable=None):
        rows.append(measure(radix_net(neurons, layers), options))
    print(f"{info.cpu_model()}, {options.threads} threads, {options.rows:,} generated rows")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
