"""Checkpoints: written whole or not at all, and of an author who may want to run code, or has made a mistake."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import ACCURACY, LOSS, MODEL, SGD, WITHOUT_LIGHTNINGS_ADVICE, batches, trainer, trainer_keeping_last
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from torch_manualbp import nn
from torch_manualbp.lightning import ManualBackpropModule
from torch_manualbp.lightning.checkpoints import CheckpointError, WholeCheckpointIO, random_states
from torch_manualbp.lightning.config import instantiate

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

LINEAR = {"class_path": "torch_manualbp.nn.Linear", "init_args": [2, 1]}
MSE = {"class_path": "torch_manualbp.nn.MSELoss"}
RNG = "torch_manualbp.rng_states"


def data() -> Any:
    return batches(torch.randn(8, 2), torch.randn(8, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of a module that was given by configuration."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    trainer_keeping_last(folder, 1, limit_val_batches=0).fit(ManualBackpropModule(LINEAR, MSE, SGD), data())
    return (folder / "last.ckpt").read_bytes()


def with_hyper_parameters(**given: Any) -> Callable[[Any], Any]:
    return lambda checkpoint: checkpoint["hyper_parameters"].update(given)


def changed(saved: bytes, change: Callable[[Any], Any]) -> io.BytesIO:
    checkpoint = torch.load(io.BytesIO(saved), weights_only=True)
    change(checkpoint)
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return file


# --- hostile authors --------------------------------------------------------------------------------------------------

EVIL = "import pathlib; pathlib.Path('evil ran').touch()\nimport torch\nclass Net(torch.nn.Linear):\n    pass\n"


EVIL_MODEL: dict[str, Any] = {"class_path": "evil_mod.Net", "init_args": [2, 1]}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules that leave a file behind when they are imported; the path of that file."""
    package = tmp_path / "evil_package"
    package.mkdir()
    for path in (tmp_path / "evil_mod.py", package / "__init__.py", package / "nets.py", package / "__main__.py"):
        path.write_text(EVIL)
    (package / "__init__.py").write_text(f"{EVIL}from torch.nn import ReLU\nimport subprocess\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "evil ran"
    for name in ("evil_mod", "evil_package", "evil_package.nets"):
        sys.modules.pop(name, None)


NOT_ALLOWED = [
    "evil_mod.Net",
    "evil_package.nets.Net",
    "evil_package.__main__.Net",
    "this.Evil",
    "unittest.__main__.Evil",
    "venv.__main__.Evil",
    "antigravity.Evil",
    "subprocess.Popen",
    "torch.os.system",
    "torch.hub.load",
    "torch.nn.functional.torch.os.system",
    "torch.nn.modules.module.weakref.ref",
    "torch.jit.ScriptModule",
    "torch.utils.bottleneck.__main__.Evil",
    "torch.distributed.run.Evil",
    "torch.nn.Module.__subclasses__",
    "torch_manualbp.__main__.Evil",
    "torch_manualbp.lightning.ManualBackpropModule",
    "torchmetrics.text.bert.BERTScore",
    "torchmetrics.utilities.os.system",
    "pytorch_lightning.LightningModule",
    "__main__.Net",
    "\udc80.Net",
    "a\0b.Net",
]


@pytest.mark.parametrize("class_path", NOT_ALLOWED, ids=ascii)
def test_nothing_is_imported_or_run_that_nobody_allowed(class_path: str, saved: bytes, evil: Path) -> None:
    loaded = set(sys.modules)
    config = {"class_path": class_path, "init_args": [2, 1]}
    with pytest.raises(ValueError, match="class_path is ") as caught:
        instantiate(config)
    assert "\n" not in str(caught.value)
    for place in ("model", "loss"):
        file = changed(saved, with_hyper_parameters(**{place: config}))
        with pytest.raises(CheckpointError, match=f"the checkpoint is no checkpoint .*{place}.class_path is "):
            ManualBackpropModule.load_from_checkpoint(file)
    assert set(sys.modules) == loaded
    assert not evil.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(model={**LINEAR, "init_args": [{"class_path": "evil_mod.Net"}]}),
        lambda h: h.update(model=EVIL_MODEL, allow=["evil_mod"]),
        lambda h: h.update(
            model=EVIL_MODEL, _class_path="evil_mod.Net", _instantiator="pytorch_lightning.cli.instantiate_module"
        ),
        lambda h: h.update(_instantiator="evil_mod.Net"),
        lambda h: h.update(metrics={"a": EVIL_MODEL}),
    ],
)
def test_no_other_way_leads_there(change: Callable[[Any], Any], saved: bytes, evil: Path) -> None:
    file = changed(saved, lambda c: change(c["hyper_parameters"]))
    try:
        module = ManualBackpropModule.load_from_checkpoint(file)
    except CheckpointError:
        pass
    else:
        assert type(module.model) is nn.Linear  # what named a maker of its own is not asked
    assert not evil.exists()


