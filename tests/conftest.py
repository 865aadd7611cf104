"""Settings of the whole suite."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ordinary
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"

MOST_WORKERS = 4
"""Workers each import torch and collect all tests, 10 s and 1 GB."""


def pytest_configure(config: pytest.Config) -> None:
    ordinary.is_without_slow = config.option.markexpr == "not slow"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite on all processors; chosen files in one process, which starts sooner."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(os.cpu_count() or 1, MOST_WORKERS) if whole else 0


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run tiny operations, which several threads make slower, many times so on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_seeds_for_absent_devices() -> Iterator[None]:
    """torch.manual_seed keeps the seed, and the call's formatted stack, for each kind of device that may yet turn up:
    1 ms of it, where the CPU's takes 6 µs."""
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available() and hasattr(device, "manual_seed_all"):
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves none of its own behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def article() -> ModuleType:
    """examples/article.py, which has the article's network and its known numbers."""
    spec = importlib.util.spec_from_file_location("article", EXAMPLES / "article.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RAN: Counter[str] = Counter()
"""``upstream.RAN`` of all workers together, or of the one process."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "upstream" not in sys.modules:
        return
    ran = dict(sys.modules["upstream"].RAN)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ran"] = ran
    else:
        RAN.update(ran)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    RAN.update(getattr(node, "workeroutput", {}).get("ran", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much of PyTorch's own databases ran over our layers, and why the rest did not."""

    def of(outcome: str) -> list[pytest.TestReport]:
        reports = terminalreporter.stats.get(outcome, [])
        return [r for r in reports if "test_upstream_" in r.nodeid and getattr(r, "when", None) in ("call", "setup")]

    counts = {outcome: len(of(outcome)) for outcome in ("passed", "failed", "error", "skipped", "xfailed")}
    if not sum(counts.values()):
        return
    upstream = importlib.import_module("upstream")
    write = terminalreporter.write_line
    terminalreporter.section("PyTorch's own databases over our layers")
    for line in upstream.coverage():
        write(line)
    write(f"{sum(counts.values())} tests: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n))
    for what, n in sorted(RAN.items()):
        write(f"  {n:6d} {what}")
    reasons = Counter(str(r.longrepr[2]) for r in of("skipped") if isinstance(r.longrepr, tuple))
    for reason, n in reasons.most_common():
        write(f"  {n:6d} {reason}")
    for r in of("xfailed"):
        write(f"         expected to fail, and does: {r.nodeid.split('::')[-1]}")
    for line in upstream.differences():
        write(f"         {line}")
    for (entry, test), reason in upstream.OURS_RUNS.items():
        if upstream.is_ours(entry):
            write(f"         skipped or expected to fail by upstream, passed by ours: {entry} {test} ({reason})")
    for test, reason in upstream.NOT_RUN.items():
        write(f"         not run: {test} ({reason})")
