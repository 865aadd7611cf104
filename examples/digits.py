"""Train a network whose backward pass is written by hand on handwritten digits, under PyTorch Lightning.

First compares every parameter's gradient, on one training batch, with autograd's of the same network in stock torch.nn;
trains only if all agree. The defaults reach 98 % test accuracy in well under a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from torch_manualbp._extras import require
from torch_manualbp._files import check_writable, write_text
from torch_manualbp.lightning import DigitsDataModule, GradientFlow, ManualBackpropModule, NonFiniteLossError
from torch_manualbp.lightning.checkpoints import CheckpointError
from torch_manualbp.lightning.config import instantiate
from torch_manualbp.verify import compare_gradients

ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "tanh": "Tanh"}
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {  # the class, and the defaults that suit it
    "adamw": ("AdamW", {"lr": 5e-3, "weight_decay": 0.3}),
    "adam": ("Adam", {"lr": 5e-3, "weight_decay": 1e-4}),
    "rmsprop": ("RMSprop", {"lr": 1e-3, "weight_decay": 1e-4, "momentum": 0.9}),
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 5e-3, "momentum": 0.9}),
}
ENGINES = ("autograd", "derived")
FILES = ("last.ckpt", "best.ckpt", "gradient_flow.png")
DTYPES = {  # of the parameters
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
}


def network(nn: str, options: argparse.Namespace) -> dict[str, Any]:
    """The configuration of a multilayer perceptron of the layers in ``nn``: torch_manualbp.nn, or stock torch.nn."""
    layers: list[dict[str, Any]] = []
    for n_in, n_out in itertools.pairwise([DigitsDataModule.features, *options.hidden, DigitsDataModule.classes]):
        layers.append({"class_path": f"{nn}.Linear", "init_args": [n_in, n_out]})
        layers.append({"class_path": f"{nn}.{ACTIVATIONS[options.activation]}"})
    return {"class_path": f"{nn}.Sequential", "init_args": layers[:-1]}


def cross_entropy(nn: str) -> dict[str, Any]:
    """The configuration of the loss in ``nn``. The smoothed labels are worth half a point of test accuracy here."""
    return {"class_path": f"{nn}.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}}


def training(options: argparse.Namespace) -> ManualBackpropModule:
    """What is trained and how, all of it by configuration, so that a checkpoint can be loaded without this file."""
    optimizer, defaults = OPTIMIZERS[options.optimizer]
    settings = {name: getattr(options, name, default) for name, default in defaults.items()}
    accuracy = "torchmetrics.classification.MulticlassAccuracy"
    return ManualBackpropModule(
        model=network("torch_manualbp.nn", options),
        loss=cross_entropy("torch_manualbp.nn"),
        optimizer={"class_path": f"torch.optim.{optimizer}", "init_args": settings},
        scheduler={"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": options.epochs}},
        metrics={"accuracy": {"class_path": accuracy, "init_args": {"num_classes": 10, "average": "micro"}}},
        engine=options.engine,
    )


def gradients_agree(module: ManualBackpropModule, data: DigitsDataModule, options: argparse.Namespace) -> bool:
    """Print how the gradient of every parameter compares with autograd's, in the run's precision and in float64."""
    data.setup()
    inputs, target = next(iter(data.train_dataloader()))
    stock, stock_loss = instantiate(network("torch.nn", options)), instantiate(cross_entropy("torch.nn"))
    comparisons = []
    table = require("rich.table", "examples").Table(title="Gradients by hand against autograd's")
    table.add_column("parameter")
    table.add_column("shape", justify="right")
    for dtype in dict.fromkeys([DTYPES[options.precision], torch.float64]):
        model = copy.deepcopy(module.model).to(dtype)
        comparisons.append(compare_gradients(model, stock, inputs.to(dtype), target, module.loss, stock_loss))
        table.add_column(f"largest difference\nin {str(dtype).removeprefix('torch.')}", justify="right")
    table.add_column("verdict")
    for rows in zip(*(comparison.rows for comparison in comparisons), strict=True):
        verdict = next((f"[red]{row.verdict}" for row in rows if not row.ok), "[green]ok")
        differences = [f"{row.difference:.1e}" for row in rows]
        table.add_row(rows[0].name, " × ".join(map(str, rows[0].shape)), *differences, verdict)
    require("rich", "examples").print(table)
    return all(comparison.ok for comparison in comparisons)


class Extension(pl.Callback):
    """Has a resumed run of more epochs go on with the learning rate that it would have had from the start."""

    needs_gradients = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stretch the cosine, whose length the checkpoint has, to this run's."""
        (configured,) = trainer.lr_scheduler_configs
        schedule: Any = configured.scheduler
        if schedule.T_max != trainer.max_epochs:
            schedule.T_max = trainer.max_epochs
            share = (1 + math.cos(math.pi * schedule.last_epoch / schedule.T_max)) / 2
            for group, at_the_start in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
                group["lr"] = at_the_start * share


