"""A step with kernels in place of its lines computes what it computes without, and does without them where it must."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp import TrainStep
from torch_manualbp.derive import fused

torch.manual_seed(0)


class Attention(nn.Module):
    """A block of a transformer, with all that is between two products of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.reshape(3, 5, 2, 4).transpose(1, 2) for t in self.qkv(self.norm(x)).split(8, dim=2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 5, 8)
        x = x + self.out(a)
        return x + self.down(F.gelu(self.up(self.last(x))))


def _mlp(activation: Callable[[], nn.Module], norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 3)]
    return nn.Sequential(*layers[:2], *([nn.BatchNorm1d(8)] if norm else []), *layers[2:])


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...]]] = {
    "tanh": (lambda: _mlp(nn.Tanh), F.mse_loss, (4, 6)),
    "elu": (lambda: _mlp(nn.ELU), F.mse_loss, (4, 6)),
    "silu": (lambda: _mlp(nn.SiLU), F.smooth_l1_loss, (4, 6)),
    "softplus-norm": (lambda: _mlp(nn.Softplus, norm=True), F.mse_loss, (4, 6)),
    "dropout": (lambda: nn.Sequential(_mlp(nn.GELU), nn.Dropout(0.5)), F.mse_loss, (4, 6)),
    "attention": (Attention, F.mse_loss, (3, 5, 8)),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    # of a bias before a norm the gradient is rounding alone, which a small ε would make steps of
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-4),
}


def _steps(name: str, optimizer: str, dtype: torch.dtype, **kwargs: Any) -> tuple[TrainStep, TrainStep, Tensor, Tensor]:
    """A step without and a step with kernels of equal models."""
    make, loss, shape = MODELS[name]
    torch.manual_seed(1)
    models = [make().to(dtype)]
    models.append(copy.deepcopy(models[0]))
    x = torch.randn(shape, dtype=dtype)
    y = torch.randn_like(models[0](x)).detach()
    models[1].load_state_dict(models[0].state_dict())  # and running statistics
    plain, kernels = (
        TrainStep(model, loss, OPTIMIZERS[optimizer](model.parameters()), fuse=fuse, **kwargs)
        for model, fuse in zip(models, (False, True), strict=True)
    )
    return plain, kernels, x, y


