"""Time each layer of torch_manualbp.nn against the torch.nn layer that it replaces: forward and backward, in one
process, round by round in alternating order. A ratio is the median over the rounds of our time by torch's.

Memory that is freed stays in the process: whether its pages are mapped anew is chance, and costs as much as a layer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import activation as torch_activations
from torch.nn.modules import loss as torch_losses

from torch_manualbp import functional, kernels, nn, rules
from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import as_markdown, print_table, require_tables, write
from torch_manualbp._text import near
from torch_manualbp._torch import reset_compiler
from torch_manualbp.bench import recurrent
from torch_manualbp.bench.allocator import keep_freed_memory
from torch_manualbp.bench.command import add_files, count, microseconds, surroundings
from torch_manualbp.bench.timing import Question, Stopwatch, compare

__all__ = ["Case", "Row", "add_arguments", "main", "measure", "ours_of", "panel"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
MODES = ("eager", "formulas", "compiled")
"""As they stand; with :func:`torch_manualbp.kernels.compile_formulas`; ours and torch's under ``torch.compile``."""

MODES_HELP = "eager, eager with compiled formulas (large activations), under torch.compile, or (default) all"
LARGE = "512×4096"

Build = Callable[[Any], torch.nn.Module]


@dataclass(frozen=True)
class Case:
    """A layer at a size: how it is built, what goes in, and how much slower than torch's it may be."""

    layer: str
    size: str
    build: Build
    """The layer, of the ``nn`` that is handed in."""
    inputs: Callable[[], tuple[Any, ...]]
    """Its arguments; those that learn require their gradient."""
    bounds: tuple[float | None, float | None] = (None, None)
    """The largest ratio of our time to torch's, eager and compiled."""

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.layer.partition(",")[0]

    def runs(self, mode: str) -> bool:
        """Whether this row is measured in this mode."""
        if mode == "compiled":  # of this one torch.compile makes a tensor of 16 GB, the pairs of labels and classes
            return self.name not in ("MultiLabelMarginLoss", "LSTM", "GRU", "RNN")  # which torch.compile leaves alone
        return mode == "eager" or self.has_compiled_formula

    @property
    def has_compiled_formula(self) -> bool:
        """Whether ``compile_formulas`` makes a difference."""
        return issubclass(getattr(rules, self.name, object), rules.Elementwise) and self.size == LARGE


@dataclass(frozen=True)
class Row:
    """What was measured of a case; times in microseconds."""

    layer: str
    size: str
    mode: str
    stock: float
    ours: float
    ratio: float
    error: float
    forward: float
    backward: float
    bound: float | None
    met: bool | None
    rounds: int


def ours_of(names: Sequence[str]) -> list[str]:
    """Which of these names of torch.nn have a class of ours."""
    return [name for name in names if getattr(nn, name, None) is not getattr(torch.nn, name, None)]


