"""The handwritten digits: the data module, and the example that trains on them."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning_runs import same, whole
from ordinary import one_of_each
from sklearn.datasets import load_digits

from torch_manualbp import rules
from torch_manualbp.lightning import DigitsDataModule, ManualBackpropModule

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"


def prepared(**settings: Any) -> DigitsDataModule:
    data = DigitsDataModule(**settings)
    data.setup()
    return data


def splits(data: DigitsDataModule) -> list[list[int]]:
    return [[int(i) for i in images.indices] for images in (data.train_set, data.val_set, data.test_set)]


# --- the data module ------------------------------------------------------------------------------------------------


def test_every_image_is_in_one_split() -> None:
    train, val, test = splits(prepared())
    assert sorted(train + val + test) == list(range(1797))
    assert (len(val), len(test)) == (180, 360)


def test_splits_are_stratified() -> None:
    data = prepared(val_fraction=0.2, test_fraction=0.3)
    shares = numpy.bincount(load_digits().target) / 1797
    for images in (data.train_set, data.val_set, data.test_set):
        _, target = whole(images)
        assert (target.bincount() / len(target)).tolist() == pytest.approx(shares, abs=1 / len(target))


def test_standardised_on_the_training_images_alone() -> None:
    data = prepared()
    inputs, target = whole(data.train_set)
    assert (inputs.dtype, inputs.shape[1:], target.dtype) == (torch.float32, (64,), torch.int64)
    varies = inputs.std(0) > 0
    assert 0 < int((~varies).sum()) < 10  # pixels at the border
    torch.testing.assert_close(inputs.mean(0), torch.zeros(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs[:, varies].std(0, correction=0), torch.ones(int(varies.sum())))
    raw = torch.from_numpy(load_digits().data)
    train, _, test = splits(data)
    mean, deviation = raw[train].mean(0), raw[train].std(0, correction=0)
    expected = (raw[test] - mean) / torch.where(deviation == 0, 1, deviation)
    torch.testing.assert_close(whole(data.test_set)[0], expected.float())


def test_the_seed_decides_the_split_and_the_order() -> None:
    data, again, other = prepared(seed=1), prepared(seed=1), prepared(seed=2)
    assert splits(data) == splits(again) != splits(other)
    first, repeated = (torch.cat([y for _, y in d.train_dataloader()]) for d in (data, again))
    assert torch.equal(first, repeated)
    assert not torch.equal(first, whole(data.train_set)[1])


def test_the_epoch_decides_the_order() -> None:
    loader = prepared().train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        orders.append(list(loader.sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1257))


def test_the_loaders_leave_torchs_random_numbers_alone() -> None:
    data, before = prepared(), torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert len(list(loader)) == len(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"seed": -1},
        {"val_fraction": 0.0},
        {"val_fraction": float("nan")},
        {"test_fraction": 1.0},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"num_workers": -1},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    name, value = list(wrong.items())[-1]
    with pytest.raises(ValueError, match=rf"^{name} is {re.escape(str(value))}: it takes "):
        DigitsDataModule(**wrong)


def test_without_scikit_learn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError) as caught:
        prepared()
    assert str(caught.value) == 'sklearn is not installed; to install it: pip install "torch-manualbp[examples]"'


# --- the example ----------------------------------------------------------------------------------------------------


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Runs the example in this process. Returns its exit status and what it wrote to stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    example = runpy.run_path(str(EXAMPLE))

    def run(*arguments: object) -> tuple[Any, str, str]:
        try:
            status = example["main"]([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


def start(*arguments: object) -> subprocess.Popen[str]:
    """The example as a process of its own, as users run it."""
    path = os.pathsep.join([str(EXAMPLE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A shell that starts pytest in the background has it and its children ignore Ctrl-C.
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(EXAMPLE), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def accuracy(out: str) -> str:
    (found,) = re.findall(r"test accuracy (\S+%)", out)
    return str(found)


@pytest.mark.slow
def test_trains_tests_and_saves_the_same_twice(main: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    options = ("--epochs", 2, "--seed", 3, "--output")
    with start(*options, tmp_path / "first") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Warning" not in err
    assert float(accuracy(out).rstrip("%")) > 90
    rows = [line for line in out.splitlines() if re.search(r"\d\.(weight|bias)", line)]
    assert len(rows) == 6
    assert all(re.search(r"(\d\.\de-\d\d.*){2}ok", row) for row in rows)
    first = tmp_path / "first"
    for file in ("best.ckpt", "last.ckpt", "logs/version_0/metrics.csv", "gradient_flow.png"):
        assert str(first / file) in out
        assert (first / file).stat().st_size > 0
    with (first / "logs" / "version_0" / "metrics.csv").open() as metrics:
        values = {name: value for row in csv.DictReader(metrics) for name, value in row.items() if value}
    assert f"{float(values['test_accuracy']):.2%}" == accuracy(out)
    assert float(values["gradient_flow/model.0/grad_norm"]) > 0

    status, again, _ = main(*options, tmp_path / "second")
    assert (status, accuracy(again)) == (0, accuracy(out))
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("first", "second")]
    assert same(saved[0]["state_dict"], saved[1]["state_dict"])
    assert saved[0]["epoch"] == 1  # the last of all, not the last that was the best so far
    assert same(ManualBackpropModule.load_from_checkpoint(first / "last.ckpt").state_dict(), saved[0]["state_dict"])


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_does(
    main: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    options = ("--epochs", 30, "--hidden", 16, "--activation", "tanh", "--optimizer", "sgd", "--output")
    with start(*options, tmp_path / "interrupted") as process:
        while process.poll() is None and not (tmp_path / "interrupted" / "last.ckpt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    resume = ["--output", str(tmp_path / "interrupted"), "--resume"]
    assert err.splitlines()[-1] == f"interrupted; to go on: python {EXAMPLE} {' '.join(resume)}"
    assert "Traceback" not in err

    status, _, err = main(*resume, "--hidden", 32)
    assert (status, err) == (
        2,
        "digits.py: argument --hidden: [32] is not what the run to resume began with, [16]; leave it out\n",
    )
    status, resumed, err = main(*resume)
    assert status == 0, err
    status, uninterrupted, err = main(*options, tmp_path / "uninterrupted")
    assert status == 0, err
    assert accuracy(resumed) == accuracy(uninterrupted)
    saved = [torch.load(tmp_path / f"{name}interrupted" / "last.ckpt", weights_only=True) for name in ("", "un")]
    assert same(saved[0]["state_dict"], saved[1]["state_dict"])


def test_a_finished_run_is_extended(main: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    status, before, err = main("--hidden", 16, "--epochs", 2, "--output", tmp_path)
    assert status == 0, err
    status, _, err = main("--resume", "--epochs", 1, "--output", tmp_path)
    message = "1 is not what the run to resume began with, 2; leave it out"
    assert (status, err) == (2, f"digits.py: argument --epochs: {message}\n")
    status, after, err = main("--resume", "--epochs", 5, "--output", tmp_path)
    assert status == 0, err
    assert float(accuracy(after).rstrip("%")) > float(accuracy(before).rstrip("%"))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 4
    assert saved["lr_schedulers"][0]["T_max"] == 5
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)
    assert json.loads((tmp_path / "options.json").read_text())["epochs"] == 5


BAD_VALUES = {
    "--epochs -1": "argument --epochs: '-1' is not a whole number of at least 1",
    "--epochs 2.5": "argument --epochs: '2.5' is not a whole number of at least 1",
    "--batch-size 0": "argument --batch-size: '0' is not a whole number of at least 1",
    "--hidden 64 0": "argument --hidden: '0' is not a whole number from 1 to 10000",
    "--hidden": "argument --hidden: expected at least one argument",
    "--activation gelu": "argument --activation: invalid choice: 'gelu' (choose from",
    "--optimizer lbfgs": "argument --optimizer: invalid choice: 'lbfgs' (choose from",
    "--engine eager": "argument --engine: invalid choice: 'eager' (choose from",
    "--precision 8": "argument --precision: invalid choice: '8' (choose from",
    "--learning-rate 0": "argument --learning-rate: '0' is not a number above 0",
    "--learning-rate nan": "argument --learning-rate: 'nan' is not a number above 0",
    "--learning-rate inf": "argument --learning-rate: 'inf' is not a number above 0",
    "--weight-decay -1": "argument --weight-decay: '-1' is not a number of at least 0",
    "--momentum 1 --optimizer sgd": "argument --momentum: '1' is not a number from 0 to below 1",
    "--momentum 0.5": "argument --momentum: adamw has none; it goes with --optimizer sgd or rmsprop",
    "--seed -1": "argument --seed: '-1' is not a whole number from 0 to 4294967295",
    "--seed x": "argument --seed: 'x' is not a whole number from 0 to 4294967295",
    "--resume": "argument --resume: there is no ",
    "--output /dev/null": "argument --output: /dev/null is no folder to write to: ",
    "--epoch 3": "unrecognized arguments: --epoch 3",
}


@pytest.mark.parametrize("options", BAD_VALUES)
def test_a_bad_value_is_answered_in_one_line(
    options: str, main: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    status, out, err = main("--output", tmp_path, *options.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"digits.py: {BAD_VALUES[options]}")
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_a_loss_that_is_not_finite_ends_in_one_line(main: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    status, _, err = main("--optimizer", "sgd", "--learning-rate", 1e30, "--epochs", 1, "--output", tmp_path)
    assert status == 1
    assert re.fullmatch(r"digits.py: the loss is (nan|inf) at global step \d+: .*", err.splitlines()[-1])
    assert "Traceback" not in err


def test_a_gradient_that_differs_stops_the_example(
    main: Callable[..., tuple[Any, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the bias gradient of one sample fewer."""
    monkeypatch.setattr(rules.linear, "linear_bias_gradient", lambda delta, shape=None: delta[1:].sum(0))
    status, out, err = main("--output", tmp_path)
    assert (status, err) == (1, "digits.py: the gradients differ, so that nothing was trained\n")
    verdicts = re.findall(r"(\d\.weight|\d\.bias).*(ok|differs)", out)
    assert verdicts == [(f"{i}.{name}", verdict) for i in (0, 2, 4) for name, verdict in PLANTED]
    assert not (tmp_path / "last.ckpt").exists()


