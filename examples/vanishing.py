"""Where the gradient vanishes, and why: a deep network of sigmoids, and the same network with ReLU and He's weights.

    python examples/vanishing.py --output vanishing

Going back one layer, δ⁽ˡ⁾ = (δ⁽ˡ⁺¹⁾ W⁽ˡ⁾) ⊙ f'(z⁽ˡ⁾), so that ‖δ⁽ˡ⁾‖ ≤ max f' · ‖W⁽ˡ⁾‖ · ‖δ⁽ˡ⁺¹⁾‖. Of a sigmoid f' is
at most 1/4. Where ‖W‖ does not make up for that, each layer leaves less, and ten layers leave nothing to learn from.
Measured on handwritten digits; the findings are printed and asserted, the figures and a page of each run are written.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp._extras import require
from torch_manualbp._files import check_writable, is_to_be_lost
from torch_manualbp.insight import RunStatistics, report
from torch_manualbp.insight.figures import save
from torch_manualbp.insight.network import layers_of
from torch_manualbp.insight.trace import trace

HIDDEN, WIDTH = 10, 32
BATCH, EPSILON = 128, 0.01
FILES = ("delta.png", "factors.png", "cost.png", "sigmoid.html", "relu.html")


def network(activation: type[torch.nn.Module]) -> torch.nn.Sequential:
    """64 pixels → ten layers of 32 neurons → 10 classes, with PyTorch's own start for the weights."""
    sizes = [64, *[WIDTH] * HIDDEN, 10]
    layers: list[torch.nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return torch.nn.Sequential(*layers[:-1])


def sigmoid_network() -> torch.nn.Sequential:
    return network(nn.Sigmoid)


def relu_network() -> torch.nn.Sequential:
    """ReLU lets δ through whole or not at all; weights of variance 2 / n make up for the half that it stops."""
    model = network(nn.ReLU)
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    return model


@dataclass
class Factors:
    """What one layer does to δ on its way back, from the layer above."""

    number: int
    delta: float
    """‖δ⁽ˡ⁾‖"""
    slope: float
    """The mean of f'(z⁽ˡ⁾)."""
    steepest: float
    """The greatest f'(z⁽ˡ⁾)."""
    weight: float
    """‖W⁽ˡ⁾‖, the most that the weights can do: the largest singular value."""
    ratio: float
    """‖δ⁽ˡ⁾‖ / ‖δ⁽ˡ⁺¹⁾‖"""


def factors(model: torch.nn.Module, x: Tensor, y: Tensor) -> list[Factors]:
    """The figures of each hidden layer, the last first."""
    found = []
    for layer, above in itertools.pairwise(layers_of(trace(model, nn.CrossEntropyLoss(), x, y))):
        assert layer.activation is not None
        slope = layer.activation.backward(torch.ones_like(layer.a.tensor))[layer.z]
        delta, delta_above = norm(layer.z.gradient), norm(above.z.gradient)
        weight = float(torch.linalg.matrix_norm(above.weight.tensor, 2))
        assert layer.number is not None
        row = Factors(layer.number + 1, delta, float(slope.mean()), float(slope.max()), weight, delta / delta_above)
        found.append(row)
    return found[::-1]


def norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.norm())


@dataclass
class Run:
    """A network that was trained."""

    name: str
    model: torch.nn.Sequential
    start: list[Factors]
    """Before the first step."""
    costs: list[float]
    accuracy: float
    history: list[dict[str, Any]]


