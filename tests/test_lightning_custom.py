"""DerivedTraining: a LightningModule of one's own trains by derived steps as it does by autograd."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import WITHOUT_LIGHTNINGS_ADVICE, batches, same, trainer, trainer_keeping_last
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from torch_manualbp import TrainStep
from torch_manualbp.lightning import DerivedTraining, GradientFlow

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def net(*sizes: int) -> torch.nn.Sequential:
    pairs = itertools.pairwise(sizes)
    return torch.nn.Sequential(*(layer for n, m in pairs for layer in (torch.nn.Linear(n, m), torch.nn.Tanh())))


class Classifier(DerivedTraining, pl.LightningModule):
    """One optimizer, automatically, with a metric of its own; ``how`` names what makes the loss."""

    def __init__(self, how: str, optimizer: str = "AdamW") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.criterion = net(6, 8, 3).double(), torch.nn.CrossEntropyLoss()
        self.accuracy = MulticlassAccuracy(3)
        self.how, self.optimizer = how, optimizer
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if self.how == "autograd":
            output = self.net(x)
            loss = self.criterion(output, y)
        else:
            made = self.derived_step if self.how == "step" else self.derived_loss
            loss = made(self.net, self.criterion, x, y, keep_output=True)
            output = self.derived(self.net, self.criterion, keep_output=True).output
        self.accuracy(output, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=False)
        self.losses.append(loss.item())
        return {"loss": loss, "output": output}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.criterion(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.net.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Adversaries(DerivedTraining, pl.LightningModule):
    """A generator and a discriminator, by hand."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.discriminator = net(2, 8, 6).double(), net(6, 8, 1).double()
        self.both = torch.nn.Sequential(self.generator, self.discriminator)
        self.how = how

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        z = torch.linspace(-1, 1, 2 * len(x), dtype=x.dtype).reshape(-1, 2)
        one = torch.ones(len(x), 1, dtype=x.dtype)
        with torch.no_grad():
            faked = self.generator(z)
        pairs = torch.cat([x, faked]), torch.cat([one, -one])
        for i, (model, inputs, target) in enumerate([(self.both, z, one), (self.discriminator, *pairs)]):
            if self.how == "step":
                loss = self.derived_step(model, F.mse_loss, inputs, target, optimizer=i)
            else:
                optimizer = self.optimizers()[i]  # type: ignore[index]
                optimizer.zero_grad()
                if self.how == "loss":
                    loss = self.derived_loss(model, F.mse_loss, inputs, target, optimizer=i)
                else:
                    loss = F.mse_loss(model(inputs), target)
                self.manual_backward(loss)
                optimizer.step()
            self.log(f"loss {i}", loss)

    def configure_optimizers(self) -> Any:
        return [OPTIMIZERS["AdamW"](self.generator.parameters()), OPTIMIZERS["SGD"](self.discriminator.parameters())]


class LooksAtGradients(Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())


def data() -> Any:
    torch.manual_seed(1)
    return batches(torch.randn(76, 6, dtype=torch.float64), torch.randint(3, (76,)))  # of which the last has 4


def fit(module: pl.LightningModule, folder: Path, epochs: int = 2, **settings: Any) -> pl.Trainer:
    run = trainer(folder, epochs, **settings)
    run.fit(module, data(), data() if isinstance(module, Classifier) else None)
    return run