def panel(dtype: torch.dtype = torch.float32) -> Iterator[Case]:
    """Every layer of ours."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    def learns(*shape: int) -> Tensor:
        return randn(*shape).requires_grad_()

    def inputs(*shapes: tuple[int, ...]) -> Callable[[], tuple[Any, ...]]:
        return lambda: tuple(learns(*shape) for shape in shapes)

    for batch, n_in, n_out, bound in ((8, 16, 16, 1.25), (512, 1024, 1024, 1.03)):
        size = f"{batch}×{n_in}×{n_out}"
        yield Case("Linear", size, _built("Linear", n_in, n_out, dtype=dtype), inputs((batch, n_in)), (bound, bound))
    if ours_of(["Bilinear"]):
        for batch, n in ((8, 16), (128, 64)):
            build = _built("Bilinear", n, n, n, dtype=dtype)
            yield Case("Bilinear", f"{batch}×{n}×{n}×{n}", build, inputs((batch, n), (batch, n)))

    yield from _embeddings(dtype)
    yield from _attention(inputs, dtype)
    yield from _long_attention(inputs)

    variants: dict[str, dict[str, Build]] = {
        "GELU": {"": _built("GELU"), ", tanh": _built("GELU", "tanh")},
        "LogSoftmax": {"": _built("LogSoftmax", dim=1)},
        "PReLU": {"": _built("PReLU", dtype=dtype)},
        "RReLU": {", training": _built("RReLU"), ", evaluation": lambda nn: nn.RReLU().eval()},
        "Softmax": {"": _built("Softmax", dim=1)},
        "Softmin": {"": _built("Softmin", dim=1)},
        "Threshold": {"": _built("Threshold", 0.1, 0.2)},
    }
    for name in ours_of([name for name in torch_activations.__all__ if name != "MultiheadAttention"]):
        for about, build in variants.get(name, {"": _built(name)}).items():
            for rows, features, bounds in ((512, 4096, (1.5, 1.05)), (32, 64, (None, None))):
                shape = (rows, features // 64, 8, 8) if name == "Softmax2d" else (rows, features)
                yield Case(name + about, f"{rows}×{features}", build, inputs(shape), bounds)

    for name in ours_of(["LayerNorm", "RMSNorm"]):
        for rows, features, bounds in ((2048, 768, (1.5, 1.15)), (32, 64, (None, None))):
            yield Case(
                name, f"{rows}×{features}", _built(name, features, dtype=dtype), inputs((rows, features)), bounds
            )

    images = (32, 64, 28, 28)
    builds = {"BatchNorm2d": (64,), "GroupNorm": (8, 64), "InstanceNorm2d": (64,)}
    for name in ours_of([*builds]):
        kwargs = {"affine": True} if name == "InstanceNorm2d" else {}
        yield Case(name, "32×64×28×28", _built(name, *builds[name], dtype=dtype, **kwargs), inputs(images), (1.5, 1.15))
    for name in ours_of(["CosineSimilarity", "PairwiseDistance"]):
        yield Case(name, "4096×256", _built(name), inputs((4096, 256), (4096, 256)), (1.5, 1.15))
    if ours_of(["LocalResponseNorm"]):
        yield Case(
            "LocalResponseNorm", "8×64×28×28", _built("LocalResponseNorm", 5), inputs((8, 64, 28, 28)), (1.5, 1.15)
        )
    if ours_of(["BatchNorm2d"]):
        evaluated = _built("BatchNorm2d", 64, dtype=dtype)
        yield Case(
            "BatchNorm2d, evaluation", "32×64×28×28", lambda nn: evaluated(nn).eval(), inputs(images), (1.5, 1.15)
        )

    for name, size, args, kwargs, arguments in recurrent.rows(learns, dtype):
        yield Case(name, size, _built(name, *args, **kwargs), arguments)
    yield from _of_images(inputs, dtype)
    yield from _losses(4096, 1000, learns, randn, dtype)


def _embeddings(dtype: torch.dtype) -> Iterator[Case]:
    """The tables of ours, of a GPT's vocabulary and a small one, and bags of 8 rows."""

    def indices(rows: int, *shape: int) -> Callable[[], tuple[Any, ...]]:
        return lambda: (torch.randint(rows, shape),)

    for rows, n, batch in ((32000, 512, (8, 256)), (65, 64, (16, 64))):
        size = f"{'×'.join(map(str, batch))} of {rows}×{n}"
        if ours_of(["Embedding"]):
            yield Case(
                "Embedding", size, _built("Embedding", rows, n, dtype=dtype), indices(rows, *batch), (1.15, 1.15)
            )
        if ours_of(["EmbeddingBag"]):
            for mode in ("mean", "max"):
                build = _built("EmbeddingBag", rows, n, mode=mode, dtype=dtype)
                yield Case(f"EmbeddingBag, {mode}", size, build, indices(rows, batch[0] * batch[1] // 8, 8))


def _attention(inputs: Callable[..., Callable[[], tuple[Any, ...]]], dtype: torch.dtype) -> Iterator[Case]:
    """What a block of a GPT is made of."""
    options = {"batch_first": True, "dtype": dtype}
    if ours_of(["MultiheadAttention"]):
        three = inputs(*[(8, 256, 384)] * 3)
        yield Case("MultiheadAttention", "8×256×384", _built("MultiheadAttention", 384, 6, **options), three)
    for name in ours_of(["TransformerEncoderLayer", "TransformerDecoderLayer"]):
        given = inputs(*[(8, 256, 384)] * (1 if "Encoder" in name else 2))
        yield Case(name, "8×256×384", _built(name, 384, 6, 1536, 0.0, "gelu", **options), given)


class _Attention(torch.nn.Module):
    """``scaled_dot_product_attention`` of the functions that go with an ``nn``, as a layer."""

    def __init__(self, nn: Any, p: float) -> None:
        super().__init__()
        self.functions, self.p = torch.nn.functional if nn is torch.nn else functional, p

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        attended: Tensor = self.functions.scaled_dot_product_attention(q, k, v, mask, self.p)
        return attended


def _long_attention(inputs: Callable[..., Callable[[], tuple[Any, ...]]]) -> Iterator[Case]:
    """Where torch holds all pairs of a query and a key: with dropout, and with a mask that learns."""
    three = [(1, 6, 1024, 64)] * 3
    yield Case("scaled_dot_product_attention, dropout", "1×6×1024×64", lambda nn: _Attention(nn, 0.1), inputs(*three))
    yield Case(
        "scaled_dot_product_attention, learning mask",
        "1×6×1024×64",
        lambda nn: _Attention(nn, 0.0),
        inputs(*three, (1024, 1024)),
    )


def _built(name: str, *args: Any, **kwargs: Any) -> Build:
    return lambda nn: getattr(nn, name)(*args, **kwargs)


def _of_images(inputs: Callable[..., Callable[[], tuple[Any, ...]]], dtype: torch.dtype) -> Iterator[Case]:
    """What a block of a ResNet, and one of a U-Net, are made of."""
    images = inputs((8, 64, 56, 56))
    built: dict[str, Build] = {
        "Conv2d, 3×3": _built("Conv2d", 64, 64, 3, padding=1, bias=False, dtype=dtype),
        "Conv2d, 3×3 by 2": _built("Conv2d", 64, 128, 3, stride=2, padding=1, bias=False, dtype=dtype),
        "Conv2d, 1×1": _built("Conv2d", 64, 128, 1, dtype=dtype),
        "Conv2d, each channel": _built("Conv2d", 64, 64, 3, padding=1, groups=64, dtype=dtype),
        "ConvTranspose2d, 2×2 by 2": _built("ConvTranspose2d", 64, 32, 2, stride=2, dtype=dtype),
        "MaxPool2d, 3×3 by 2": _built("MaxPool2d", 3, 2, 1),
        "AvgPool2d, 2×2": _built("AvgPool2d", 2),
        "AdaptiveAvgPool2d, all": _built("AdaptiveAvgPool2d", 1),
        "AdaptiveMaxPool2d, 7×7": _built("AdaptiveMaxPool2d", 7),
        "FractionalMaxPool2d, 2×2": _built("FractionalMaxPool2d", 2, output_size=28),
        "LPPool2d, 2×2": _built("LPPool2d", 2, 2),
        "ReflectionPad2d": _built("ReflectionPad2d", 1),
        "ZeroPad2d": _built("ZeroPad2d", 1),
        "Upsample, nearest": _built("Upsample", scale_factor=2),
        "Upsample, bilinear": _built("Upsample", scale_factor=2, mode="bilinear"),
        "PixelShuffle": _built("PixelShuffle", 2),
        "PixelUnshuffle": _built("PixelUnshuffle", 2),
        "ChannelShuffle": _built("ChannelShuffle", 4),
        "Unfold, 3×3": _built("Unfold", 3, padding=1),
    }
    for name, build in built.items():
        yield Case(name, "8×64×56×56", build, images, (1.5, 1.15))
    yield Case("Fold, 3×3", "8×576×3136", _built("Fold", 56, 3, padding=1), inputs((8, 576, 3136)), (1.5, 1.15))

    def pooled() -> tuple[Any, ...]:
        (z,) = inputs((8, 64, 56, 56))()
        a, indices = torch.nn.functional.max_pool2d(z, 2, return_indices=True)
        return a.detach().requires_grad_(), indices

    yield Case("MaxUnpool2d, 2×2", "8×64×28×28", _built("MaxUnpool2d", 2), pooled, (1.5, 1.15))


def _losses(
    n: int, K: int, learns: Callable[..., Tensor], randn: Callable[..., Tensor], dtype: torch.dtype
) -> Iterator[Case]:
    """Every loss of ours, of n samples and K classes, with the targets that it is made for."""

    def classes() -> Tensor:
        return torch.randint(K, (n,))

    def bits(*shape: int) -> Tensor:
        return torch.randint(2, shape).to(dtype)

    def signs(*shape: int) -> Tensor:
        return 2 * bits(*shape) - 1

    def probabilities() -> Tensor:
        return torch.randn(n, K).softmax(1).to(dtype)

    def log_probabilities() -> Tensor:
        return torch.randn(n, K).log_softmax(1).to(dtype).requires_grad_()

    def between(low: float, high: float) -> Tensor:
        return torch.empty(n, K).uniform_(low, high).to(dtype)

    def lists() -> Tensor:
        """One to five labels a sample."""
        labels = torch.rand(n, K).argsort(1)
        labels.scatter_(1, torch.randint(1, 6, (n, 1)), -1)
        return labels

    inputs: dict[str, dict[str, Callable[[], tuple[Any, ...]]]] = {
        "BCELoss": {"": lambda: (between(0.01, 0.99).requires_grad_(), bits(n, K))},
        "BCEWithLogitsLoss": {"": lambda: (learns(n, K), bits(n, K))},
        "CosineEmbeddingLoss": {"": lambda: (learns(n, K), learns(n, K), signs(n))},
        "CrossEntropyLoss": {
            "": lambda: (learns(n, K), classes()),
            ", probabilities": lambda: (learns(n, K), probabilities()),
        },
        "GaussianNLLLoss": {"": lambda: (learns(n, K), randn(n, K), between(0.5, 1.5).requires_grad_())},
        "HingeEmbeddingLoss": {"": lambda: (between(0, 2).requires_grad_(), signs(n, K))},
        "KLDivLoss": {"": lambda: (log_probabilities(), probabilities())},
        "MarginRankingLoss": {"": lambda: (learns(n, K), learns(n, K), signs(n, K))},
        "MultiLabelMarginLoss": {"": lambda: (learns(n, K), lists())},
        "MultiLabelSoftMarginLoss": {"": lambda: (learns(n, K), bits(n, K))},
        "MultiMarginLoss": {"": lambda: (learns(n, K), classes())},
        "NLLLoss": {"": lambda: (log_probabilities(), classes())},
        "PoissonNLLLoss": {"": lambda: (learns(n, K), torch.poisson(torch.ones(n, K)).to(dtype))},
        "SoftMarginLoss": {"": lambda: (learns(n, K), signs(n, K))},
        "TripletMarginLoss": {"": lambda: (learns(n, K), learns(n, K), learns(n, K))},
        "TripletMarginWithDistanceLoss": {"": lambda: (learns(n, K), learns(n, K), learns(n, K))},
    }
    options: dict[str, dict[str, Any]] = {"KLDivLoss": {"reduction": "batchmean"}}
    numbers = {"": lambda: (learns(n, K), randn(n, K))}
    if ours_of(["LinearCrossEntropyLoss"]):
        built = _built("LinearCrossEntropyLoss", 512, 32000, dtype=dtype)

        def words() -> tuple[Any, ...]:
            return learns(2048, 512), torch.randint(32000, (2048,))

        yield Case("LinearCrossEntropyLoss", "2048×512 of 32000", built, words, (1.15, 1.15))
    for name in ours_of([name for name in torch_losses.__all__ if name not in ("CTCLoss", "LinearCrossEntropyLoss")]):
        for about, arguments in inputs.get(name, numbers).items():
            yield Case(name + about, f"{n}×{K}", _built(name, **options.get(name, {})), arguments, (1.3, 1.3))


def measure(case: Case, mode: str, rounds: int, in_cpu_time: bool = False) -> Row:
    """Time both layers on the same parameters, inputs and upstream gradient."""
    torch.manual_seed(0)
    inputs = case.inputs()
    ours, stock = case.build(nn), case.build(torch.nn)
    ours.load_state_dict(stock.state_dict())
    bound = case.bounds[mode == "compiled"]
    reset_compiler()
    kernels.compile_formulas(mode == "formulas")
    clock = thread_time if in_cpu_time else perf_counter
    ways = {"stock": _stopwatch(stock, inputs, mode, clock), "ours": _stopwatch(ours, inputs, mode, clock)}
    comparison = compare(ways, rounds, [Question("ours", "stock", bound)])
    forward, backward, ratio = (comparison.ratio("ours", "stock", part) for part in range(3))
    return Row(
        layer=case.layer,
        size=case.size,
        mode=mode,
        stock=comparison.seconds("stock") * 1e6,
        ours=comparison.seconds("ours") * 1e6,
        ratio=ratio,
        error=comparison.error("ours", "stock"),
        forward=forward,
        backward=backward,
        bound=bound,
        met=None if bound is None else ratio <= bound,
        rounds=comparison.rounds,
    )


def _stopwatch(layer: torch.nn.Module, inputs: tuple[Any, ...], mode: str, clock: Callable[[], float]) -> Stopwatch:
    """Times forward, backward, and both."""
    learning = [t for t in (*inputs, *layer.parameters()) if isinstance(t, Tensor) and t.requires_grad]
    call: Callable[..., Tensor] = torch.compile(layer, dynamic=False) if mode == "compiled" else layer
    upstream = torch.randn_like(_first(call(*inputs)))

    def run(repeats: int) -> tuple[float, ...]:
        forward = backward = 0.0
        for _ in range(repeats):
            start = clock()
            y = _first(call(*inputs))
            between = clock()
            y.backward(upstream)
            end = clock()
            forward += between - start
            backward += end - between
            del y
            for t in learning:
                t.grad = None
        return forward, backward, forward + backward

    return run


def _first(output: Any) -> Tensor:
    """The output, or the first of several."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--layer", nargs="+", metavar="NAME", help="only these, such as Linear ReLU CrossEntropyLoss (default: all)")
    add("--mode", nargs="+", choices=(*MODES, "all"), default=["all"], help=MODES_HELP)
    add("--repeats", type=count, default=15, metavar="N", help="rounds, up to 4 N where they disagree (default: 15)")
    add("--threads", type=count, metavar="N", help="threads of torch (default: torch's own choice)")
    add("--dtype", choices=DTYPES, default="float32", help="of all floating-point numbers (default: float32)")
    add("--cpu-time", action="store_true", help="processor time of one thread, for a machine that does other things")
    add("--return-memory", action="store_true", help="hand freed memory back to the system, as malloc does by default")
    add_files(parser)


def main(options: argparse.Namespace) -> int:
    """Run the panel and print it. Returns 0: a bound that was missed is a finding, not a failure."""
    require_tables()
    cases = list(panel(DTYPES[options.dtype]))
    names = sorted({case.name for case in cases})
    for wanted in options.layer or ():
        if wanted not in names:
            alike = near(wanted, names)
            message = f"argument --layer: no layer {wanted!r}; {'near it' if alike else 'choose'}: "
            print(f"torch-manualbp bench layers: {message}{', '.join(alike or names)}", file=sys.stderr)
            return 2
    if options.threads or options.cpu_time:  # what other threads do this one's clock does not see
        torch.set_num_threads(1 if options.cpu_time else options.threads)
    keeps_memory = not options.return_memory and keep_freed_memory()
    modes = [mode for mode in MODES if {mode, "all"} & {*options.mode}]
    chosen = [case for case in cases if options.layer is None or case.name in options.layer]
    todo = [(case, mode) for case in chosen for mode in modes if case.runs(mode)]
    rows: list[Row] = []
    with Counted(todo, "bench layers", lambda item: f"{item[0].name} {item[1]}") as counted:
        for case, mode in counted:
            row = measure(case, mode, options.repeats, options.cpu_time)
            rows.append(row)
            about = f"[{len(rows)}/{len(todo)}] {row.layer} {row.size} {row.mode}"
            counted.say(f"{about}: {row.ratio:.2f} (bound {_figure(row.bound)})")
    columns, cells = _table(rows)
    clock = "processor" if options.cpu_time else "wall"
    threads = f"{torch.get_num_threads()} threads, {clock} time"
    title = f"Our layers against torch {torch.__version__}, {options.dtype}, {threads}"
    print_table(title, columns, cells)
    print(_summary(rows))
    if options.json:
        chosen_by = {
            "dtype": options.dtype,
            "repeats": options.repeats,
            "keeps freed memory": keeps_memory,
            "clock": clock,
        }
        write(options.json, {**surroundings(), **chosen_by, "rows": [asdict(row) for row in rows]})
    if options.markdown:
        write(options.markdown, f"{title}:\n\n{as_markdown(*_by_layer(rows))}\n{_summary(rows)}.\n")
    return INTERRUPTED if counted.interrupted else 0


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ["layer", "size", "mode", "torch µs", "ours µs", "ratio", "forward", "backward", "bound"]
    cells = [
        [
            row.layer,
            row.size,
            row.mode,
            microseconds(row.stock),
            microseconds(row.ours),
            f"{row.ratio:.2f} ± {row.error:.2f}",
            f"{row.forward:.2f}",
            f"{row.backward:.2f}",
            _figure(row.bound) + {None: "", True: " met", False: " missed"}[row.met],
        ]
        for row in rows
    ]
    return columns, cells


def _by_layer(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The ratios alone, a row for each layer and size; those beyond their bound in bold."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        ratio = f"{row.ratio:.2f}"
        table.setdefault((row.layer, row.size), {})[row.mode] = f"**{ratio}**" if row.met is False else ratio
    modes = [mode for mode in MODES if any(mode in ratios for ratios in table.values())]
    cells = [[layer, size, *(ratios.get(mode, "") for mode in modes)] for (layer, size), ratios in table.items()]
    return ["layer", "size", *modes], cells


def _figure(bound: float | None) -> str:
    return "–" if bound is None else f"{bound:.2f}"


def _summary(rows: Sequence[Row]) -> str:
    bounded = [row for row in rows if row.met is not None]
    met, faster = sum(bool(row.met) for row in bounded), sum(row.ratio < 1 for row in rows)
    means = (
        f"{mode} {geometric_mean(ratios):.2f}"
        for mode in MODES
        if (ratios := [row.ratio for row in rows if row.mode == mode])
    )
    return (
        f"{met} of {len(bounded)} bounds met; {faster} of {len(rows)} rows faster than torch.nn; "
        f"geometric means: {', '.join(means)}"
    )
