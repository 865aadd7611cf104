"""Random numbers while a step is derived: the same that the step itself will draw, and none of anybody else's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from torch_manualbp._torch import TorchDispatchMode, pytree

__all__ = ["Draws", "random_states"]


class Draws(TorchDispatchMode):
    """Runs what draws random numbers on generators of its own, which begin where torch's are.

    torch's own generators stay where they are, so that another thread's numbers are neither repeated nor lost. A mode
    sees the operators of its thread alone, those of TorchScript and of extensions in C++ among them.
    """

    def __init__(self, begin: dict[torch.device, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        """How many operators drew random numbers."""

        self._begin = {} if begin is None else begin
        self._generators: dict[torch.device, Generator] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled under this mode, and torch would import its compiler, which takes a second."""
        return False

    def again(self) -> Draws:
        """A mode that draws the same numbers once more."""
        return Draws(self._begin)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_random(function) or kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        self.count += 1
        generator = self._generator(_device(args, kwargs))
        seeded = _seeded(function)
        if seeded is not None:
            return seeded(*args, **kwargs, generator=generator)
        # The operator takes no generator: for this call torch's own is where ours is.
        default = _default(generator.device)
        before = default.get_state()
        default.set_state(generator.get_state())
        try:
            return function(*args, **kwargs)
        finally:
            generator.set_state(default.get_state())
            default.set_state(before)

    def _generator(self, device: torch.device) -> Generator:
        if device not in self._generators:
            if device not in self._begin:
                self._begin[device] = _default(device).get_state()
            self._generators[device] = Generator(device)
            self._generators[device].set_state(self._begin[device])
        return self._generators[device]


def random_states(device: str) -> list[tuple[Callable[[Tensor], object], Tensor]]:
    """How to put torch's generators back to where they are now: the CPU's, and those of a device."""
    others = () if device in ("cpu", "meta") else torch.get_device_module(device).default_generators
    return [(one.set_state, one.get_state()) for one in (torch.default_generator, *others)]


@functools.cache
def _is_random(function: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in function.tags


@functools.cache
def _seeded(function: Any) -> Any:
    """The overload of the same arguments and a generator, if there is one."""
    wanted = [argument.name for argument in function._schema.arguments if argument.name != "generator"]
    overloads = [function, *(getattr(function.overloadpacket, name) for name in function.overloadpacket.overloads())]
    for overload in overloads:
        names = [argument.name for argument in overload._schema.arguments]
        if "generator" in names and [name for name in names if name != "generator"] == wanted:
            return overload
    return None


def _device(args: Any, kwargs: Any) -> torch.device:
    """The device whose numbers are drawn."""
    tensors = (t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor))
    device = next((t.device for t in tensors), None)
    device = torch.device(kwargs.get("device") or "cpu") if device is None else device
    if device.type in ("cpu", "meta"):
        return torch.device("cpu")
    return torch.empty(0, device=device).device  # with the number of the device, which "cuda" alone does not say


def _default(device: torch.device) -> Generator:
    """torch's own generator of a device."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.get_device_module(device).default_generators[device.index]