def _hold(plain: TrainStep, kernels: TrainStep, x: Tensor, y: Tensor, steps: int = 5) -> None:
    """Both make steps, with the same random numbers; losses, parameters and buffers are the same."""
    tolerance: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    if x.dtype == torch.float32:
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
    for i in range(steps):
        losses = []
        for step in (plain, kernels):
            torch.manual_seed(i)
            losses.append(step(x, y))
        torch.testing.assert_close(losses[1], losses[0], **tolerance)
    for a, b in zip(kernels.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_kernels_compute_what_their_lines_do(name: str, optimizer: str, dtype: torch.dtype) -> None:
    plain, kernels, x, y = _steps(name, optimizer, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _hold(plain, kernels, x, y)
    assert "kernels in place of" in kernels.fused, kernels.fused
    assert "kernel_1(" in kernels.program


def test_a_step_with_kernels_is_the_step_without() -> None:
    plain, kernels, x, y = _steps("tanh", "adamw", torch.float64)
    _hold(plain, kernels, x, y)
    assert kernels.fused == "3 kernels in place of 12 calls"
    again = copy.deepcopy(kernels)  # whose kernels are made again, of what this process has made
    again(x, y)
    assert again.fused == kernels.fused


def test_the_text_of_a_program_with_kernels_runs_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused.Making, "result", lambda self: {})
    monkeypatch.setattr(fused.Making, "_start", lambda self: None)
    for name in MODELS:
        for optimizer in ("sgd", "adamw"):
            plain, kernels, x, y = _steps(name, optimizer, torch.float64)
            _hold(plain, kernels, x, y, steps=3)
            assert "def kernel_1(" in kernels.program


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are a little off."""

    def bound(made: Callable[..., None]) -> Callable[..., None]:
        def kernel(*arguments: Tensor) -> None:
            made(*arguments)
            arguments[-1].mul_(1 + 1e-9)

        return kernel

    def take(self: Any, made: Any) -> None:
        lines = {name: self._namespace[name] for name in self.kernels}
        _take(self, lines)

    from torch_manualbp.derive import derived

    _take = derived.Derived.take
    monkeypatch.setattr(derived, "bound", bound)
    monkeypatch.setattr(derived.Derived, "take", take)
    monkeypatch.setattr(fused.Making, "result", lambda self: {})
    monkeypatch.setattr(fused.Making, "_start", lambda self: None)
    return


@pytest.mark.usefixtures("wrong")
def test_a_kernel_that_computes_something_else_is_not_taken() -> None:
    plain, kernels, x, y = _steps("tanh", "adamw", torch.float64)
    with pytest.warns(RuntimeWarning, match="3 of 3 kernels of the derived step compute other numbers"):
        kernels(x, y)
    plain(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _hold(plain, kernels, x, y)
    assert kernels.fused == "as it is written"


def _without_compiler(script: str, **environment: str) -> str:
    """What a program prints where there is no compiler that works."""
    code = textwrap.dedent(
        """
        import warnings, torch, torch_manualbp
        from torch.nn import functional as F
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2), torch.nn.SiLU())
        x, y = torch.randn(5, 3), torch.randn(5, 2)
        def step(fuse):
            import copy
            own = copy.deepcopy(model)
            return torch_manualbp.TrainStep(own, F.mse_loss, torch.optim.SGD(own.parameters(), lr=0.1), fuse=fuse)
        """
    ) + textwrap.dedent(script)
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return run.stdout


WITHOUT = """
plain, kernels = step(False), step(True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for n in (5, 4, 5):
        assert torch.equal(plain(x[:n], y[:n]), kernels(x[:n], y[:n]))
print(len(caught), kernels.fused, *(str(w.message)[:48] for w in caught))
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["none", "broken"])
def test_without_a_compiler_the_lines_run(case: str, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    if case == "broken":
        compiler.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
        compiler.chmod(0o755)
    printed = _without_compiler(WITHOUT, CXX=str(compiler), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert printed == "1 as it is written the derived step runs as it is written, without \n"


@pytest.mark.slow
def test_with_a_folder_that_cannot_be_written_the_lines_run(tmp_path: Path) -> None:
    """From the first step on: torch's own optimizers cannot be made with such a folder."""
    (tmp_path / "file").write_text("")
    folder = f"import os\nos.environ['TORCHINDUCTOR_CACHE_DIR'] = {str(tmp_path / 'file' / 'cache')!r}\n"
    printed = _without_compiler(WITHOUT.replace("with warnings", folder + "with warnings", 1))
    assert printed == "1 as it is written the derived step runs as it is written, without \n"


IN_BACKGROUND = """
import time
from torch_manualbp.derive import fused
fused.AFTER_S, fused.PART = 0.01, 0
plain, kernels = step(False), step("auto")
began, states = time.monotonic(), []
while "in place" not in kernels.fused and time.monotonic() - began < 200:
    torch.testing.assert_close(kernels(x, y), plain(x, y))
    if states[-1:] != [kernels.fused.split(";")[-1].split(" when ")[0]]:
        states.append(kernels.fused.split(";")[-1].split(" when ")[0])
for _ in range(3):
    torch.testing.assert_close(kernels(x, y), plain(x, y))
print(states)
"""


@pytest.mark.slow
def test_kernels_are_made_in_the_background() -> None:
    printed = _without_compiler(IN_BACKGROUND)
    assert printed.startswith("[' kernels are made', ' kernels are being made', '"), printed
    assert printed.endswith(" calls']\n"), printed


def test_short_programs_are_not_compiled() -> None:
    plain, _, x, y = _steps("tanh", "sgd", torch.float32)
    step = TrainStep(plain.model, F.mse_loss, plain.optimizer)
    for _ in range(3):
        step(x, y)
    assert step.fused == "as it is written; kernels are made when it has run for 10 s more"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="processes are ended in groups here")
@pytest.mark.slow
def test_an_interruption_ends_the_program_and_what_it_compiles(tmp_path: Path) -> None:
    code = IN_BACKGROUND.replace("while ", "print('begun', flush=True)\nwhile ").replace("in place", "never")
    script = tmp_path / "train.py"
    head = "import copy, os, torch, torch_manualbp\nfrom torch.nn import functional as F\n"
    head += "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))\n"
    head += "x, y = torch.randn(5, 3), torch.randn(5, 2)\n"
    head += "def step(fuse):\n    own = copy.deepcopy(model)\n    return torch_manualbp.TrainStep(own, F.mse_loss, "
    head += "torch.optim.SGD(own.parameters(), lr=0.1), fuse=fuse)\n"
    script.write_text(head + code)
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    program = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, **cache}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"begun\n"
    time.sleep(6)
    children = _children(program.pid)
    assert children
    began = time.monotonic()
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=60)
    assert time.monotonic() - began < 3
    assert program.returncode != 0
    time.sleep(2)
    assert not [pid for pid in children if _is_alive(pid)]


def _children(pid: int) -> list[int]:
    """Those that any of its threads has started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_what_fuse_takes() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='True, False, or "auto"'):
        TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), fuse="always")  # type: ignore[arg-type]
