"""The article's backpropagation, row by row, with numbers: ``python examples/article.py``

"Understanding Backpropagation Algorithm" (S. Kostadinov), to read and to run. First comes the algorithm, all of it in
``forward_and_back``; then one function for each row A1 … A11, whose docstring is printed above its numbers. In the code
``z2`` is z⁽²⁾, ``delta3`` is δ⁽³⁾ and ``dW2`` is ∂C/∂W⁽²⁾. With ``--page article.html`` the network is also drawn.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import io
import itertools
import math
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp import nn
from torch_manualbp._files import check_writable, is_to_be_lost
from torch_manualbp.insight import report
from torch_manualbp.rules.activation import ReLU, Sigmoid, Tanh
from torch_manualbp.rules.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from torch_manualbp.rules.loss import squared_error_gradient

# ---- The algorithm ---------------------------------------------------------------------------------------------------

# All that gradient descent changes, and all that a pass forward and back computes.
Network = namedtuple("Network", "W1 b1 W2 b2 W3")
Numbers = namedtuple("Numbers", "z2 a2 z3 a3 s C delta4 da3 delta3 da2 delta2 dW1 db1 dW2 db2 dW3")

ACTIVATIONS: dict[
    str, tuple[Callable[..., Tensor], Callable[..., Tensor], str]
] = {  # f, the formula of δ = ∂C/∂a ⊙ f'(z), and the layer's name in torch.nn
    "sigmoid": (torch.sigmoid, Sigmoid.delta, "Sigmoid"),
    "tanh": (torch.tanh, Tanh.delta, "Tanh"),
    "relu": (torch.relu, ReLU.delta, "ReLU"),
}
COSTS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {  # C, the mean over the samples, and ∂C/∂s
    "squared error": (lambda s, y: ((s - y) ** 2).mean(), lambda s, y: squared_error_gradient(s, y) / len(s)),
    "cross-entropy": (F.binary_cross_entropy_with_logits, lambda s, y: (torch.sigmoid(s) - y) / len(s)),
    "log cosh": (lambda s, y: (s - y).cosh().log().mean(), lambda s, y: (s - y).tanh() / len(s)),
}


def forward_and_back(
    x: Tensor, y: Tensor, network: Network, activation: str = "sigmoid", cost: str = "squared error"
) -> Numbers:
    """The article's algorithm, a line of code for a line of calculus. Rows are samples. Nothing here calls autograd."""
    W1, b1, W2, b2, W3 = network
    f, f_delta, _ = ACTIVATIONS[activation]
    cost_of, cost_gradient = COSTS[cost]
    # fmt: off
    z2 = x @ W1.T + b1                         # A2  z⁽²⁾ = W⁽¹⁾ x + b⁽¹⁾
    a2 = f(z2)                                 # A3  a⁽²⁾ = f(z⁽²⁾)
    z3 = a2 @ W2.T + b2                        # A2  z⁽³⁾ = W⁽²⁾ a⁽²⁾ + b⁽²⁾
    a3 = f(z3)                                 # A3  a⁽³⁾ = f(z⁽³⁾)
    s = a3 @ W3.T                              # A4  s = W⁽³⁾ a⁽³⁾
    C = cost_of(s, y)                          # A5  C = cost(s, y)

    delta4 = cost_gradient(s, y)               # A6  δ⁽⁴⁾ = ∂C/∂s
    dW3 = linear_weight_gradient(delta4, a3)   # A7  ∂C/∂W⁽³⁾ = δ⁽⁴⁾ᵀ a⁽³⁾
    da3 = linear_input_gradient(delta4, W3)    # A9  ∂C/∂a⁽³⁾ = δ⁽⁴⁾ W⁽³⁾
    delta3 = f_delta(da3, a3)                  # A9  δ⁽³⁾ = ∂C/∂a⁽³⁾ ⊙ f'(z⁽³⁾)
    dW2 = linear_weight_gradient(delta3, a2)   # A7  ∂C/∂W⁽²⁾ = δ⁽³⁾ᵀ a⁽²⁾
    db2 = linear_bias_gradient(delta3)         # A8  ∂C/∂b⁽²⁾ = Σ δ⁽³⁾
    da2 = linear_input_gradient(delta3, W2)    # A9  ∂C/∂a⁽²⁾ = δ⁽³⁾ W⁽²⁾
    delta2 = f_delta(da2, a2)                  # A9  δ⁽²⁾ = ∂C/∂a⁽²⁾ ⊙ f'(z⁽²⁾)
    dW1 = linear_weight_gradient(delta2, x)    # A7  ∂C/∂W⁽¹⁾ = δ⁽²⁾ᵀ x
    db1 = linear_bias_gradient(delta2)         # A8  ∂C/∂b⁽¹⁾ = Σ δ⁽²⁾
    # fmt: on
    return Numbers(z2, a2, z3, a3, s, C, delta4, da3, delta3, da2, delta2, dW1, db1, dW2, db2, dW3)


