"""Two processes with gloo: layers on DTensors, under tensor parallelism and under FSDP2.

Both processes run every layer of a table, ours and torch's; what either of them finds wrong is a failure.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp.verify.check import Check, DoesNotApply, outcomes
from torch_manualbp.verify.report import Row
from torch_manualbp.verify.surroundings.layers import Layer, compare, layers, of_torch, results

__all__ = ["CHECKS", "run_in_two_processes", "work"]

PROCESSES = 2
LAYERS_OF = "torch_manualbp.verify.surroundings.layers"


def takes_dtensors(layer: Layer) -> None:
    """On inputs that every process has, and on inputs split over samples and over features, output and gradients are
    those of torch in one process.

    And not torch's on DTensors: of a mean over split inputs ATen's backward takes the mean over each part, which for
    MSELoss, SmoothL1Loss, HuberLoss, BCELoss and SoftMarginLoss is a gradient too large by the number of processes
    (2.13). What torch refuses ours may do.
    """
    from torch.distributed.tensor import Replicate, Shard

    if layer.is_random:
        raise DoesNotApply("DTensors draw other random numbers")
    _on_each_placement(layer, (Replicate(), Shard(0), Shard(1)))


def loses_in_parallel(layer: Layer) -> None:
    """The same under ``loss_parallel``, on scores split over the classes."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import loss_parallel

    if layer.class_name != "CrossEntropyLoss":
        raise DoesNotApply("loss_parallel is for the cross-entropy")
    raised: Exception | None = None
    with loss_parallel():  # which an exception would leave switched on
        try:
            _on_each_placement(layer, (Shard(1),))
        except Exception as error:
            raised = error
    if raised is not None:
        raise raised


def _on_each_placement(layer: Layer, placements: Sequence[Any]) -> None:
    refused: dict[str, list[str]] = {}
    for placement in placements:
        ours, theirs = layer.pair()
        inputs = layer.inputs(shape=_divisible(layer))
        expected = results(theirs, inputs, upstream=_upstream(theirs(*inputs)))
        try:
            mine = _on_dtensors(layer, ours, placement)
        except RuntimeError:
            try:
                of_torch(_on_dtensors, layer, theirs, placement)
            except DoesNotApply as reason:
                refused.setdefault(str(reason), []).append(str(placement))
                continue
            raise
        try:
            _compare({"output": mine["output"]}, {"output": expected["output"]}, tolerance=layer.tolerance)
            right = True
        except AssertionError:
            right = False
        if right:
            _compare(mine, expected, tolerance=layer.tolerance)
        else:  # our forward calls ATen's, which may be wrong; then ours is just that
            _compare(mine, of_torch(_on_dtensors, layer, theirs, placement), tolerance=layer.tolerance)
            wrong = "torch's own layer computes something else than in one process"
            refused.setdefault(wrong, []).append(str(placement))
    if refused:
        reasons = [f"{reason} (inputs in {', '.join(where)})" for reason, where in refused.items()]
        raise DoesNotApply(*reasons, partly=sum(map(len, refused.values())) < len(placements))


def _on_dtensors(layer: Layer, module: Module, placement: Any) -> dict[str, Tensor]:
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    def place(t: Tensor, placement: Any) -> Any:
        fits = getattr(placement, "dim", 0) < t.dim()
        return distribute_tensor(t.detach(), _mesh(), [placement if fits else Replicate()])

    module = distribute_module(module, _mesh())
    inputs = [place(t, placement).requires_grad_(t.requires_grad) for t in layer.inputs(shape=_divisible(layer))]
    output: Any = module(*inputs)
    leaves = [(f"input {i}", t) for i, t in enumerate(inputs) if t.requires_grad] + list(module.named_parameters())
    gradients = torch.autograd.grad(output, [t for _, t in leaves], place(_upstream(output), Replicate()))
    named = {f"gradient of {name}": g for (name, _), g in zip(leaves, gradients, strict=True)}
    return _whole({"output": output.detach(), **named})