def run(options: argparse.Namespace) -> int:
    """Compare, train, test and draw. Returns the exit status."""
    last, best, figure = (options.output / name for name in FILES)
    if not options.resume:
        last.unlink(missing_ok=True)
    write_text(options.output / "options.json", json.dumps(of_the_run(options)))
    if max(options.hidden) <= 512:
        # Products this small are no work to share: on two busy cores, two threads took 97 s where one took 21.
        torch.set_num_threads(1)
    pl.seed_everything(options.seed)
    module = training(options)
    data = DigitsDataModule(options.batch_size, options.seed)
    if not gradients_agree(module, data, options):
        print("digits.py: the gradients differ, so that nothing was trained", file=sys.stderr)
        return 1

    checkpoints = [  # two, for save_last saves only what is the best so far
        ModelCheckpoint(options.output, "best", "val_accuracy", mode="max", enable_version_counter=False),
        ModelCheckpoint(options.output, "last", enable_version_counter=False),
    ]
    logger = CSVLogger(options.output, "logs")
    trainer = pl.Trainer(
        accelerator="cpu",  # faster for a network of this size, and it repeats its numbers to the last bit
        devices=1,
        precision=options.precision,
        max_epochs=options.epochs,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[*checkpoints, GradientFlow(figure, every_n_steps=10), *([Extension()] if options.resume else [])],
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=last if options.resume else None)
        # Not the best, since 180 validation images hardly tell the later epochs apart, while the learning rate has
        # come down to 0 by the last.
        (result,) = trainer.test(module, data, ckpt_path=last, verbose=False)
    except SystemExit:  # which Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    print(f"test accuracy {result['test_accuracy']:.2%} on {len(data.test_set)} images, by the last checkpoint")
    for name, path in (
        ("last checkpoint", last),
        ("best in validation", best),
        ("metrics", Path(logger.log_dir, "metrics.csv")),
        ("gradient flow", figure),
    ):
        print(f"{name:18}  {path}")
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, which a page of usage would bury."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def number(kind: Callable[[str], Any], accepted: str, ok: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A type of option: a number of ``kind`` for which ``ok`` holds."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not ok(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {accepted}")
        return value

    return convert


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, those of an interrupted run included."""
    count = number(int, "a whole number of at least 1", lambda n: n >= 1)
    units = number(int, "a whole number from 1 to 10000", lambda n: 1 <= n <= 10_000)
    seed = number(int, "a whole number from 0 to 4294967295", lambda n: 0 <= n < 2**32)
    rate = number(float, "a number above 0", lambda x: 0 < x < math.inf)
    decay = number(float, "a number of at least 0", lambda x: 0 <= x < math.inf)
    share = number(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)

    def suited(setting: str) -> str:
        each = (f"{name} {defaults[setting]:g}" for name, (_, defaults) in OPTIMIZERS.items() if setting in defaults)
        return f"(default: {', '.join(each)})"

    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    unset = argparse.SUPPRESS
    add("--hidden", type=units, nargs="+", default=[128, 64], metavar="UNITS", help="sizes of the hidden layers")
    add("--activation", choices=ACTIVATIONS, default="relu", help="of the hidden layers")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="what updates the parameters")
    add("--learning-rate", type=rate, dest="lr", default=unset, help=f"at the start {suited('lr')}")
    add("--weight-decay", type=decay, default=unset, help=f"of every parameter {suited('weight_decay')}")
    add("--momentum", type=share, default=unset, help=f"of the update {suited('momentum')}")
    add("--batch-size", type=count, default=64, help="images in a step")
    add("--epochs", type=count, default=60, help="passes over the training images; with --resume more extend the run")
    add("--engine", choices=ENGINES, default="autograd", help="what runs the formulas: autograd, or a derived program")
    add("--precision", choices=DTYPES, default="32-true", help="Lightning's, of parameters and layers")
    add("--seed", type=seed, default=0, help="of the split, the order of the images and the initial parameters")
    add("--output", type=Path, default=Path("runs/digits"), help="folder of the run; an earlier run in it is replaced")
    add("--resume", action="store_true", help="go on from the last checkpoint in --output, with the options of its run")
    options = parser.parse_args(arguments)

    if options.resume:
        for file in (options.output / "last.ckpt", options.output / "options.json"):
            if not file.is_file():
                parser.error(f"argument --resume: there is no {file}; --output takes the folder of an interrupted run")
        started = options_of_run(options.output / "options.json", parser)
        parser.set_defaults(**started)
        options = parser.parse_args(arguments)
        for name, value in of_the_run(options).items():
            if name == "epochs" and value > started.get(name, 0):
                continue  # which extends it
            if value != started.get(name, parser.get_default(name)):  # of an option that the run did not have yet
                option = "--" + {"lr": "learning-rate"}.get(name, name.replace("_", "-"))
                began = started.get(name, "the default")
                parser.error(
                    f"argument {option}: {value} is not what the run to resume began with, {began}; leave it out"
                )
    if "momentum" in options and "momentum" not in OPTIMIZERS[options.optimizer][1]:
        parser.error(f"argument --momentum: {options.optimizer} has none; it goes with --optimizer sgd or rmsprop")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        check_writable(options.output / "options.json")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        parser.error(f"argument --output: {options.output} is no folder to write to: {reason}")
    if not (options.output / "options.json").exists():  # no earlier run, which is replaced
        for file in (options.output / name for name in FILES):
            if file.exists():
                parser.error(f"argument --output: {file} exists, and is of no earlier run; choose another folder")
    return options


def options_of_run(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options that a run began with, in the form that the parser takes."""
    try:
        started = json.loads(path.read_text(encoding="utf-8"))
        for action in parser._actions:
            kind: Any = action.type or str
            for value in started.get(action.dest, []) if action.nargs else [started.get(action.dest)]:
                if action.dest in started and kind(str(value)) != value:
                    raise ValueError(f"{action.dest} is {value!r}")
    except (AttributeError, TypeError, ValueError, OSError, argparse.ArgumentTypeError) as error:
        parser.error(f"argument --resume: {path} does not hold the options of a run: {error}")
    return {name: value for name, value in started.items() if name not in ("output", "resume")}


def of_the_run(options: argparse.Namespace) -> dict[str, Any]:
    """The options that say what the run computes."""
    return {name: value for name, value in vars(options).items() if name not in ("output", "resume")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit status: 0, 1 if it cannot be done, 130 if interrupted."""
    options = parse(arguments)
    for advice in (
        "The '.*' does not have many workers",  # which would slow this down: the images are in memory
        "Checkpoint directory .* exists and is not empty",  # so that --resume finds it
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # to Lightning itself
    ):
        warnings.filterwarnings("ignore", advice)
    for noisy in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return run(options)
    except (ImportError, OSError, NonFiniteLossError, CheckpointError) as error:
        print(f"digits.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        message = "interrupted before the first checkpoint, so that there is nothing to resume"
        if (options.output / "last.ckpt").exists():
            resume = shlex.join(["python", sys.argv[0], "--output", str(options.output), "--resume"])
            message = f"interrupted; to go on: {resume}"
        print(message, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