def by_backward(
    layers: Any, cost: Callable[..., Any], x: Tensor, y: Tensor, network: Network, activation: str = "sigmoid"
) -> Numbers:
    """The same numbers from PyTorch's ``C.backward()``; ``layers`` is ``torch.nn`` or ``torch_manualbp.nn``."""
    model = as_model(layers, network, activation)
    outputs = []
    for layer in model:
        x = layer(x)
        x.retain_grad()
        outputs.append(x)
    C = cost(x, y)
    C.backward()
    gradients = [t.grad for t in (*reversed(outputs), *model.parameters())]
    return Numbers._make([*outputs, C, *gradients])


def as_model(layers: Any, network: Network, activation: str = "sigmoid") -> Any:
    """The network as a model of these layers."""
    f = getattr(layers, ACTIVATIONS[activation][2])
    model = layers.Sequential(layers.Linear(4, 2), f(), layers.Linear(2, 2), f(), layers.Linear(2, 1, bias=False))
    model.double().load_state_dict(dict(zip(model.state_dict(), network, strict=True)))
    return model


# ---- The known case: computed outside PyTorch with 40 digits, the gradients by central differences -------------------

tensor = functools.partial(torch.tensor, dtype=torch.float64)
X, Y = tensor([[1, 0.5, -1, 2]]), tensor([[1]])
NETWORK = Network(
    W1=tensor([[0.1, -0.2, 0.3, 0.4], [0.5, 0.6, -0.7, -0.8]]),
    b1=tensor([0.1, -0.1]),
    W2=tensor([[0.3, -0.4], [0.5, 0.6]]),
    b2=tensor([0.05, -0.05]),
    W3=tensor([[0.7, -0.9]]),
)
# fmt: off
KNOWN = {
    "z2": (0.6, -0.2),                         "a2": (0.645656306226, 0.450166002688),
    "z3": (0.0636304907927, 0.542927754725),   "a3": (0.515902257586, 0.632493224884),
    "s": (-0.208112322085,),                   "C": (1.45953538277,),
    "delta3": (-0.42241159927, 0.505476589613),
    "delta2": (0.028830203742, 0.116889848358),
    "dW1": (0.028830203742, 0.014415101871, -0.028830203742, 0.0576604074839,
            0.116889848358, 0.0584449241792, -0.116889848358, 0.233779696717),
    "db1": (0.028830203742, 0.116889848358),
    "dW2": (-0.272732712892, -0.190155341132, 0.326364147733, 0.227548375798),
    "db2": (-0.42241159927, 0.505476589613),
    "dW3": (-1.24653574876, -1.52824571724),
}
# fmt: on


# ---- The lesson ------------------------------------------------------------------------------------------------------


def a1_network(n: Numbers) -> None:
    """A1  The network: layers of 4, 2, 2 and 1 neurons

    x = a⁽¹⁾ → a⁽²⁾ → a⁽³⁾ → s          W⁽ˡ⁾ and b⁽ˡ⁾ lead from layer l to layer l + 1

    Each row of W⁽ˡ⁾ holds the weights into one neuron of layer l + 1. Our network and one sample:
    """
    for name, value in {"x": X, "y": Y, **NETWORK._asdict()}.items():
        show(symbol(name), value)


