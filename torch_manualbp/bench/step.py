"""Time a whole training step (forward, loss, backward, update): stock PyTorch with its fused optimizer, the same under
torch.compile, TrainStep, TrainStep compiled, and the matrix products alone, as torch makes them and by oneDNN. All run
in one process, round by round in rotating order; a ratio is the median of the rounds'. Peak memory is measured in a
process for each."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_manualbp._tables import as_markdown, print_table, require_tables, write
from torch_manualbp._text import near
from torch_manualbp._torch import reset_compiler
from torch_manualbp.bench import model_step
from torch_manualbp.bench import rows as of_rows
from torch_manualbp.bench.command import add_files, count, surroundings
from torch_manualbp.bench.memory import peak_memory
from torch_manualbp.bench.model_cases import MODEL_VARIANTS, MODELS
from torch_manualbp.bench.networks import ACTIVATIONS, BATCHES, NETWORKS, OPTIMIZERS, PRECISIONS, Case, Network, panel
from torch_manualbp.bench.rows import LEAST, OURS, STOCK, Finding, Row, product_bound
from torch_manualbp.bench.timing import Question, compare
from torch_manualbp.bench.variants import PRODUCTS, VARIANTS, Running, stopwatch
from torch_manualbp.kernels import use_onednn

__all__ = ["add_arguments", "main", "measure"]

APART = {"float32": 0.02, "bfloat16": 0.1}
"""How far from stock's the change of the weights may be after the first steps, relative to its length. The rounding of
the weights at such small learning rates makes 0.003, and that of bfloat16 products 0.035, most under AdamW."""

MEMORY = ("bounded", "all", "none")
T = TypeVar("T")


def measure(case: Case, variants: Sequence[str], rounds: int) -> Row:
    """Time these variants. One that fails, or that moves the weights otherwise than the first, gets no time."""
    if any("compile" in variant for variant in variants):
        reset_compiler()
    network = case.network
    row = Row(network.name, network.batch, case.activation, case.optimizer, case.precision)
    running: dict[str, Running] = {}
    change: Tensor | None = None
    for variant in variants:
        started = _attempt(partial(_started, variant, case, change), variant, row.failures)
        if started is not None:
            running[variant], its_change = started
            change = its_change if change is None else change
    if not running:
        return row
    ways = {variant: stopwatch(started) for variant, started in running.items()}
    comparison = compare(ways, rounds, _questions(case, list(running)), at_most=2 * rounds)
    times = {variant: comparison.seconds(variant) * 1e6 for variant in running}
    ours = min((v for v in OURS if v in times), key=lambda v: times[v], default=None)
    stock = [v for v in STOCK if v in times] if set(STOCK) <= set(variants) else []
    fastest = min(stock, key=lambda v: times[v], default=None)
    pairs = {"eager / ours": ("eager", ours), "fastest / ours": (fastest, ours), "ours / products": (ours, "products")}
    pairs["ours / by oneDNN"] = (ours, "products-onednn")
    known = {key: (a, b) for key, (a, b) in pairs.items() if a in times and b in times}
    deriving, unchecked = _deriving(running["derived"].derive) if "derived" in running else (None, None)
    return replace(
        row,
        times=times,
        ours=ours,
        fastest=fastest,
        ratios={key: comparison.ratio(a, b) for key, (a, b) in known.items()},
        errors={key: comparison.error(a, b) for key, (a, b) in known.items()},
        losses={
            variant: started.step().detach().item() for variant, started in running.items() if variant not in PRODUCTS
        },
        deriving=deriving,
        unchecked=unchecked,
        rounds=comparison.rounds,
    )


def _started(variant: str, case: Case, expected: Tensor | None) -> tuple[Running, Tensor | None]:
    """The variant after it has taken each batch once, and by how much that changed the weights.

    Raises:
        RuntimeError: the change is not the expected one.
    """
    running = VARIANTS[variant][1](case)
    before = _flat(running.parameters)
    for _ in range(BATCHES):
        running.step()
    if variant in PRODUCTS:
        return running, None
    change = _flat(running.parameters) - before
    apart = 0.0 if expected is None else ((change - expected).norm() / expected.norm()).item()
    if not apart <= APART[case.precision]:
        raise RuntimeError(f"its weights move otherwise: {apart:.0%} of the change apart after {BATCHES} steps")
    return running, change


def _flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def _questions(case: Case, variants: Sequence[str]) -> list[Question]:
    """Where ours stands next to each other variant, of the bounds that this row has."""
    bounds = LEAST if case.precision == "float32" else {}
    products = product_bound(case.network.at, case.activation, case.optimizer, case.precision)
    asked = []
    for ours in (variant for variant in OURS if variant in variants):
        asked += [Question(stock, ours, bounds.get(stock)) for stock in STOCK if stock in variants]
        if products is not None and "products" in variants:
            asked.append(Question(ours, "products", products))
    return asked


def _deriving(derive: Callable[[bool], object] | None) -> tuple[float | None, float | None]:
    """Milliseconds to derive a program and to hold it against autograd, and to derive it alone, when the code that does
    it has run before."""
    if derive is None:
        return None, None
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for check, seconds in times.items():
            start = perf_counter()
            derive(check)
            seconds.append(perf_counter() - start)
    return statistics.median(times[True]) * 1e3, statistics.median(times[False]) * 1e3


def _with_memory(row: Row, case: Case, variants: Sequence[str]) -> Row:
    """The row with the peak memory of each variant."""
    memory = {}
    threads = torch.get_num_threads()
    for variant in (v for v in variants if v not in row.failures):
        peak = _attempt(partial(peak_memory, case, variant, threads), variant, row.failures)
        if peak is not None:
            memory[variant] = peak
    return replace(row, memory=memory)


def _attempt(do: Callable[[], T], variant: str, failures: dict[str, str]) -> T | None:
    """What it returns; None if it raises, whatever a compiler may raise, and then ``failures`` says why."""
    try:
        return do()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        failures[variant] = f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    panels = "layers one after another, or whole models: GPTs, Llama, images, sequences, tables, a policy"
    add("--panel", choices=("layers", "models"), default="layers", help=f"{panels} (default: layers)")
    names = ", ".join(network.at for network in NETWORKS)
    whole = ", ".join(case.name for case in MODELS)
    only = f"only these, the batch may be left out: {names}; or of whole models: {whole} (default: all)"
    add("--network", nargs="+", metavar="NAME", help=only)
    add("--activation", nargs="+", choices=ACTIVATIONS, default=list(ACTIVATIONS), help="only these (default: all)")
    add("--optimizer", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS), help="only these (default: all)")
    precision = "of the products: float32, or bfloat16 under autocast, or both (default: float32)"
    add("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help=precision)
    known = list(dict.fromkeys((*VARIANTS, *MODEL_VARIANTS)))
    few = "only these (default: all; of whole models all but compile, which takes minutes to start)"
    add("--variants", nargs="+", choices=known, help=few)
    memory = "measure peak memory where it has a bound (1024-4096-1024:64 under SGD), in all rows, or not at all"
    add("--memory", choices=MEMORY, default=MEMORY[0], help=f"{memory} (default: {MEMORY[0]})")
    add("--rounds", type=count, default=15, metavar="N", help="up to 2 N where they disagree (default: 15)")
    cpu = "of whole models the processor's time of one thread, on a machine that does other things (with --threads 1)"
    add("--cpu-time", action="store_true", help=cpu)
    add("--threads", type=count, metavar="N", help="threads of torch (default: torch's own choice)")
    add("--no-onednn", action="store_true", help="large products of ours by BLAS, as on a processor of Intel's")
    add_files(parser)


def main(options: argparse.Namespace) -> int:
    """Run the panel and print it. Returns 1 if a variant failed; a bound that was missed is a finding."""
    require_tables()
    if options.panel == "models":
        with _conditions(options.threads, False if options.no_onednn else None):
            return model_step.run(options)
    try:
        networks = _networks(options.network)
    except ValueError as error:
        print(f"torch-manualbp bench step: argument --network: {error}", file=sys.stderr)
        return 2
    cases = list(
        panel(networks, *(list(dict.fromkeys(o)) for o in (options.activation, options.optimizer, options.precision)))
    )
    variants = [variant for variant in VARIANTS if variant in (options.variants or VARIANTS)]
    rows: list[Row] = []
    with _conditions(options.threads, False if options.no_onednn else None):
        try:
            for i, case in enumerate(cases, 1):
                rows.append(_measured(case, variants, options))
                _say(f"[{i}/{len(cases)}]", rows[-1])
        except KeyboardInterrupt:
            if rows:  # what was measured is worth its minutes
                _report(rows, surroundings(), options)
            raise
        about = surroundings()
    _report(rows, about, options)
    return int(any(row.failures for row in rows))


def _measured(case: Case, variants: Sequence[str], options: argparse.Namespace) -> Row:
    row = measure(case, variants, options.rounds)
    if options.memory == "all" or (options.memory == "bounded" and _has_bound_of_memory(case)):
        row = _with_memory(row, case, variants)
    return row


def _say(number: str, row: Row) -> None:
    ratios = ", ".join(f"{key} {ratio:.2f}" for key, ratio in row.ratios.items())
    print(f"{number} {row}: {ratios or 'no ratio'}", file=sys.stderr, flush=True)
    for variant, why in row.failures.items():
        print(f"    {VARIANTS[variant][0]}: {why}", file=sys.stderr, flush=True)


def _networks(names: Sequence[str] | None) -> list[Network]:
    """Those of the panel that are meant.

    Raises:
        ValueError: there is none of a name.
    """
    known = [name for network in NETWORKS for name in (network.name, network.at)]
    for name in names or ():
        if name not in known:
            alike = near(name, known) or list(dict.fromkeys(known[1::2]))
            raise ValueError(f"no network {name!r}; near it: {', '.join(alike)}")
    return [network for network in NETWORKS if names is None or {network.name, network.at} & set(names)]


def _has_bound_of_memory(case: Case) -> bool:
    return (case.network.at, case.optimizer, case.precision) == ("1024-4096-1024:64", "sgd", "float32")


@contextmanager
def _conditions(threads: int | None, onednn: bool | None = None) -> Iterator[None]:
    """Subnormal numbers are zero, which are ten times as slow and come where a network has learnt its batches; torch's
    threads inherit that if it is set before they start. Compilation stays in this process, so that no worker of it runs
    while steps are timed."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads or before)
    use_onednn(onednn)
    try:
        yield
    finally:
        use_onednn(None)
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _report(rows: Sequence[Row], about: dict[str, Any], options: argparse.Namespace) -> None:
    found = of_rows.findings(rows)
    precisions = " and ".join(dict.fromkeys(row.precision for row in rows))
    where = f"torch {about['torch']}, {precisions}, {about['threads']} threads, our large products {about['products']}"
    title = f"A training step, {where}"
    summary = _summary(found)
    print_table(f"{title}; ours is the one with *", *of_rows.table(rows, "*"))
    if any(row.memory for row in rows):
        print_table(
            "Peak memory over the parameters, of later steps (and of the first)", *of_rows.table_of_memory(rows)
        )
    print_table("All rows together", *of_rows.table_of_findings(found))
    print(summary)
    if options.json:
        figures = [{**asdict(f), "met": f.met} for f in found]
        write(options.json, {**about, "rounds": options.rounds, "rows": [asdict(r) for r in rows], "figures": figures})
    if options.markdown:
        parts = [f"{title}; ours is in bold:\n", as_markdown(*of_rows.table(rows, "**"))]
        if any(row.memory for row in rows):
            parts += ["Peak memory over the parameters, of later steps (and of the first):\n"]
            parts += [as_markdown(*of_rows.table_of_memory(rows))]
        parts += [as_markdown(*of_rows.table_of_findings(found)), f"{summary}.\n"]
        write(options.markdown, "\n".join(parts))


def _summary(found: Sequence[Finding]) -> str:
    bounded = [f for f in found if f.met is not None]
    return f"{sum(bool(f.met) for f in bounded)} of {len(bounded)} bounds met"