PLANTED = (("weight", "ok"), ("bias", "differs"))


@pytest.mark.parametrize("package", ["sklearn", "rich", "matplotlib"])
def test_without_an_extra_the_example_says_how_to_install_it(
    package: str, main: Callable[..., tuple[Any, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = main("--output", tmp_path)
    assert status == 1
    assert re.fullmatch(
        rf'digits.py: {package} is not installed; to install it: pip install "torch-manualbp\[\w+\]"\n', err
    )


@pytest.mark.parametrize(
    "precision", one_of_each(["bf16-mixed", "bf16-true", "64-true"], lambda precision: [precision[:2]])
)
def test_trains_in_other_precisions(precision: str, main: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    status, out, err = main("--precision", precision, "--epochs", 3, "--output", tmp_path)
    assert status == 0, err
    assert float(accuracy(out).rstrip("%")) > 85


def test_the_derived_engine_trains_the_same(main: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    saved, metrics = [], []
    for engine in ("autograd", "derived"):
        status, out, err = main(
            "--engine", engine, "--precision", "64-true", "--epochs", 2, "--output", tmp_path / engine
        )
        assert status == 0, err
        assert float(accuracy(out).rstrip("%")) > 90
        saved.append(torch.load(tmp_path / engine / "last.ckpt", weights_only=True))
        with (tmp_path / engine / "logs" / "version_0" / "metrics.csv").open() as file:
            metrics.append(
                [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            )
    theirs, ours = saved
    assert ours["hyper_parameters"]["engine"] == "derived"
    for name, expected in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], expected, rtol=1e-11, atol=1e-12)
    assert len(metrics[0]) == len(metrics[1]) == 44 + 2 + 2 + 1  # steps, epochs twice, and the test
    for row, expected in zip(metrics[1], metrics[0], strict=True):
        assert row == pytest.approx(expected, rel=1e-9)


def test_a_derived_run_is_not_resumed_with_another_engine(
    main: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    options = ("--engine", "derived", "--hidden", 16, "--epochs")
    status, _, err = main(*options, 1, "--output", tmp_path)
    assert status == 0, err
    status, out, err = main("--resume", "--engine", "autograd", "--output", tmp_path)
    message = "autograd is not what the run to resume began with, derived; leave it out"
    assert (status, out, err) == (2, "", f"digits.py: argument --engine: {message}\n")


def test_a_run_from_before_there_were_engines_is_resumed(
    main: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    status, before, err = main("--hidden", 16, "--epochs", 1, "--output", tmp_path)
    assert status == 0, err
    options = json.loads((tmp_path / "options.json").read_text())
    assert options.pop("engine") == "autograd"
    (tmp_path / "options.json").write_text(json.dumps(options))
    status, out, err = main("--resume", "--output", tmp_path)
    assert status == 0, err
    assert accuracy(out) == accuracy(before)