def a2_weighted_inputs(n: Numbers) -> None:
    """A2  Forward: each neuron adds up all that comes in, weight times input, and its bias

    z⁽²⁾ = W⁽¹⁾ x    + b⁽¹⁾     a⁽²⁾ = f(z⁽²⁾)
    z⁽³⁾ = W⁽²⁾ a⁽²⁾ + b⁽²⁾     a⁽³⁾ = f(z⁽³⁾)

    The article writes a sample as a column, z = W a + b. PyTorch keeps the same W and stacks
    samples as rows, z = a Wᵀ + b. The code does as PyTorch, and so do the matrix formulas below.
    """
    show("z⁽²⁾", n.z2)
    show("a⁽²⁾, f = sigmoid", n.a2)
    show("z⁽³⁾", n.z3)
    show("a⁽³⁾, f = sigmoid", n.a3)


def a3_activation(n: Numbers) -> None:
    """A3  The activation: any f that is not a straight line

    sigmoid   f(z) = 1 / (1 + exp(−z))     f'(z) = a (1 − a)
    tanh      f(z) = tanh z                f'(z) = 1 − a²
    relu      f(z) = max(z, 0)             f'(z) = 1 where z > 0, else 0

    a stands for f(z). Going back needs f' only as a factor (row A9). At z⁽²⁾:
    """
    for name, (f, f_delta, _) in ACTIVATIONS.items():
        a = f(n.z2)
        show(f"{name}: f(z⁽²⁾)", a)
        show(f"{name}: f'(z⁽²⁾)", f_delta(torch.ones_like(a), a))


def a4_output(n: Numbers) -> None:
    """A4  The output layer: no bias, no activation

    s = W⁽³⁾ a⁽³⁾
    """
    show("s", n.s)


def a5_cost(n: Numbers) -> None:
    """A5  The cost: how far s is from what it should be, y. Any C whose ∂C/∂s we can write down

    squared error   C = (s − y)²                            ∂C/∂s = 2 (s − y)
    cross-entropy   C = −y log p − (1 − y) log(1 − p)       ∂C/∂s = p − y         p = sigmoid(s)
    log cosh        C = log cosh(s − y)                     ∂C/∂s = tanh(s − y)

    We go on with the first. The last is not in torch.nn: a cost of your own is two such formulas.
    """
    for name, (cost_of, cost_gradient) in COSTS.items():
        show(f"{name}: C", cost_of(n.s, Y))
        show(f"{name}: ∂C/∂s", cost_gradient(n.s, Y))


def a6_local_gradients(n: Numbers) -> None:
    """A6  Back: a neuron's local gradient is how the cost answers to its weighted input

    δ_j⁽ˡ⁾ = ∂C/∂z_j⁽ˡ⁾

    Layer 4 has no f, so there δ⁽⁴⁾ = ∂C/∂s of row A5. How the others come from it is row A9.
    """
    show("δ⁽⁴⁾ = ∂C/∂s", n.delta4)
    show("δ⁽³⁾", n.delta3)
    show("δ⁽²⁾", n.delta2)
    nudged = torch.sigmoid(n.z3 + tensor([0.001, 0])) @ NETWORK.W3.T
    print("\n    Try it: add 0.001 to z_1⁽³⁾. C changes by about 0.001 δ_1⁽³⁾:")
    show("the change of C", (nudged - Y) ** 2 - n.C)
    show("0.001 δ_1⁽³⁾", 0.001 * n.delta3[:, :1])


def a7_weight_gradients(n: Numbers) -> None:
    """A7  A weight's gradient: δ of the neuron it leads to, times the activation it comes from

    ∂C/∂w_jk = δ_j⁽ˡ⁾ a_k⁽ˡ⁻¹⁾     from neuron k of layer l − 1 to neuron j of layer l
    ∂C/∂W = δᵀ a                   all of them at once, summed over the samples
    """
    show("∂C/∂W⁽³⁾ = δ⁽⁴⁾ᵀ a⁽³⁾", n.dW3)
    show("∂C/∂W⁽²⁾ = δ⁽³⁾ᵀ a⁽²⁾", n.dW2)
    show("∂C/∂W⁽¹⁾ = δ⁽²⁾ᵀ x", n.dW1)