def train(name: str, make: Callable[[], torch.nn.Sequential], data: Data, steps: int, seed: int) -> Run:
    """Gradient descent on batches, the same for every network."""
    torch.manual_seed(seed)
    model = make()
    start = factors(model, data.x[:BATCH], data.y[:BATCH])
    optimizer = torch.optim.SGD(model.parameters(), lr=EPSILON, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    statistics = RunStatistics(model, every=10)
    costs = []
    for _ in range(steps):
        rows = torch.randint(len(data.x), (BATCH,))
        with statistics.step():
            optimizer.zero_grad()
            C = loss(model(data.x[rows]), data.y[rows])
            C.backward()
            optimizer.step()
        costs.append(C.item())
    with torch.no_grad():
        accuracy = float((model(data.x_test).argmax(1) == data.y_test).double().mean())
    history = [{**entry, "loss": costs[entry["step"] - 1]} for entry in statistics.history]
    return Run(name, model, start, costs, accuracy, history)


@dataclass
class Data:
    """Handwritten digits, every fourth kept for the test."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(seed: int) -> Data:
    load = require("sklearn.datasets", "examples").load_digits
    pixels, classes = load(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes)
    x = (x - x.mean()) / x.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train_rows, test_rows = order[len(x) // 4 :], order[: len(x) // 4]
    return Data(x[train_rows], y[train_rows], x[test_rows], y[test_rows])


# ---- What is found ---------------------------------------------------------------------------------------------------


def show(run: Run) -> None:
    print(f"\n{run.name}, before the first step: from the output back to the input\n")
    heads = ("‖δ‖", "= ratio", "≤ max f'", "· ‖W‖", "mean f'")
    print(f"    layer   {''.join(f'{head:10}' for head in heads)}".rstrip())
    for row in run.start:
        numbers = (row.delta, row.ratio, row.steepest, row.weight, row.slope)
        print(f"    {row.number:5}   {''.join(f'{number:<10.3g}' for number in numbers)}".rstrip())
    last, first = run.start[0], run.start[-1]
    count = len(run.start) - 1
    each = (first.delta / last.delta) ** (1 / count)
    left = f"{first.delta / last.delta:.2g}"
    print(f"\n    From layer {last.number} to layer {first.number}, {left} of ‖δ‖ is left: times {each:.3g} a layer.")
    print(
        f"    After {len(run.costs)} steps: C = {run.costs[-1]:.3f}, {run.accuracy:.1%} of the test's digits are right."
    )


def check(sigmoid: Run, relu: Run) -> None:
    for run in (sigmoid, relu):
        for row in run.start:
            bound = row.steepest * row.weight
            require_that(row.ratio <= bound * 1.0001, f"{run.name}, layer {row.number}: ‖δ‖ is beyond max f' · ‖W‖")
    steepest = max(row.steepest for row in sigmoid.start)
    require_that(steepest <= 0.25, f"a sigmoid's f' is at most 1/4, and {steepest} was found")
    left, kept = (run.start[-1].delta / run.start[0].delta for run in (sigmoid, relu))
    require_that(left < 1e-5, f"the sigmoids leave {left:.2g} of ‖δ‖: it does not vanish")
    require_that(0.1 < kept < 10, f"with ReLU and He's weights {kept:.2g} of ‖δ‖ is left: it vanishes, or explodes")
    require_that(sigmoid.accuracy < 0.2, f"the sigmoids learn: {sigmoid.accuracy:.1%} of the digits are right")
    require_that(abs(sigmoid.costs[-1] - math.log(10)) < 0.1, f"the cost of the sigmoids is {sigmoid.costs[-1]:.3f}")
    require_that(relu.accuracy > 0.9, f"the network with ReLU does not learn: {relu.accuracy:.1%} are right")


def require_that(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"vanishing.py: FAILED: {otherwise}")


# ---- To look at ------------------------------------------------------------------------------------------------------


def draw(runs: list[Run], folder: Path) -> list[Path]:
    """The figures, one file each."""
    require("matplotlib", "plots").use("Agg")
    plt = require("matplotlib.pyplot", "plots")
    colours = dict(zip((run.name for run in runs), ("#b04a06", "#1f5fa8"), strict=True))
    paths = []

    def figure(name: str, title: str, x: str, y: str) -> tuple[Any, Any]:
        fig, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        paths.append(folder / f"{name}.png")
        return fig, axes

    fig, axes = figure("delta", "The local gradient before the first step", "layer", "‖δ‖")
    for run in runs:
        numbers = [row.number for row in run.start]
        axes.semilogy(numbers, [row.delta for row in run.start], "o-", color=colours[run.name], label=run.name)
    axes.set_xticks(numbers)
    axes.legend()
    save(fig, paths[-1])

    fig, axes = figure("factors", "What one layer leaves of ‖δ‖", "layer", "‖δ⁽ˡ⁾‖ / ‖δ⁽ˡ⁺¹⁾‖")
    for run in runs:
        axes.semilogy(numbers, [row.ratio for row in run.start], "o-", color=colours[run.name], label=run.name)
        bounds = [row.steepest * row.weight for row in run.start]
        axes.semilogy(numbers, bounds, ":", color=colours[run.name], label="max f' · ‖W‖, an upper bound")
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xticks(numbers)
    axes.legend(fontsize="small", loc="center right", bbox_to_anchor=(1, 0.42))  # between the two networks
    save(fig, paths[-1])

    fig, axes = figure("cost", "Training", "step", "C")
    for run in runs:
        axes.plot(range(1, len(run.costs) + 1), run.costs, color=colours[run.name], label=run.name)
    axes.axhline(math.log(10), color="grey", linewidth=1, linestyle=":", label="log 10, a guess")
    axes.legend()
    save(fig, paths[-1])
    plt.close("all")
    return paths


def pages(runs: list[Run], data: Data, folder: Path) -> list[Path]:
    """A page of each run, with the statistics of every layer."""
    x, y = data.x[:BATCH], data.y[:BATCH]
    return [
        report(
            run.model, nn.CrossEntropyLoss(), x, y, folder / f"{run.name.split()[0].lower()}.html", lr=EPSILON,
            history=run.history, title=f"{run.name}: the run",
        )
        for run in runs
    ]  # fmt: skip


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vanishing.py: {message}\n")


def main() -> None:
    parser = Parser(description="A deep network of sigmoids whose gradient vanishes, and one whose does not.")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("vanishing"), metavar="FOLDER", help="of figures and pages")
    parser.add_argument("--steps", type=int, default=600, help="of training (default: 600)")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # a console of another encoding could not print δ
    parser.add_argument("--force", action="store_true", help="write over figures and pages that exist")
    options = parser.parse_args()
    if not 0 <= options.seed < 2**63:
        parser.error(f"argument --seed: {options.seed} is not from 0 to 2**63 - 1")
    if options.steps < 300:
        parser.error(f"argument --steps: {options.steps} is less than 300, too few to learn the digits in")
    torch.set_num_threads(1)  # products this small are no work to share
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for path in (options.output / name for name in FILES):
            check_writable(path)
            if is_to_be_lost(path) and not options.force:
                parser.error(f"argument --output: {path} exists; --force writes over it")
        data = digits(options.seed)
        require("matplotlib", "plots")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"vanishing.py: {error}")

    print(f"{len(data.x)} handwritten digits; 64 → {HIDDEN} layers of {WIDTH} → 10; gradient descent, ε = {EPSILON:g}")
    sigmoid = train("Sigmoid with PyTorch's weights", sigmoid_network, data, options.steps, options.seed)
    show(sigmoid)
    relu = train("ReLU with He's weights", relu_network, data, options.steps, options.seed)
    show(relu)
    check(sigmoid, relu)
    print(
        "\nAs the chain says: f' ≤ 1/4 times a ‖W‖ of about 1, layer after layer, leaves nothing to learn from. Where"
    )
    print("f' is 1 for about half of the neurons and the weights make up for the other half, ‖δ‖ stays what it is.\n")
    runs = [sigmoid, relu]
    try:
        for path in (*draw(runs, options.output), *pages(runs, data, options.output)):
            print(path)
    except OSError as error:
        sys.exit(f"vanishing.py: {error}")


if __name__ == "__main__":
    main()