def assert_alike(a: pl.LightningModule, b: pl.LightningModule) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12), name


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of calls that are made of TrainStep, in turn."""
    calls: list[str] = []

    def count(name: str) -> None:
        own = getattr(TrainStep, name)

        def counted(self: Any, *args: Any) -> Any:
            calls.append(name)
            return own(self, *args)

        monkeypatch.setattr(TrainStep, name, counted)

    count("__call__")
    count("backward")
    return calls


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("how", ["step", "loss"])
def test_automatic_optimization(tmp_path: Path, programs: list[str], how: str, optimizer: str) -> None:
    modules = [Classifier("autograd", optimizer), Classifier(how, optimizer)]
    runs = [fit(module, tmp_path) for module in modules]
    assert [run.global_step for run in runs] == [20, 20]
    assert modules[0].losses == pytest.approx(modules[1].losses, rel=1e-10)
    for name in ("accuracy", "val_loss"):
        assert runs[0].callback_metrics[name].item() == pytest.approx(runs[1].callback_metrics[name].item())
    assert_alike(*modules)
    folds = how == "step" and optimizer != "RMSprop"
    assert programs == ["__call__" if folds else "backward"] * 20


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"callbacks": [LooksAtGradients()]},
    ],
    ids=["accumulation", "norm", "value", "callback"],
)
def test_what_lightning_does_with_gradients(tmp_path: Path, programs: list[str], settings: Any) -> None:
    modules = [Classifier("autograd"), Classifier("step")]
    seen = []
    for module in modules:
        again = copy.deepcopy(settings)
        fit(module, tmp_path, **again)
        seen += [callback.norms for callback in again.get("callbacks", [])]
    assert_alike(*modules)
    folds = all(flag.startswith("gradient_clip") for flag in settings)
    assert programs == ["__call__" if folds else "backward"] * 20
    if seen:
        assert len(seen[0]) == 20
        assert seen[0] == pytest.approx(seen[1])


@pytest.mark.parametrize("how", ["step", "loss"])
def test_manual_optimization_by_several_optimizers(tmp_path: Path, programs: list[str], how: str) -> None:
    modules = [Adversaries("autograd"), Adversaries(how)]
    runs = [fit(module, tmp_path) for module in modules]
    assert [run.global_step for run in runs] == [40, 40]
    assert_alike(*modules)
    assert programs == ["__call__" if how == "step" else "backward"] * 40


def test_manual_optimization_with_a_callback_that_looks(tmp_path: Path, programs: list[str]) -> None:
    seen = [LooksAtGradients(), LooksAtGradients()]
    modules = [Adversaries("autograd"), Adversaries("step")]
    for module, callback in zip(modules, seen, strict=True):
        fit(module, tmp_path, callbacks=[callback])
    assert_alike(*modules)
    assert len(seen[0].norms) == 40
    assert seen[0].norms == pytest.approx(seen[1].norms)
    assert programs == ["backward"] * 40


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.parametrize("kind", [Classifier, Adversaries])
def test_steps_count(tmp_path: Path, kind: Any) -> None:
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    run = fit(kind("step"), tmp_path, max_steps=10, callbacks=[kept], enable_checkpointing=True)
    assert run.global_step == 10
    assert sorted(path.stem for path in tmp_path.glob("*.ckpt")) == ["step=4", "step=8"]


def test_a_resumed_run_is_the_whole_one(tmp_path: Path) -> None:
    whole = Classifier("step")
    fit(whole, tmp_path)
    trainer_keeping_last(tmp_path, 1).fit(Classifier("step"), data())
    resumed = Classifier("step")
    trainer_keeping_last(tmp_path, 2).fit(resumed, data(), ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_copies_have_programs_of_their_own(tmp_path: Path) -> None:
    module = Classifier("step")
    fit(module, tmp_path, 1)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        fit(other, tmp_path, 1)
        assert not same(other.state_dict(), module.state_dict())


def scaled(module: Any, x: Tensor, y: Tensor) -> Any:
    return 2 * module.derived_step(module.net, module.criterion, x, y)


def regularized(module: Any, x: Tensor, y: Tensor) -> Any:
    return module.derived_step(module.net, module.criterion, x, y) + module.net[0].weight.square().sum()


def dropped(module: Any, x: Tensor, y: Tensor) -> Any:
    module.derived_step(module.net, module.criterion, x, y)


def twice(module: Any, x: Tensor, y: Tensor) -> Any:
    a, b = (module.derived_step(module.net, loss, x, y) for loss in (module.criterion, F.cross_entropy))
    return a + b


def by_backward(module: Any, x: Tensor, y: Tensor) -> Any:
    return module.derived(module.net, module.criterion).backward(x, y)


def by_a_step_beside(module: Any, x: Tensor, y: Tensor) -> Any:
    return TrainStep(module.net, module.criterion, module.optimizers(use_pl_optimizer=False)).backward(x, y)


def by_its_call(module: Any, x: Tensor, y: Tensor) -> Any:
    return module.derived(module.net, module.criterion)(x, y)


def accumulated(module: Any, x: Tensor, y: Tensor) -> Any:
    return module.derived_step(module.net, module.criterion, x, y, accumulate=2)


def anew(module: Any, x: Tensor, y: Tensor) -> Any:
    for _ in range(40):
        module.derived_loss(module.net, lambda s, y: F.cross_entropy(s, y), x, y)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (scaled, "returns another loss"),
        (regularized, "returns another loss"),
        (dropped, "returns None"),
        (twice, "a second derived_step"),
        (by_backward, r"return the loss of self\.derived_step"),
        (by_a_step_beside, r"return the loss of self\.derived_step"),
        (by_its_call, "counts the step in global_step"),
        (accumulated, "takes no accumulate"),
        (anew, "made anew at each batch"),
    ],
)
def test_refuses_what_would_train_otherwise(tmp_path: Path, use: Any, message: str) -> None:
    class Misused(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return use(self, *batch)

    with pytest.raises((RuntimeError, ValueError), match=message):
        fit(Misused("step"), tmp_path)


@pytest.mark.parametrize("use", [scaled, regularized])
def test_a_loss_of_ones_own_by_derived_loss(tmp_path: Path, use: Any) -> None:
    class ByAutograd(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return use(self, *batch)

        def derived_step(self, model: Any, loss: Any, inputs: Any, target: Any, *args: Any, **options: Any) -> Tensor:
            if self.how == "loss":
                return self.derived_loss(model, loss, inputs, target)
            computed: Tensor = loss(model(inputs), target)
            return computed

    modules = [ByAutograd("autograd"), ByAutograd("loss")]
    for module in modules:
        fit(module, tmp_path)
    assert_alike(*modules)


def test_a_loss_that_is_not_finite_may_be_dropped(tmp_path: Path) -> None:
    class Drops(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            x = torch.full_like(x, torch.nan) if batch_idx == 3 else x
            loss = self.derived_step(self.net, self.criterion, x, y, skip_nonfinite=True)
            return loss if loss.isfinite() else None

    module = Drops("step")
    fit(module, tmp_path)
    assert all(p.isfinite().all() for p in module.parameters())


def test_steps_are_of_a_fit(tmp_path: Path) -> None:
    module = Classifier("step")
    with pytest.raises(ValueError, match="derived steps are of a training_step"):
        module.derived_step(module.net, module.criterion, torch.zeros(1, 6), torch.zeros(1))
    with pytest.raises(ValueError, match="GradientFlow looks at layers that autograd runs"):
        fit(module, tmp_path, callbacks=[GradientFlow()])