def a8_bias_gradients(n: Numbers) -> None:
    """A8  A bias's gradient: δ itself, as if the bias were a weight whose input is always 1

    ∂C/∂b_j = δ_j⁽ˡ⁾               the bias of neuron j of layer l
    ∂C/∂b = Σ δ                    all of them at once, summed over the samples
    """
    show("∂C/∂b⁽²⁾ = Σ δ⁽³⁾", n.db2)
    show("∂C/∂b⁽¹⁾ = Σ δ⁽²⁾", n.db1)


def a9_one_layer_back(n: Numbers) -> None:
    """A9  One layer back: through the weights, then through the activation

    ∂C/∂a⁽ˡ⁾ = δ⁽ˡ⁺¹⁾ W⁽ˡ⁾         a neuron acts on C through every neuron that it feeds
    δ⁽ˡ⁾ = ∂C/∂a⁽ˡ⁾ ⊙ f'(z⁽ˡ⁾)     ⊙ multiplies entry by entry
    """
    show("∂C/∂a⁽³⁾ = δ⁽⁴⁾ W⁽³⁾", n.da3)
    show("δ⁽³⁾ = ∂C/∂a⁽³⁾ ⊙ f'(z⁽³⁾)", n.delta3)
    show("∂C/∂a⁽²⁾ = δ⁽³⁾ W⁽²⁾", n.da2)
    show("δ⁽²⁾ = ∂C/∂a⁽²⁾ ⊙ f'(z⁽²⁾)", n.delta2)


def check_known_case(n: Numbers) -> None:
    """Check: are these the right numbers?

    known   are its ten significant digits those that were computed outside PyTorch, with
            40-digit arithmetic, the gradients by central differences?
    stock   the largest difference from autograd: C.backward() through the layers of torch.nn
    ours    the largest difference from C.backward() through the layers of torch_manualbp.nn
    """
    stock = by_backward(torch.nn, torch.nn.MSELoss(), X, Y, NETWORK)
    ours = by_backward(nn, nn.MSELoss(), X, Y, NETWORK)
    print(f"    {'':12}{'known':12}{'stock':12}ours")
    for name, here, in_stock, in_ours in zip(Numbers._fields, n, stock, ours, strict=True):
        known = digits(KNOWN[name]) if name in KNOWN else None
        verdict = "not listed" if known is None else "yes" if digits(here) == known else "NO"
        to_stock, to_ours = gap([here], [in_stock]), gap([here], [in_ours])
        print(f"    {symbol(name):12}{verdict:12}{to_stock:<12.1g}{to_ours:.1g}")
        require(verdict != "NO", f"{symbol(name)} is ({digits(here)}), known is ({known})")
        require(to_stock < 1e-12 and to_ours < 1e-12, f"C.backward() has another {symbol(name)}")
    print("\n    Ours are these same formulas, as autograd Functions. What C.backward() called, from C to x:")
    node = ours.C.grad_fn
    while node is not None:
        print(f"    {node.name()}")
        node = node.next_functions[0][0]


def check_other_functions(n: Numbers) -> None:
    """Check: the other activations (A3) and costs (A5) in the same network

    Only f, f' and ∂C/∂s change; rows A6 to A9 stay as they are. Against autograd of torch.nn:
    """
    print(f"    {'':26}{'C':16}{'∂C/∂w_22⁽²⁾':18}largest difference")
    for activation, cost in itertools.product(ACTIVATIONS, COSTS):
        n = forward_and_back(X, Y, NETWORK, activation, cost)
        apart = gap(n, by_backward(torch.nn, COSTS[cost][0], X, Y, NETWORK, activation))
        print(f"    {activation + ', ' + cost:26}{digits(n.C):16}{digits(n.dW2[1, 1]):18}{apart:.1g}")
        require(apart < 1e-12, f"with {activation} and {cost}, autograd of torch.nn has other numbers")
    print("\n    With relu, a_2⁽²⁾ = max(-0.2, 0) = 0: by row A7, what leaves that neuron gets no gradient.")


