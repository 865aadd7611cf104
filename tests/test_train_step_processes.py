"""Several processes make a derived step together: their parameters are those of stock DistributedDataParallel."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes_worker
import pytest
import torch

from torch_manualbp import TrainStep, nn

WORKER = Path(processes_worker.__file__)
COUNTS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=COUNTS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, that died last among them up to there."""
    count: int = request.param
    folder = tmp_path_factory.mktemp("processes")
    loopback = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(WORKER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | loopback | {"PYTHONPATH": path}
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(count), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0] * count, "\n".join(errors)
    return [torch.load(folder / f"result{rank}.pt") for rank in range(count)]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_processes_end_with_the_parameters_of_one_on_the_joined_batches(results: list[dict[str, Any]]) -> None:
    model = processes_worker.plain_network()
    optimizer = processes_worker.OPTIMIZERS["SGD"](model.parameters())
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    for x, y in processes_worker.digits(64):
        step(x, y)
    for found in results:
        assert_same(found["digits"], dict(model.state_dict()))


def test_they_are_stock_s_also_where_batches_are_of_unequal_sizes(results: list[dict[str, Any]]) -> None:
    """Each process counts alike, with every optimizer, accumulated, clipped."""
    for found in results:
        for ours, stock in found["stock"]:
            assert_same(ours, stock)


def test_gradients_may_stay_in_their_process_for_a_while(results: list[dict[str, Any]]) -> None:
    for found in results:
        ours, stock = found["no_sync"]
        assert_same(ours, stock)


def test_a_process_without_a_batch_keeps_up(results: list[dict[str, Any]]) -> None:
    for found in results:
        ours, stock = found["joined"]
        assert_same(ours, stock)
        assert_same(ours, results[0]["joined"][0])


def test_saved_programs_and_formulas_exchange_gradients(results: list[dict[str, Any]]) -> None:
    for found in results:
        step, program, source = found["saved"]
        assert_same(program, step)
        assert_same(source, step)
        assert_same(step, results[0]["saved"][0])


def test_a_loss_that_is_not_finite_anywhere_is_left_out_everywhere(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["nan"] == ("1", True)


@pytest.mark.parametrize(
    ("case", "own", "others"),
    [
        ("empty", "ValueError: the batch of this process is empty", "ProcessesError: process 1 of"),
        ("reads", "NotDerivableError: no step can be derived", "ProcessesError: process 1 of"),
        ("program", "ProcessesError: the processes have derived different programs", "ProcessesError: the processes"),
        ("dies", "", "RuntimeError: "),
    ],
)
def test_no_process_waits_for_one_that_fails(results: list[dict[str, Any]], case: str, own: str, others: str) -> None:
    for rank, found in enumerate(results):
        if (case, rank) == ("dies", 1):
            assert case not in found
            continue
        text, is_as_before = found[case]
        assert text.startswith(own if rank == 1 else others)
        assert is_as_before


def test_what_a_step_of_several_processes_is_not(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", world_size=1, rank=0)
    try:
        model = processes_worker.plain_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        about = model, nn.CrossEntropyLoss(), optimizer
        group = torch.distributed.group.WORLD
        with pytest.raises(ValueError, match="compile is True: it takes False, where several processes"):
            TrainStep(*about, process_group=group, compile=True)
        with pytest.raises(TypeError, match="the step of several processes cannot be copied"):
            copy.deepcopy(TrainStep(*about, process_group=group))
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match=r"process_group is .*: it takes nothing, where the model brings its own"):
            TrainStep(wrapped, nn.CrossEntropyLoss(), optimizer, process_group=group)
        wrapped.register_comm_hook(None, lambda state, bucket: bucket.buffer())
        with pytest.raises(ValueError, match="the DistributedDataParallel has a communication hook"):
            TrainStep(wrapped, nn.CrossEntropyLoss(), optimizer)
    finally:
        torch.distributed.destroy_process_group()
