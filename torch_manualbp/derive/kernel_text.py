"""Kernels as functions of a program's text, which compute the same where nobody has compiled them."""

from __future__ import annotations

from dataclasses import dataclass

from torch_manualbp.derive.plan import Plan
from torch_manualbp.derive.program import Call, Kernel, Value
from torch_manualbp.derive.source import Names, Source, shape_of, statement

__all__ = ["KernelText", "Spec", "kernels_of", "write_kernel"]

Spec = tuple[tuple[int, ...], tuple[int, ...], str]
"""Shape, strides and dtype of an argument."""


@dataclass(frozen=True)
class KernelText:
    """A kernel as a function, in names that say nothing of where it stands: so equal layers have one."""

    text: str
    arguments: tuple[Spec, ...]
    """What it reads, then what it writes."""

    count_of_outputs: int


def kernels_of(plan: Plan) -> tuple[dict[Call, str], dict[str, KernelText], dict[str, Call]]:
    """The names of the kernels by their calls, their texts by name, and the first call of each."""
    names: dict[Call, str] = {}
    texts: dict[KernelText, str] = {}
    firsts: dict[str, Call] = {}
    for call in plan.steps:
        if isinstance(call.function, Kernel):
            text = _text_of(call.function)
            name = texts.setdefault(text, f"kernel_{len(texts) + 1}")
            names[call] = name
            firsts.setdefault(name, call)
    return names, {name: text for text, name in texts.items()}, firsts


def write_kernel(source: Source, name: str, kernel: Kernel) -> None:
    """The kernel as a function of the text, in the names of the layer that is the first to have it."""
    source.add()
    source.add()
    for line, note in _lines(kernel, name, _names(kernel, as_known=True)):
        source.add(line, note=note)


def _text_of(kernel: Kernel) -> KernelText:
    lines = [line for line, _ in _lines(kernel, "kernel", _names(kernel, as_known=False))]
    specs = tuple(_spec(value) for value in (*kernel.inputs, *kernel.outputs))
    return KernelText("\n".join(lines) + "\n", specs, len(kernel.outputs))


def _spec(value: Value) -> Spec:
    t = value.tensor
    return tuple(t.shape), t.stride(), str(t.dtype).removeprefix("torch.")


def _names(kernel: Kernel, as_known: bool) -> dict[Value, str]:
    free = Names(())
    values = dict.fromkeys([*kernel.inputs, *(v for call in kernel.calls for v in (*call.arguments(), *call.results))])
    return {value: free(value.name if as_known and value.name else "t") for value in values}


def _lines(kernel: Kernel, name: str, names: dict[Value, str]) -> list[tuple[str, str]]:
    """The statements, and the shapes of what each makes."""
    taken = Names(names.values())
    outs = {value: taken(f"{names[value]}_out") for value in kernel.outputs}
    arguments = ", ".join([*(names[value] for value in kernel.inputs), *outs.values()])
    lines = [(f"def {name}({arguments}):", "")]
    plain = Plan()
    lines += [("    " + statement(call, names, plain), ", ".join(map(shape_of, call.results))) for call in kernel.calls]
    lines += [(f"    {out}.copy_({names[value]})", shape_of(value)) for value, out in outs.items()]
    return lines