@pytest.mark.parametrize(
    ("class_path", "allow"),
    [
        ("evil_mod.Net", ("evil_mod",)),
        ("evil_mod.Net", "evil_mod"),
        ("evil_mod.Net", ["evil_mod.Net"]),
        ("evil_package.nets.Net", ("evil_package",)),
        ("evil_package.nets.Net", ("evil_package.nets",)),
        ("evil_package.Net", ("evil_package.Net",)),
    ],
)
def test_what_the_caller_allows_is_imported(class_path: str, allow: Any, saved: bytes, evil: Path) -> None:
    config = {"class_path": class_path, "init_args": [2, 1]}
    file = changed(saved, lambda c: c["hyper_parameters"].update(model=config))
    module = ManualBackpropModule.load_from_checkpoint(file, allow=allow)
    assert type(module.model).__name__ == "Net"
    assert evil.exists()
    assert "allow" not in module.hparams
    made = ManualBackpropModule(config, MSE, allow=allow)
    assert type(made.model) is type(module.model)


@pytest.mark.parametrize(
    "class_path", ["evil_package.subprocess.Popen", "evil_package.__main__.Net", "evil_package.torch.jit.ScriptModule"]
)
def test_what_is_allowed_is_no_way_to_other_packages(class_path: str, evil: Path) -> None:
    with pytest.raises(ValueError, match="class_path is "):
        instantiate({"class_path": class_path}, allow=("evil_package",))


def test_a_pickle_that_runs_code_is_not_read(tmp_path: Path, saved: bytes) -> None:
    class Running:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "last.ckpt"
    torch.save({**torch.load(io.BytesIO(saved), weights_only=True), "more": Running()}, path)
    with pytest.raises(CheckpointError, match=r"weights_only=False\) if you trust its author$"):
        ManualBackpropModule.load_from_checkpoint(path)
    assert not (tmp_path / "ran").exists()


# --- malformed checkpoints --------------------------------------------------------------------------------------------


def holding_itself(c: Any) -> None:
    init_args: list[Any] = []
    init_args.append(init_args)
    c["hyper_parameters"]["model"] = {"class_path": "torch_manualbp.nn.Sequential", "init_args": init_args}


def doubled_40_times(c: Any) -> None:
    entry: Any = [1, 2]
    for _ in range(40):
        entry = [entry, entry]
    c["hyper_parameters"]["model"] = {**LINEAR, "init_args": entry}


def of_size(n: int) -> Any:
    return {"class_path": "torch_manualbp.nn.Linear", "init_args": [n, 1]}


