"""``convert`` swaps the layers of a built model for ours, ``restore`` swaps them back, and nothing else changes."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional as torch_functional
from torch.nn.utils import parametrizations, parametrize

from torch_manualbp import convert, nn, restore, rules
from torch_manualbp.convert import Conversion

OURS = [v for v in vars(nn).values() if isinstance(v, type) and v.__module__.startswith("torch_manualbp.")]
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "AdaptiveLogSoftmaxWithLoss": (4, 6, [2, 4], 1.5),
    "Bilinear": (4, 3, 2),
    "Embedding": (6, 4),
    "EmbeddingBag": (6, 4),
    **{f"{kind}{d}d": (4,) for kind in ("BatchNorm", "InstanceNorm") for d in (1, 2, 3)},
    "GroupNorm": (2, 4),
    "LayerNorm": (4,),
    **{f"{kind}Pool{n}d": (2,) for kind in ("AdaptiveAvg", "AdaptiveMax", "Avg", "Max") for n in (1, 2, 3)},
    "FractionalMaxPool2d": (2, 1),
    "FractionalMaxPool3d": (2, 1),
    **{f"LPPool{n}d": (2, 2) for n in (1, 2, 3)},
    "ChannelShuffle": (2,),
    **{f"MaxUnpool{n}d": (2,) for n in (1, 2, 3)},
    "Fold": (4, 2),
    "PixelShuffle": (2,),
    "PixelUnshuffle": (2,),
    "Unfold": (2,),
    **{f"ConstantPad{n}d": (1, 0.5) for n in (1, 2, 3)},
    **{f"{kind}Pad{n}d": (1,) for kind in ("Circular", "Reflection", "Replication", "Zero") for n in (1, 2, 3)},
    **{
        f"{lazy}Conv{transposed}{n}d": (4, 3, 2)[len(lazy) // 4 :]
        for n in (1, 2, 3)
        for lazy in ("", "Lazy")
        for transposed in ("", "Transpose")
    },
    "LazyLinear": (3,),
    "Linear": (4, 3),
    "LinearCrossEntropyLoss": (4, 3),
    "LocalResponseNorm": (2,),
    "RMSNorm": (4,),
    "GRU": (4, 3),
    "GRUCell": (4, 3),
    "LSTM": (4, 3),
    "LSTMCell": (4, 3),
    "RNN": (4, 3),
    "RNNCell": (4, 3),
    "SyncBatchNorm": (4,),
    "Softmax": (-1,),
    "LogSoftmax": (-1,),
    "MultiheadAttention": (4, 2),
    "Transformer": (4, 2, 1, 1, 8, 0.1, torch_functional.relu, torch_nn.Identity()),
    "TransformerDecoder": (torch_nn.TransformerDecoderLayer(4, 2, 8), 1),
    "TransformerDecoderLayer": (4, 2, 8),
    "TransformerEncoder": (torch_nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1),
    "TransformerEncoderLayer": (4, 2, 8),
    "Softmin": (-1,),
    "Threshold": (0.1, 2.0),
}


class Gate(torch_nn.Module):
    """SiLU under another name."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.sigmoid(hidden)


class Clipped(Gate):
    """SiLU, up to 100."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).clamp(max=100)


class ScaleNorm(torch_nn.Module):
    """RMSNorm under another name, that computes in float32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.hidden_size = torch_nn.Parameter(torch.ones(features)), 1e-6, features

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.factor() * self.normalised(hidden_states.float()).to(hidden_states.dtype)

    def normalised(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def factor(self) -> Tensor:
        return self.weight


class OffsetNorm(ScaleNorm):
    def factor(self) -> Tensor:
        return 1 + self.weight


class FarNorm(ScaleNorm):
    def factor(self) -> Tensor:
        return 2 + self.weight


class CentredNorm(ScaleNorm):
    def normalised(self, x: Tensor) -> Tensor:
        return super().normalised(x - x.mean(-1, keepdim=True))


class Swish(Gate):
    """SiLU, until β is another number."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = 1.0

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.sigmoid(self.beta * hidden)


class Transposed(torch_nn.Module):
    """Linear with its weight the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch_nn.Parameter(torch.randn(4, 3)), torch_nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 4), self.weight).view(*x.shape[:-1], 3)