def a10_gradient_descent(seed: int, tolerance: float, most_steps: int = 20_000) -> None:
    """A10  Gradient descent: from a random start, downhill, until a condition is met

    while ‖∇C‖ ≥ tolerance:     w := w − ε ∂C/∂w     b := b − ε ∂C/∂b     for every w and b

    ‖∇C‖ is the length of all the gradients as one vector. Where it is 0, the ground is level.
    C is the mean of the samples' (s − y)².
    """
    about, x, y = samples()
    print(f"    {about}")
    inputs = torch.cat([x, torch.ones_like(y)], dim=1)
    line = inputs @ torch.linalg.lstsq(inputs, y).solution
    print(f"    s > ½ says that y = 1. The best straight line, s = w·x + b, is right for {right(line, y)}.")

    epsilon = 0.5  # with ε = 1 the cost climbs at times, and rounding decides how many steps it takes
    generator = torch.Generator().manual_seed(seed)
    network = Network(*(torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in NETWORK))
    print(f"    Random start (seed {seed}), ε = {epsilon:g}, tolerance {tolerance:g}:\n")
    print(f"    {'step':>6}   {'C':14}{'‖∇C‖':14}right")
    for step in itertools.count():
        n = forward_and_back(x, y, network)
        gradient = Network(n.dW1, n.db1, n.dW2, n.db2, n.dW3)
        length = torch.cat([dw.flatten() for dw in gradient]).norm().item()
        end = length < tolerance or step == most_steps
        if end or step in (0, 1, 10, 100, 1000, 10_000):
            print(f"    {step:6}   {n.C.item():<14.8f}{length:<14.8f}{right(n.s, y)}")
        if end:
            break
        network = Network(*(w - epsilon * dw for w, dw in zip(network, gradient, strict=True)))

    outcome = "Condition met" if length < tolerance else "Condition NOT met, given up"
    print(f"\n    {outcome} after {step} steps: ‖∇C‖ = {length:.9g}, tolerance {tolerance:g}.")
    apart = gap(n, by_backward(torch.nn, torch.nn.MSELoss(), x, y, network))
    print(f"    There, with {len(y)} samples, the largest difference from autograd of torch.nn is {apart:.1g}.")
    require(apart < 1e-12, "autograd of torch.nn has other numbers")


def a11_chain_of_one_weight(n: Numbers) -> None:
    """A11  The worked example: how the cost depends on one weight, w_22⁽²⁾, from a_2⁽²⁾ to z_2⁽³⁾

    ∂C/∂w_22⁽²⁾ = ∂C/∂a_2⁽³⁾ · f'(z_2⁽³⁾) · a_2⁽²⁾
    """
    da, a3, a2 = n.da3[0, 1], n.a3[0, 1], n.a2[0, 1]
    slope = ACTIVATIONS["sigmoid"][1](torch.ones_like(a3), a3)
    product = da * slope * a2
    stock = by_backward(torch.nn, torch.nn.MSELoss(), X, Y, NETWORK).dW2[1, 1]
    for factor, number, origin in (
        ("∂C/∂a_2⁽³⁾", da, f"A9: δ⁽⁴⁾ w_12⁽³⁾ = {digits(n.delta4)} · {digits(NETWORK.W3[0, 1])}"),
        ("f'(z_2⁽³⁾)", slope, f"A3: a (1 − a), where a = a_2⁽³⁾ = {digits(a3)}"),
        ("a_2⁽²⁾", a2, "A2: what came through the weight going forward"),
        ("the product", product, "first two factors: δ_2⁽³⁾ of A9; by the third: A7"),
        ("row A7", n.dW2[1, 1], "∂C/∂W⁽²⁾, row 2, column 2"),
        ("autograd", stock, "torch.nn, the same entry of weight.grad"),
    ):
        print(f"    {factor:14}{digits(number):16}{origin}")
    require(gap([product], [stock]) < 1e-12, "the chain is not what autograd of torch.nn has")


# ---- What the rows share ---------------------------------------------------------------------------------------------