MALFORMED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no state": (lambda c: c.pop("state_dict"), "lacks 'state_dict'"),
    "no hyperparameters": (lambda c: c.pop("hyper_parameters"), "missing .* required positional arguments"),
    "no model": (lambda c: c["hyper_parameters"].pop("model"), "missing 1 required positional argument: 'model'"),
    "a list of hyperparameters": (lambda c: c.update(hyper_parameters=[1]), "hyper_parameters is a list"),
    "old hyperparameters": (lambda c: c.update(hparams=3), "hparams is a int"),
    "an unnamed hyperparameter": (lambda c: c["hyper_parameters"].update({3: 3}), "has the key 3, which is no name"),
    "another type of them": (lambda c: c.update(hparams_type=torch.Size), "no checkpoint of ManualBackpropModule"),
    "a list of states": (lambda c: c.update(state_dict=[1]), "state_dict is a list"),
    "a number for a tensor": (lambda c: c["state_dict"].update({"model.bias": 3}), r"\['model.bias'\] is a int"),
    "an unnamed tensor": (lambda c: c["state_dict"].update({3: torch.ones(1)}), "has the key 3, which is no name"),
    "another shape": (lambda c: c["state_dict"].update({"model.weight": torch.ones(3, 2)}), "is of shape .3, 2."),
    "a tensor too few": (lambda c: c["state_dict"].pop("model.weight"), "it lacks model.weight of the model"),
    "a tensor too many": (lambda c: c["state_dict"].update(more=torch.ones(1)), "Unexpected key.* \"more\""),
    "a tensor without numbers": (
        lambda c: c["state_dict"].update({"model.weight": torch.ones(1).expand(10**9, 10**6)}),
        "is larger than what the file holds of it",
    ),
    "a tensor of no device": (
        lambda c: c["state_dict"].update({"model.weight": torch.ones(1, 2, device="meta")}),
        "model.weight",
    ),
    "a model of another kind": (lambda c: c["hyper_parameters"].update(model=SGD), "model"),
    "a loss that is none": (lambda c: c["hyper_parameters"].update(loss=3), "loss is 3"),
    "a model that is text": (lambda c: c["hyper_parameters"].update(model="net"), "model is 'net'"),
    "an engine that is none": (lambda c: c["hyper_parameters"].update(engine=3), "engine is 3"),
    "metrics in a list": (lambda c: c["hyper_parameters"].update(metrics=[ACCURACY]), "metrics is "),
    "an argument without a name": (
        lambda c: c["hyper_parameters"].update(model={**LINEAR, "init_args": {3: 3}}),
        "init_args has the key 3",
    ),
    "a model beyond all memory": (lambda c: c["hyper_parameters"].update(model=of_size(10**15)), "model"),
    "a model beyond the memory": (lambda c: c["hyper_parameters"].update(model=of_size(10**11)), "weight is of shape"),
    "a configuration in itself": (holding_itself, "model has more than 100 levels"),
    "a configuration of 2**40 entries": (doubled_40_times, "model has more than 1,000,000 entries"),
    "a version that is none": (lambda c: c.update({"pytorch-lightning_version": []}), "no checkpoint of Manual"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.filterwarnings("ignore:Lightning automatically upgraded")
def test_a_malformed_checkpoint_is_one_error(name: str, saved: bytes) -> None:
    change, said = MALFORMED[name]
    file = changed(saved, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        ManualBackpropModule.load_from_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_off_is_one_error(share: float, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(saved[: int(share * len(saved))])
    with pytest.raises(CheckpointError, match=r"last.ckpt cannot be read, such as where it is cut off: ") as caught:
        ManualBackpropModule.load_from_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"text", b"\x80\x04.", pickle.dumps([1]), pickle.dumps({"state_dict": 3})])
def test_a_file_that_is_no_checkpoint_is_one_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.ckpt"):
        ManualBackpropModule.load_from_checkpoint(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"last.ckpt"):
        ManualBackpropModule.load_from_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(IsADirectoryError):
        ManualBackpropModule.load_from_checkpoint(tmp_path)


# --- random states ----------------------------------------------------------------------------------------------------

STATE = torch.Generator().manual_seed(1).get_state()


@pytest.mark.parametrize(
    "given",
    [
        torch.cat([torch.zeros(7, dtype=torch.uint8), STATE])[7:],
        torch.stack([torch.zeros_like(STATE), STATE])[1],
        torch.stack([STATE, STATE], 1)[:, 1],
    ],
    ids=["an offset", "a row", "strides"],
)
def test_a_random_state_may_be_a_view(given: torch.Tensor, saved: bytes, tmp_path: Path) -> None:
    """torch.set_rng_state crashes on one, or takes other bytes."""
    (tmp_path / "last.ckpt").write_bytes(changed(saved, lambda c: c.update({RNG: [given], "callbacks": {}})).read())
    module = ManualBackpropModule(LINEAR, MSE, SGD)
    drawn: list[float] = []

    class Drawing(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:  # ahead of the loader, which draws in Lightning 2.4
            drawn.append(torch.rand(()).item())

    run = trainer(tmp_path, 2, callbacks=[Drawing()], limit_val_batches=0)
    run.fit(module, data(), ckpt_path=tmp_path / "last.ckpt")
    assert drawn[0] == torch.rand((), generator=torch.Generator().manual_seed(1)).item()


NO_STATES: list[Any] = [3, [3], "state", [STATE[:-1]], [STATE.float()], [torch.zeros_like(STATE)], [STATE.to("meta")]]


@pytest.mark.parametrize("given", NO_STATES, ids=lambda given: repr(given)[:20])
def test_random_states_that_are_none_are_refused_before_training(given: Any, saved: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint's random states are none: "):
        random_states(given)
    (tmp_path / "last.ckpt").write_bytes(changed(saved, lambda c: c.update({RNG: given})).read())
    with pytest.raises(CheckpointError, match="the checkpoint's random states are none: "):
        trainer(tmp_path, 2).fit(ManualBackpropModule(LINEAR, MSE, SGD), data(), ckpt_path=tmp_path / "last.ckpt")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_gets_full_leaves_the_checkpoint_that_is_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only the administrator of a Linux system can make a disk that is full")
    try:
        (disk / "last.ckpt").write_bytes(b"good")
        (disk / "rest").write_bytes(bytes(500_000))
        module = ManualBackpropModule(MODEL, LOSS)
        images = batches(torch.randn(8, 64), torch.randint(10, (8,)))
        with pytest.raises(OSError, match=r"No space left on device: '.*last.ckpt'"):
            trainer_keeping_last(disk, 1, limit_val_batches=0).fit(module, images)
        assert (disk / "last.ckpt").read_bytes() == b"good"
        assert sorted(os.listdir(disk)) == ["last.ckpt", "rest"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_way_to_write_checkpoints_is_kept(tmp_path: Path) -> None:
    class Mine(TorchCheckpointIO):
        pass

    for plugin, kind in ((Mine(), Mine), (None, WholeCheckpointIO)):
        plugins = {} if plugin is None else {"plugins": [plugin]}
        run = trainer_keeping_last(tmp_path / kind.__name__, 1, limit_val_batches=0, **plugins)
        run.fit(ManualBackpropModule(LINEAR, MSE, SGD), data())
        assert type(run.strategy.checkpoint_io) is kind
        assert os.listdir(tmp_path / kind.__name__) == ["last.ckpt"]


def test_a_folder_that_cannot_be_written_to_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = ManualBackpropModule(LINEAR, MSE, SGD)
    callbacks = [ModelCheckpoint(tmp_path / "file" / "folder")]
    run = trainer(tmp_path, 1, callbacks=callbacks, enable_checkpointing=True, limit_val_batches=0)
    with pytest.raises(NotADirectoryError, match=r"Not a directory: '.*file'"):
        run.fit(module, data())
    assert run.global_step == 0