def _compare(mine: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """As ``compare``, and with the same end in both processes, which otherwise would wait for each other."""
    message = ""
    try:
        compare(mine, expected, tolerance)
    except AssertionError as error:
        message = str(error)
    messages: list[Any] = [None] * PROCESSES
    torch.distributed.all_gather_object(messages, message)
    found = [f"{m} (process {rank})" for rank, m in enumerate(messages) if m]
    assert not found, "; ".join(found)


def _divisible(layer: Layer) -> tuple[int, ...]:
    """The shape of the layer's input with as many samples for each process."""
    return 4, *layer.shape[1:]


def _upstream(output: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view(output.shape)


def is_tensor_parallel(layer: Layer) -> None:
    """In a network Linear-layer-Linear, of which ``parallelize_module`` splits the first by columns and the last by
    rows, with plain tensors or DTensors between, outputs and gradients are torch's; and without a layer between, those
    of one process."""
    if len(layer.inputs()) > 1:
        raise DoesNotApply("takes more than one input, and stands in no such network")
    refused = []
    for local in (True, False):
        try:
            expected = of_torch(_tensor_parallel, layer, torch.nn, local)
        except DoesNotApply as reason:
            refused.append(f"{reason} ({'plain tensors' if local else 'DTensors'} between)")
            continue
        _compare(_tensor_parallel(layer, layer.namespace, local), expected, tolerance=layer.tolerance)
        if layer.class_name == "Linear":
            alone, x = _network(layer, torch.nn), _features()
            _compare(expected, results(alone, x, upstream=_upstream(alone(*x))), tolerance=layer.tolerance)
    if refused:
        raise DoesNotApply(*refused, partly=len(refused) == 1)


def _network(layer: Layer, namespace: Any) -> Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        middle = torch.nn.Identity() if "Linear" in layer.class_name else layer.build(namespace)
        width = middle(torch.ones(3, 8)).shape[-1]
        return torch.nn.Sequential(namespace.Linear(4, 8), middle, namespace.Linear(width, 3)).double()


def _features() -> tuple[Tensor, ...]:
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return (x.requires_grad_(),)


def _tensor_parallel(layer: Layer, namespace: Any, local: bool) -> dict[str, Tensor]:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"0": ColwiseParallel(use_local_output=local), "2": RowwiseParallel()}
    network, x = parallelize_module(_network(layer, namespace), _mesh(), plan), _features()
    return _whole(results(network, x, upstream=_upstream(network(*x))))


def is_fully_sharded(layer: Layer) -> None:
    """After a Linear that ``fully_shard`` splits over two processes with a batch each, and with its own parameters
    split, output and gradients are torch's."""
    expected = of_torch(_fully_sharded, layer, torch.nn)
    _compare(_fully_sharded(layer, layer.namespace), expected, tolerance=layer.tolerance)


class _AfterLinear(Module):
    """The layer behind a Linear that begins as the identity, so that any input is one for the layer."""

    def __init__(self, layer: Layer, namespace: Any) -> None:
        super().__init__()
        self.linear = namespace.Linear(4, 4)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(4))
            self.linear.bias.zero_()
        self.layer = layer.build(namespace)

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        return self.layer(self.linear(input), *others)


def _fully_sharded(layer: Layer, namespace: Any) -> dict[str, Tensor]:
    from torch.distributed.fsdp import fully_shard

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = _AfterLinear(layer, namespace).double()
    fully_shard(network, mesh=_mesh())
    scale = 1 - 0.2 * torch.distributed.get_rank()
    inputs = [(t.detach() * scale if t.requires_grad else t) for t in layer.inputs()]
    torch.manual_seed(3)
    output = network(*inputs)
    output.backward(_upstream(output))
    gradients: dict[str, Any] = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
    return _whole({"output": output.detach(), **gradients})


def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (PROCESSES,))


def _whole(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Each DTensor put together from its parts."""
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}


CHECKS = (
    Check("DTensors", takes_dtensors),
    Check("loss_parallel", loses_in_parallel),
    Check("tensor parallelism", is_tensor_parallel),
    Check("FSDP2", is_fully_sharded),
)


def run_in_two_processes(table: str = f"{LAYERS_OF}:LAYERS", timeout: float = 600) -> list[tuple[Row, ...]]:
    """What every check finds for every layer of a table, given as ``package.module:NAME``."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"import sys; from {__name__} import work; work(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
        command = [sys.executable, "-c", program, folder, table]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the caller's modules, a table's included
        workers = [
            subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
            for rank in range(PROCESSES)
        ]
        try:
            errors = [worker.communicate(timeout=timeout)[1] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        if any(worker.returncode for worker in workers):
            raise RuntimeError("a process of the distributed checks failed:\n" + "\n".join(errors))
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    of_each = [[tuple(Row(**row) for row in rows) for rows in of_rank] for of_rank in found]
    return [first if second[0].ok else second for first, second in zip(*of_each, strict=True)]


def work(folder: str, table: str, rank: int) -> None:
    """Be one of the processes, and leave what was found in the folder."""
    torch.set_num_threads(1)
    module, _, name = table.partition(":")
    store = torch.distributed.FileStore(  # type: ignore[attr-defined]
        str(Path(folder) / "store"), PROCESSES
    )
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=datetime.timedelta(seconds=60)
    )
    rows = layers(getattr(importlib.import_module(module), name))
    found = [[asdict(row) for row in outcomes(check, layer)] for layer in rows for check in CHECKS]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