def network() -> torch_nn.Sequential:
    inner = torch_nn.Sequential(torch_nn.Linear(8, 8), torch_nn.Flatten(), torch_nn.ReLU())
    return torch_nn.Sequential(torch_nn.Linear(4, 8), torch_nn.Tanh(), inner, torch_nn.Linear(8, 3), torch_nn.Sigmoid())


def nodes(output: Tensor) -> list[str]:
    """The names of all nodes of the graph under ``output``."""
    waiting: list[Any] = [output.grad_fn]
    seen: set[Any] = set()
    while waiting:
        if (node := waiting.pop()) is not None and node not in seen:
            seen.add(node)
            waiting += [n for n, _ in node.next_functions]
    return [node.name() for node in seen]


def run(model: torch_nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradient of every parameter that has one."""
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


# Which class becomes which


def test_every_class_of_ours_is_reached() -> None:
    assert len(OURS) >= 8
    for cls in OURS:
        assert issubclass(cls, getattr(torch_nn, cls.__name__))


@pytest.mark.parametrize("ours", OURS, ids=lambda c: c.__name__)
def test_each_class_and_back(ours: type[torch_nn.Module]) -> None:
    theirs = getattr(torch_nn, ours.__name__)
    layer, built = (cls(*ARGUMENTS.get(ours.__name__, ())) for cls in (theirs, ours))
    attributes = dict(vars(layer))
    assert attributes.keys() == vars(built).keys(), "a converted layer would lack what ours sets when it is built"
    report = convert(layer)
    assert type(layer) is ours
    assert [(s.path, s.before, s.after) for s in report.swapped if not s.path] == [("", theirs, ours)]
    report = restore(layer)
    assert type(layer) is theirs
    assert [(s.path, s.before, s.after) for s in report.swapped if not s.path] == [("", ours, theirs)]
    assert vars(layer) == attributes


def test_twice_is_once() -> None:
    model = network()
    first, second = convert(model), convert(model)
    assert [s.path for s in first.swapped] == list(second.already) == ["0", "1", "2.0", "2.2", "3", "4"]
    assert second.swapped == ()
    restore(model)
    again = restore(model)
    assert again.swapped == ()
    assert list(again.already) == list(second.already)


def test_restore_takes_models_built_from_our_classes() -> None:
    class Own(nn.Linear):
        pass

    model = torch_nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Own(4, 2))
    report = restore(model)
    assert [type(m) for m in model] == [torch_nn.Linear, torch_nn.ReLU, Own]
    assert [(x.path, x.reason) for x in report.left] == [
        ("2", "a subclass of torch_manualbp.nn.Linear, with code of its own")
    ]


# What does not change


def test_the_objects_stay_the_ones_they_are() -> None:
    model = network().eval()
    model[0].requires_grad_(False)
    model[3].register_buffer("mask", torch.ones(3))
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model.get_submodule("2.0").register_full_backward_hook(lambda *_: calls.append("backward"))
    model.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))

    def about() -> Any:
        modules = [(name, id(m), m.training, m.extra_repr()) for name, m in model.named_modules()]
        parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
        return modules, parameters, [(name, id(b)) for name, b in model.named_buffers()], list(model.state_dict())

    before = about()
    for change in (convert, restore):
        change(model)
        assert about() == before
        calls.clear()
        run(model, torch.randn(2, 4, requires_grad=True))
        assert calls == ["forward", "backward"]


def test_numbers_before_after_and_restored() -> None:
    model, x = network().double(), torch.randn(5, 4, dtype=torch.float64)
    before = run(model, x)
    assert "LinearBackward" not in nodes(model(x))
    convert(model)
    assert sorted(n for n in nodes(model(x)) if n in ("LinearBackward", "ReLUBackward", "TanhBackward")) == [
        *["LinearBackward"] * 3,
        "ReLUBackward",
        "TanhBackward",
    ]
    assert_equal(run(model, x), before)
    restore(model)
    assert "LinearBackward" not in nodes(model(x))
    assert all(map(torch.equal, run(model, x), before))


def test_a_wrong_formula_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network().double(), torch.randn(5, 4, dtype=torch.float64)
    before = run(model, x)
    monkeypatch.setattr(rules.Tanh, "backward", staticmethod(lambda ctx, da: da))
    assert_equal(run(model, x), before)
    convert(model)
    with pytest.raises(AssertionError):
        assert_equal(run(model, x), before)


def random_model(draw: torch.Generator, depth: int = 3) -> torch_nn.Module:
    """A tree of containers over layers from 4 to 4 features, where some layers stand in two places."""
    shared = torch_nn.Linear(4, 4)

    class Residual(torch_nn.Module):
        def __init__(self, **branches: torch_nn.Module) -> None:
            super().__init__()
            self.branches = torch_nn.ModuleDict(branches)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.stack([branch(x) for branch in self.branches.values()]).sum(0)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=draw))

    def grow(depth: int) -> torch_nn.Module:
        if depth and number(4):
            children = [grow(depth - 1) for _ in range(1 + number(3))]
            if number(2):
                return torch_nn.Sequential(*children)
            return Residual(**{f"branch{i}": child for i, child in enumerate(children)})
        tied = torch_nn.Linear(4, 4)
        tied.weight = shared.weight
        leaves = [
            shared,
            tied,
            torch_nn.Linear(4, 4, bias=False),
            torch_nn.Tanh(),
            torch_nn.ReLU(),
            torch_nn.Softsign(),
        ]
        return leaves[number(len(leaves))]

    return torch_nn.Sequential(torch_nn.Linear(4, 4), grow(depth))


@pytest.mark.parametrize("seed", range(30))
def test_random_models(seed: int) -> None:
    model = random_model(torch.Generator().manual_seed(seed)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    classes, before = {name: type(m) for name, m in model.named_modules()}, run(model, x)
    report = convert(model)
    swapped = {name for name, m in model.named_modules() if type(m) in OURS}
    assert swapped == {s.path for s in report.swapped}
    assert not any(type(m) in {c.__mro__[1] for c in OURS} for m in model.modules())
    assert_equal(run(model, x), before)
    restore(model)
    assert {name: type(m) for name, m in model.named_modules()} == classes
    assert all(map(torch.equal, run(model, x), before))


def test_a_layer_in_two_places_and_tied_weights() -> None:
    layer, tied = torch_nn.Linear(4, 4), torch_nn.Linear(4, 4)
    tied.weight = layer.weight
    model = torch_nn.ModuleDict({"a": layer, "list": torch_nn.ModuleList([layer, tied]), "nothing": None})  # type: ignore[dict-item]
    report = convert(model)
    assert [(s.path, s.also) for s in report.swapped] == [("a", ("list.0",)), ("list.1", ())]
    assert type(layer) is type(tied) is nn.Linear
    assert layer.weight is tied.weight
    assert "Linear                   a = list.0\n" in str(report)


# What people do with models


def test_train_save_restore_load(tmp_path: Path) -> None:
    model = network().double()
    plain = copy.deepcopy(model)
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.rand(16, 3, dtype=torch.float64)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (model, plain)]

    def train(steps: int) -> None:
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            for _ in range(steps):
                optimizer.zero_grad()
                torch_nn.functional.mse_loss(m(x), y).backward()
                optimizer.step()
        assert_equal([p.detach() for p in model.parameters()], [p.detach() for p in plain.parameters()])

    train(3)
    convert(model)  # under the optimizer, which goes on
    train(3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.save(model, tmp_path / "model.pt")
    restore(model)
    train(3)
    fresh = network().double()
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt"))
    whole = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(whole[0]) is nn.Linear
    assert torch.equal(whole(x), convert_and_call(fresh, x))


def convert_and_call(model: torch_nn.Module, x: Tensor) -> Tensor:
    convert(model)
    output: Tensor = model(x)
    return output


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_ours_and_apart(copied: Callable[[torch_nn.Module], torch_nn.Module]) -> None:
    model, x = network(), torch.randn(2, 4)
    convert(model)
    twin = copied(model)
    restore(model)
    assert len(restore(twin).swapped) == 6
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("before", [False, True], ids=["convert, compile", "compile, call, convert"])
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile(model)", "model.compile()"])
def test_compile(monkeypatch: pytest.MonkeyPatch, before: bool, in_place: bool) -> None:
    """Compiled code notices the swap: a planted backward that gives zeros comes through where the layer is ours."""
    torch._dynamo.reset()

    class Model(torch_nn.Module):  # torch.compile passes over the forward of a Sequential, which is torch's own code
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch_nn.Sequential(torch_nn.Linear(4, 4), torch_nn.Tanh())

        def forward(self, x: Tensor) -> Any:
            return self.layers(x)

    model, x = Model().double(), torch.randn(3, 4, dtype=torch.float64)
    expected = run(model, x)

    def compiled() -> torch_nn.Module:
        if in_place:
            model.compile(backend="aot_eager", fullgraph=True)
            return model
        made: torch_nn.Module = torch.compile(model, backend="aot_eager", fullgraph=True)  # type: ignore[assignment]
        return made

    if before:
        fast = compiled()
        assert_equal(run(fast, x), expected)
        assert [s.path.removeprefix("_orig_mod.") for s in convert(fast).swapped] == ["layers.0", "layers.1"]
    else:
        convert(model)
        fast = compiled()
    monkeypatch.setattr(rules.Tanh, "backward", staticmethod(lambda ctx, da: torch.zeros_like(da)))
    output, *gradients = run(fast, x)
    torch.testing.assert_close(output, expected[0])
    assert all(not g.any() for g in gradients)
    monkeypatch.undo()
    restore(fast)
    assert_equal(run(fast, x), expected)


def test_weight_norm_and_other_parametrizations() -> None:
    layer, x = torch_nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    parametrizations.weight_norm(layer)
    parametrize.register_parametrization(layer, "bias", torch_nn.Softsign(), unsafe=True)
    twin, before, cls = copy.deepcopy(layer), run(layer, x), type(layer)
    report = convert(torch_nn.Sequential(layer))
    assert [s.path for s in report.swapped] == ["0"] + ["0.parametrizations.bias.0"] * (torch_nn.Softsign in theirs())
    assert isinstance(layer, nn.Linear)
    assert type(layer).__name__ == "ParametrizedLinear"
    assert type(twin) is cls
    assert nn.Linear not in type(twin).__mro__, "a copy shares the class that torch made"
    assert "LinearBackward" in nodes(layer(x))
    assert_equal(run(layer, x), before)
    assert convert(layer).already[0] == ""

    restore(layer)
    assert type(layer) is cls
    convert(layer)
    parametrize.remove_parametrizations(layer, "bias")
    restore(layer)
    assert "bias" not in vars(type(layer))
    assert type(layer).__bases__ == (torch_nn.Linear,)
    convert(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear
    restore(layer)
    assert type(layer) is torch_nn.Linear
    assert torch.equal(layer(x), twin.cpu()(x))


def theirs() -> set[type]:
    return {getattr(torch_nn, cls.__name__) for cls in OURS}


def test_lazy_layers_become_ours() -> None:
    model, x = torch_nn.Sequential(torch_nn.LazyLinear(3), torch_nn.ReLU()), torch.randn(2, 4)
    convert(model)
    assert type(model[0]) is nn.LazyLinear
    assert "LinearBackward" in nodes(model(x)), "the very call that materialises it"
    assert type(model[0]) is nn.Linear
    assert model[0].weight.shape == (3, 4)
    restore(model)
    assert type(model[0]) is torch_nn.Linear

    lazy = torch_nn.Sequential(torch_nn.LazyLinear(3))
    convert(lazy)
    restore(lazy)
    lazy(x)
    assert type(lazy[0]) is torch_nn.Linear


def test_lazy_linear_is_torchs() -> None:
    torch.manual_seed(1)
    ours = nn.LazyLinear(3, dtype=torch.float64)
    torch.manual_seed(1)
    reference = torch_nn.LazyLinear(3, dtype=torch.float64)
    assert repr(ours) == repr(reference)
    assert isinstance(ours, nn.Linear)
    x = torch.randn(2, 4, dtype=torch.float64)
    for layer in (ours, reference):
        torch.manual_seed(2)
        layer(x)
    assert_equal(run(ours, x), run(reference, x))
    assert repr(ours) == repr(reference)
    reloaded = nn.LazyLinear(3)
    reloaded.load_state_dict(reference.state_dict())
    assert torch.equal(reloaded(x.float()), reference.float()(x.float()))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap_first", [True, False], ids=["wrap, convert", "convert, wrap"])
def test_distributed_data_parallel(process_group: None, wrap_first: bool) -> None:
    model, x = network().double(), torch.randn(5, 4, dtype=torch.float64)
    before = run(model, x)
    if not wrap_first:
        convert(model)
    wrapped = torch_nn.parallel.DistributedDataParallel(model)
    if wrap_first:
        assert len(convert(wrapped).swapped) == 6
    assert "LinearBackward" in nodes(wrapped(x))
    assert_equal(run(wrapped, x), before)


@pytest.mark.parametrize("wrap_first", [True, False], ids=["shard, convert", "convert, shard"])
def test_fully_shard(process_group: None, wrap_first: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not hasattr(torch.Stream, "record_event") and torch.__version__ < "2.7":
        pytest.skip("torch 2.6 shards on a CUDA device alone")
    model, x = network().double(), torch.randn(5, 4, dtype=torch.float64)
    before = run(model, x)
    mesh = init_device_mesh("cpu", (1,))

    def shard() -> None:
        for module in (model[0], model[2], model):
            fully_shard(module, mesh=mesh)

    if wrap_first:
        shard()
        classes = [type(m) for m in model.modules()]
        assert len(convert(model).swapped) == 6
        assert type(model[0]).__name__ == "FSDPLinear"
    else:
        convert(model)
        shard()
    assert isinstance(model[0], nn.Linear)
    output, *gradients = run(model, x)
    assert_equal([output, *(g.full_tensor() for g in gradients)], before)  # type: ignore[attr-defined]
    restore(model)
    assert not any(isinstance(m, tuple(OURS)) for m in model.modules())
    if wrap_first:
        assert [type(m) for m in model.modules()] == classes
    output, *gradients = run(model, x)
    assert_equal([output, *(g.full_tensor() for g in gradients)], before)  # type: ignore[attr-defined]


# Architectures that others wrote


@dataclass(frozen=True)
class Architecture:
    """A model of transformers, randomly initialised from a small configuration, and a batch for it."""

    model: str
    config: str
    settings: dict[str, Any]
    linear: int
    """Its Linear layers, counted by hand; each runs once a call."""
    tanh: int = 0

    def __str__(self) -> str:
        return self.model

    def build(self, dtype: torch.dtype) -> tuple[torch_nn.Module, dict[str, Tensor]]:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra 'tests'")
        torch.manual_seed(1)
        config = getattr(transformers, self.config)(**self.settings)
        model: torch_nn.Module = getattr(transformers, self.model)(config).to(dtype).train()
        words, images = torch.randint(50, (3, 7)), torch.randn(3, 3, 8, 8, dtype=dtype)
        return model, {"pixel_values": images} if "ViT" in self.model else {"input_ids": words}


WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {"vocab_size": 50, **WIDTHS}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
ARCHITECTURES = [
    Architecture("BertModel", "BertConfig", BERT, linear=2 * 6 + 1, tanh=1),
    Architecture("BertForSequenceClassification", "BertConfig", BERT, linear=2 * 6 + 2, tanh=1),
    Architecture("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 0, "eos_token_id": 0}, linear=1),
    Architecture("ViTForImageClassification", "ViTConfig", {"image_size": 8, "patch_size": 4, **WIDTHS}, linear=13),
]


def run_architecture(model: torch_nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first and last output and every gradient, by name, with the same dropout each time."""
    torch.manual_seed(3)
    model.zero_grad()
    outputs = model(**batch).to_tuple()
    tensors = {f"output {i}": t for i, t in enumerate(outputs) if isinstance(t, Tensor)}
    sum((t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in tensors.values()).backward()  # type: ignore[union-attr]
    names = nodes(list(tensors.values())[-1])
    tensors |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    counts = {f"{name} nodes": torch.tensor(names.count(name)) for name in ("LinearBackward", "TanhBackward")}
    return {name: t.detach() for name, t in tensors.items()} | counts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_architectures_of_transformers(architecture: Architecture, dtype: torch.dtype) -> None:
    model, batch = architecture.build(dtype)
    classes = [type(m) for m in model.modules()]
    objects = [(name, id(p)) for name, p in model.named_parameters()]
    keys, before = list(model.state_dict()), run_architecture(model, batch)
    assert before["LinearBackward nodes"] == before["TanhBackward nodes"] == 0

    report = convert(model)
    by_class = [s.after.__name__ for s in report.swapped]
    assert (by_class.count("Linear"), by_class.count("Tanh")) == (architecture.linear, architecture.tanh)
    ours = run_architecture(model, batch)
    assert ours.pop("LinearBackward nodes") == architecture.linear + by_class.count("Conv1D")
    assert ours.pop("TanhBackward nodes") == architecture.tanh
    assert [(name, id(p)) for name, p in model.named_parameters()] == objects
    assert list(model.state_dict()) == keys
    assert len(ours) > 25
    for name, tensor in ours.items():
        # Softmax is unmoved by a bias of the keys, whose gradient is 0 and holds the rounding of the weight's.
        scale = before[name.replace("key.bias", "key.weight").replace("k_proj.bias", "k_proj.weight")].abs().max()
        difference = (tensor - before[name]).abs().max()
        assert difference <= (1e-12 if dtype == torch.float64 else 16 * torch.finfo(dtype).eps) * scale, name

    restore(model)
    assert [type(m) for m in model.modules()] == classes
    restored = run_architecture(model, batch)
    assert all(torch.equal(restored[name], before[name]) for name in before)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_architectures_show_a_wrong_formula(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = architecture.build(torch.float64)
    before = run_architecture(model, batch)
    convert(model)
    formula = rules.Linear.backward
    monkeypatch.setattr(
        rules.Linear, "backward", staticmethod(lambda ctx, d: (formula(ctx, d)[0], *formula(ctx, 2 * d)[1:]))
    )
    after = run_architecture(model, batch)
    wrong = [name for name, p in model.named_parameters() if not torch.allclose(after[name], before[name])]
    assert len(wrong) >= architecture.linear


def test_layers_of_transformers_own_are_recognised() -> None:
    model, _ = ARCHITECTURES[2].build(torch.float32)
    swapped = {swap.path: swap.after for swap in convert(model).swapped}
    assert vars(swapped["transformer.h.0.mlp.act"])["recognised_as"] == "gelu by tanh"
    assert vars(swapped["transformer.h.0.mlp.c_fc"])["recognised_as"] == "linear by Wᵀ"


# What is left, and why


def reasons(report: Conversion) -> dict[str, str]:
    return {x.path: x.reason for x in report.left}


def helper(x: Tensor) -> Tensor:
    return torch_nn.functional.relu(x)


class Calls(torch_nn.Module):
    """Calls functions itself, by a helper, through an attribute, and has a layer named as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch_nn.Linear(4, 4)
        self.act = torch.tanh

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.act(helper(self.linear(x)))
        return x if y is None else torch_nn.MSELoss()(x, y)


def test_functions_called_in_a_forward_are_named() -> None:
    layer = torch_nn.TransformerEncoderLayer(4, 2, 8, activation=torch_nn.functional.relu)
    report = convert(torch_nn.Sequential(Calls(), layer))
    swapped = [s.path for s in report.swapped if "dropout" not in s.path]
    assert swapped == ["0.linear", "1", "1.self_attn", "1.linear1", "1.linear2", "1.norm1", "1.norm2"]
    assert reasons(report)["0"] == "a forward of its own, and calls F.relu, nn.MSELoss, torch.tanh"
    assert reasons(report)["1.self_attn.out_proj"] == "MultiheadAttention reads its weights and never calls it"


def test_layers_with_code_of_their_own_stay() -> None:
    class Own(torch_nn.Linear):
        pass

    class Frozen(torch_nn.Module):
        __slots__ = ("note",)

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch_nn.Linear(4, 4)
            self.done = True

        def __setattr__(self, name: str, value: Any) -> None:
            if vars(self).get("done"):
                raise AttributeError("frozen")
            super().__setattr__(name, value)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    replaced = torch_nn.Linear(4, 4)
    replaced.forward = lambda x: x  # type: ignore[assignment, method-assign]
    model = torch_nn.Sequential(Own(4, 4), replaced, Frozen(), torch_nn.Flatten())
    report = convert(model)
    assert [s.path for s in report.swapped] == ["2.layer"]
    assert reasons(report) == {
        "0": "a subclass of torch.nn.Linear, with code of its own",
        "1": "its forward was replaced on the object, and a class's would not be called",
        "3": "no formula here",
    }


@pytest.mark.filterwarnings("ignore:`torch.jit.(script|trace|trace_method)` is deprecated:DeprecationWarning")
def test_compiled_by_torch_jit() -> None:
    model = torch_nn.Sequential(torch.jit.trace(network(), torch.ones(1, 4)), torch_nn.Linear(3, 3))
    report = convert(model)
    assert [s.path for s in report.swapped] == ["1"]
    assert reasons(report) == {"0": "compiled by torch.jit, which runs no Python; convert before torch.jit.trace"}
    assert reasons(restore(model)) == {"0": "compiled by torch.jit, which runs no Python"}


def test_fx_graphs_and_quantized_layers() -> None:
    model = torch.fx.symbolic_trace(network())
    assert len(convert(model).swapped) == 6
    assert "LinearBackward" in nodes(model(torch.randn(2, 4)))

    class Quantized(torch_nn.Module):
        """Stands where torch.ao's does, without its deprecated imports."""

    Quantized.__module__ = "torch.ao.nn.quantized.dynamic.modules.linear"
    assert reasons(convert(torch_nn.Sequential(Quantized()))) == {"0": "no formula here"}


def test_the_report_reads() -> None:
    model = torch_nn.Sequential(*(torch_nn.Sequential(torch_nn.Linear(4, 4), torch_nn.Flatten()) for _ in range(12)))
    model.append(torch_nn.Tanh())
    report = convert(model)
    assert str(report) == (
        "Swapped for torch_manualbp.nn: 13 layers\n"
        "  Linear                   *.0 (12)\n"
        "  Tanh                     12\n"
        "Left as they are: 12 layers\n"
        "  no formula here:\n"
        "    Flatten                  *.1 (12)\n"
        "Functions that a forward calls (torch.relu, F.gelu, x.tanh()) are no layers, and stay torch's.\n"
        "In code of your own, import torch_manualbp.functional in place of torch.nn.functional."
    )
    assert pickle.loads(pickle.dumps(report)) == report
    assert str(convert(torch_nn.Tanh())).startswith("Swapped for torch_manualbp.nn: 1 layer\n  Tanh   ")
    assert "(the model itself)\n" in str(convert(torch_nn.Tanh()))
    assert "\nOf torch_manualbp.nn already: 13 layers\n" in str(convert(model))
    assert str(restore(torch_nn.Tanh())) == "Swapped for torch.nn: 0 layers\nOf torch.nn already: 1 layer"


# Nothing half done


def test_a_layer_that_cannot_be_swapped_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slots(torch_nn.Tanh):
        __slots__ = ("more",)

    Slots.__module__ = nn.Tanh.__module__
    monkeypatch.setattr(nn, "Tanh", Slots)
    model = torch_nn.ModuleDict({"first": torch_nn.Linear(4, 4), "act": torch_nn.Tanh(), "last": torch_nn.ReLU()})
    with pytest.raises(
        RuntimeError, match=r"^the class of act, torch\.nn\.modules\.activation\.Tanh, cannot be swapped: "
    ):
        convert(model)
    assert [type(m) for m in model.values()] == [torch_nn.Linear, torch_nn.Tanh, torch_nn.ReLU]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch_nn.Linear, r"the class torch\.nn\.modules\.linear\.Linear: build it first, convert\(Linear\(\.\.\.\)\)"),
        (
            [torch_nn.Linear(2, 2)],
            r"given a list: \[Linear\(in_features=2, .*; call convert on",
        ),
        (None, r"given a NoneType: None; call convert on the module itself"),
        (io.StringIO, r"given a type: <class '_io.StringIO'>"),
    ],
    ids=["class", "list", "None", "another class"],
)
def test_bad_input(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        convert(value)
    with pytest.raises(TypeError, match=message.replace("convert", "restore")):
        restore(value)


# Layers of somebody's own that are ours under another name


RECOGNISED: dict[str, tuple[Callable[[], torch_nn.Module], str]] = {
    "an activation": (Gate, "silu"),
    "an activation that is cut off": (Clipped, ""),
    "an activation with a setting": (Swish, ""),
    "a norm": (lambda: ScaleNorm(4), "rms_norm"),
    "a norm by 1 + w": (lambda: OffsetNorm(4), "rms_norm by 1 + w"),
    "a norm by 2 + w": (lambda: FarNorm(4), ""),
    "a norm that centres": (lambda: CentredNorm(4), ""),
    "a norm of float64 that computes in float32": (lambda: ScaleNorm(4).double(), ""),
    "a norm of bfloat16": (lambda: ScaleNorm(4).bfloat16(), "rms_norm"),
    "a linear layer": (Transposed, "linear by Wᵀ"),
}


@pytest.mark.parametrize("case", RECOGNISED)
def test_a_layer_is_recognised_by_what_it_computes(case: str) -> None:
    make, expected = RECOGNISED[case]
    layer = make()
    x = torch.randn(5, 4, dtype=next((p.dtype for p in layer.parameters()), torch.float32))
    before, cls, rng = layer(x), type(layer), torch.get_rng_state()
    report = convert(layer)
    assert torch.equal(torch.get_rng_state(), rng)
    assert getattr(type(layer), "recognised_as", "") == expected
    assert [swap.path for swap in report.swapped] == ([""] if expected else [])
    assert isinstance(layer, cls)
    torch.testing.assert_close(layer(x), before)
    if expected:
        assert convert(layer).already == ("",)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(other) is type(layer)
            assert torch.equal(other(x), layer(x))
        (name,) = [name for name in ("hidden", "hidden_states", "x") if name in str(inspect.signature(cls.forward))][
            -1:
        ]
        assert torch.equal(layer(**{name: x}), layer(x))
        restore(layer)
    assert type(layer) is cls


def test_recognised_layers_compute_by_rules() -> None:
    model = torch_nn.Sequential(Transposed(), Gate(), ScaleNorm(3))
    convert(model)
    output = model(torch.randn(5, 4))
    assert {"SiLUBackward", "RMSNormBackward", "LinearBackward"} <= set(nodes(output))