def samples() -> tuple[str, Tensor, Tensor]:
    """What A10 learns: rows of 4 inputs, and y = 0 or 1."""
    try:
        from sklearn.datasets import load_iris
    except ImportError:
        x = tensor(list(itertools.product((-1, 1), repeat=4)))
        about = "No scikit-learn, so no iris flowers: the 16 points (±1, ±1, ±1, ±1), y = 1 where x_1 ≠ x_2."
        return about, x, (x[:, :1] != x[:, 1:2]).double()
    measured, species = load_iris(return_X_y=True)
    x = tensor(measured)
    about = "150 iris flowers, 4 measurements each (mean 0, deviation 1). y = 1 for the species versicolor."
    return about, (x - x.mean(0)) / x.std(0), tensor(species == 1)[:, None]


def heading(row: Callable[..., None]) -> None:
    title, _, text = inspect.cleandoc(row.__doc__ or row.__name__).partition("\n")
    print(f"\n{title}\n{textwrap.indent(text, '    ')}\n")


def right(s: Tensor, y: Tensor) -> str:
    return f"{int(((s > 0.5) == (y > 0.5)).sum())} of {len(y)}"


def digits(numbers: Tensor | tuple[float, ...]) -> str:
    """Ten significant digits of each number."""
    return ", ".join(f"{number:.10g}" for number in torch.as_tensor(numbers, dtype=torch.float64).flatten().tolist())


def symbol(name: str) -> str:
    """dW2 → ∂C/∂W⁽²⁾"""
    name = "∂C/∂" + name[1:] if name[0] == "d" and name[1] != "e" else name.replace("delta", "δ")
    return name.translate({ord(digit): f"⁽{raised}⁾" for digit, raised in zip("1234", "¹²³⁴", strict=True)})


def show(label: str, value: Tensor) -> None:
    """One line for each row of the value."""
    for row in torch.atleast_2d(value):
        print(f"    {label:28}({digits(row)})")
        label = ""


def gap(some: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """The largest difference; NaN where there is one."""
    return torch.stack([(a - b).detach().abs().max() for a, b in zip(some, others, strict=True)]).max().item()


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"article.py: FAILED: {otherwise}")


def write_page(path: Path) -> Path:
    """The known case drawn, with the chain of every weight: the rows A1 to A11 in the browser."""
    try:
        return report(as_model(nn, NETWORK), nn.MSELoss(), X, Y, path, title="The article’s network")
    except OSError as error:
        sys.exit(f"article.py: {error}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"article.py: {message}\n")


def main() -> None:
    parser = Parser(description="The article's backpropagation, rows A1 to A11, worked through with numbers.")
    parser.add_argument("--seed", type=int, default=0, help="of A10's random start (default: 0)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="A10 ends where ‖∇C‖ is less (default: 0.001)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the known case as a page for the browser, too")
    parser.add_argument("--force", action="store_true", help="write over a page that exists")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # a console of another encoding could not print δ
    options = parser.parse_args()
    if not 0 <= options.seed < 2**63:
        parser.error(f"argument --seed: {options.seed} is not from 0 to 2**63 - 1")
    if not 0 < options.tolerance < math.inf:
        parser.error(f"argument --tolerance: {options.tolerance} is not a number greater than 0")
    if options.page is not None:
        try:
            check_writable(options.page, make_folder=True)
        except OSError as error:
            parser.error(f"argument --page: {error}")
        if is_to_be_lost(options.page) and not options.force:
            parser.error(f"argument --page: {options.page} exists; --force writes over it")
    torch.set_num_threads(1)  # a product this small is no work to share: A10 took 0.7 s, not 7 to 50, on two busy cores

    print("Backpropagation, worked through by hand. The code of it all: forward_and_back in examples/article.py")
    n = forward_and_back(X, Y, NETWORK)
    forward = (a1_network, a2_weighted_inputs, a3_activation, a4_output, a5_cost)
    back = (a6_local_gradients, a7_weight_gradients, a8_bias_gradients, a9_one_layer_back)
    for row in (*forward, *back, check_known_case, check_other_functions):
        heading(row)
        row(n)
    heading(a10_gradient_descent)
    a10_gradient_descent(options.seed, options.tolerance)
    heading(a11_chain_of_one_weight)
    a11_chain_of_one_weight(n)
    print("\nEvery number agrees with the known case, where it lists one, and with autograd.")
    if options.page is not None:
        print(f"The page: {write_page(options.page)}")


if __name__ == "__main__":
    main()
