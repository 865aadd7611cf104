"""Train a GPT on characters, its backward pass by formulas, under PyTorch Lightning.

The text is Python's own documentation as it ships with Python (pydoc_data.topics, some 465,000 characters), or a file.
Samples are printed as it learns. The defaults are a small setting for CPUs: 4 blocks of width 128, 64 characters.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from torch_manualbp import TrainStep, nn
from torch_manualbp import functional as F
from torch_manualbp.lightning import ManualBackpropModule, NonFiniteLossError
from torch_manualbp.lightning.checkpoints import CheckpointError

KEPT = ("blocks", "width", "heads", "context", "dropout", "batch_size", "learning_rate", "seed", "file", "every")
"""Options that a run is resumed with as it began."""


class CausalAttention(torch.nn.Module):
    """Each character looks back, by several heads: one projection makes queries, keys and values."""

    def __init__(self, n: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        p = self.dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        out: Tensor = self.out(a.transpose(1, 2).flatten(2))
        return out


class Block(torch.nn.Module):
    """x + attention, then x + MLP, each of what is normalized."""

    def __init__(self, n: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(n, bias=False), CausalAttention(n, heads, dropout)
        self.norm2 = nn.LayerNorm(n, bias=False)
        self.mlp = torch.nn.Sequential(nn.Linear(n, 4 * n, bias=False), nn.GELU(), nn.Linear(4 * n, n, bias=False))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class GPT(torch.nn.Module):
    """Scores of the next character at each place: (B, T) → (B, T, characters). Embedding and head are one matrix."""

    def __init__(self, characters: int, context: int, n: int, heads: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, n), nn.Embedding(context, n)
        self.blocks = torch.nn.Sequential(*[Block(n, heads, dropout) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(n, bias=False), nn.Linear(n, characters, bias=False)
        for module in self.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.characters.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.characters(x) + self.places.weight[: x.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(h)))
        return out


def loss(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the next characters."""
    C: Tensor = F.cross_entropy(scores.flatten(0, 1), target.flatten())
    return C


class Windows(Dataset[Any]):
    """All pieces of a text of a length, and the same a character later."""

    def __init__(self, text: Tensor, length: int) -> None:
        self.text, self.places = text, torch.arange(length)

    def __len__(self) -> int:
        return len(self.text) - len(self.places)

    def __getitems__(self, starts: list[int]) -> tuple[Tensor, Tensor]:
        """A batch at once."""
        at = torch.tensor(starts).unsqueeze(1) + self.places
        return self.text[at], self.text[at + 1]


class Starts(Sampler[int]):
    """Where the pieces of an epoch begin: by its number and the seed, so that a resumed run sees what it would have."""

    def __init__(self, windows: Windows, count: int, seed: int) -> None:
        self.windows, self.count, self.seed, self.epoch = windows, count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randint(len(self.windows), (self.count,), generator=generator).tolist())


class Text(pl.LightningDataModule):
    """The text as numbers of its characters: the last tenth to validate on, the rest to learn."""

    def __init__(self, text: str, options: argparse.Namespace) -> None:
        super().__init__()
        self.alphabet = sorted(set(text))
        numbers = {c: i for i, c in enumerate(self.alphabet)}
        encoded = torch.tensor([numbers[c] for c in text])
        n = len(encoded) * 9 // 10
        self.train, self.val = (Windows(part, options.context) for part in (encoded[:n], encoded[n:]))
        self.options = options

    def _loader(self, windows: Windows, batches: int, seed: int) -> DataLoader[Any]:
        size = self.options.batch_size
        starts = Starts(windows, batches * size, seed)
        return DataLoader(windows, size, sampler=starts, collate_fn=_as_it_is)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, self.options.every, self.options.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        loader = self._loader(self.val, max(self.options.every // 10, 1), 2**31)
        loader.sampler.set_epoch = lambda epoch: None  # type: ignore[attr-defined] # always the same
        return loader


def _as_it_is(batch: Any) -> Any:
    return batch


class Samples(Callback):
    """What the model writes, after each validation."""

    needs_gradients = False

    def __init__(self, alphabet: list[str], characters: int, prompt: str = "\n") -> None:
        self.alphabet, self.characters = alphabet, characters
        self.prompt = [alphabet.index(c) for c in prompt if c in alphabet] or [0]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print it, with the losses."""
        if trainer.sanity_checking:
            return
        losses = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("train_loss_step", "val_loss")}
        about = ", ".join(f"{k.removesuffix('_step')} {v:.3f}" for k, v in losses.items())
        generator = torch.Generator().manual_seed(trainer.global_step)
        text = sample(pl_module.model, self.prompt, self.characters, generator)  # type: ignore[arg-type]
        trainer.print(f"\nstep {trainer.global_step}: {about}\n{''.join(self.alphabet[i] for i in text)}")


@torch.no_grad()
def sample(model: GPT, prompt: list[int], count: int, generator: torch.Generator) -> list[int]:
    """So many characters after the prompt, each drawn by the model's probabilities."""
    context, text = model.places.num_embeddings, [*prompt]
    for _ in range(count):
        p = model(torch.tensor([text[-context:]]))[0, -1].softmax(-1)
        text.append(int(torch.multinomial(p, 1, generator=generator)))
    return text[len(prompt) :]


def built(options: argparse.Namespace, characters: int) -> GPT:
    """The model, with the weights of the seed."""
    torch.manual_seed(options.seed)
    return GPT(characters, options.context, options.width, options.heads, options.blocks, options.dropout)


def adamw(options: argparse.Namespace) -> Callable[[Any], torch.optim.Optimizer]:
    """As nanoGPT has it."""
    return lambda p: torch.optim.AdamW(p, options.learning_rate, (0.9, 0.99), weight_decay=0.1, fused=True)


def compare(options: argparse.Namespace, data: Text, rounds: int = 9) -> None:
    """Print characters a second of a step by either engine, turn by turn; without Lightning."""
    batches = list(data._loader(data.train, 4, options.seed))
    ways = {}
    for engine in ("autograd", "derived"):
        model = built(options, len(data.alphabet))
        optimizer = adamw(options)(model.parameters())
        ways[engine] = TrainStep(model, loss, optimizer) if engine == "derived" else _by_autograd(model, optimizer)
    seconds: dict[str, list[float]] = {engine: [] for engine in ways}
    started = {}
    for i in range(rounds + 1):
        for engine, step in ways.items():
            start = perf_counter()
            for x, y in batches:
                step(x, y)
            taken = (perf_counter() - start) / len(batches)
            if i:  # the first derives
                seconds[engine].append(taken)
            else:
                started[engine] = taken * len(batches)
    print(f"{'engine':10}{'characters/s':>14}{'ms a step':>12}{'first steps, s':>16}")
    for engine, times in seconds.items():
        t = statistics.median(times)
        print(f"{engine:10}{batches[0][0].numel() / t:14,.0f}{t * 1e3:12.1f}{started[engine]:16.2f}")


def _by_autograd(model: GPT, optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], Tensor]:
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        C = loss(model(x), y)
        C.backward()
        optimizer.step()
        return C

    return step


def run(options: argparse.Namespace, text: str) -> int:
    """Train, with samples, checkpoints and a log. Returns the exit status."""
    pl.seed_everything(options.seed, verbose=False)
    data = Text(text, options)
    model = built(options, len(data.alphabet))
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(text):,} characters, {len(data.alphabet)} different; {size:,} parameters; engine {options.engine}")
    if options.compare:
        compare(options, data)
        return 0
    last = options.output / "last.ckpt"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "options.json").write_text(json.dumps({name: getattr(options, name) for name in KEPT}))
    module = ManualBackpropModule(model, loss, adamw(options), engine=options.engine)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-(-options.steps // options.every),
        callbacks=[
            Samples(data.alphabet, options.sample),
            ModelCheckpoint(options.output, "last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
        logger=pl.loggers.CSVLogger(options.output, "logs"),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(module, data, ckpt_path=last if options.resume else None)
    except SystemExit:  # which Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    if module.derived_step is not None and module.derived_step._programs:
        (options.output / "step.py").write_text(module.derived_step.source)
        print(f"the step, in formulas: {options.output / 'step.py'}")
    print(f"the last checkpoint: {last}")
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def count(text: str) -> int:
    """A type of option: a whole number of at least 1."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, str]:
    """The options and the text."""
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--file", help="a text in UTF-8 to learn, in the place of Python's documentation")
    add("--engine", choices=("autograd", "derived"), default="derived", help="what makes the steps")
    add("--compare", action="store_true", help="print characters a second of both engines, and train nothing")
    add("--steps", type=count, default=2000, help="updates in all, rounded up to whole --every")
    add("--every", type=count, default=250, help="updates between validations, each with a sample and a checkpoint")
    add("--sample", type=count, default=200, help="characters of a sample")
    for name, default in (("blocks", 4), ("width", 128), ("heads", 4), ("context", 64), ("batch-size", 12)):
        add(f"--{name}", type=count, default=default, help="of the model, or texts in a step")
    add("--dropout", type=float, default=0.0, help="of attention and of what the blocks add")
    add("--learning-rate", type=float, default=1e-3, help="of AdamW")
    add("--threads", type=count, default=torch.get_num_threads(), help="of torch")
    add("--seed", type=int, default=0, help="of the weights and the order")
    add("--output", type=Path, default=Path("runs/gpt"), help="folder of the run; an earlier run in it is replaced")
    add("--resume", action="store_true", help="go on from the last checkpoint in --output")
    options = parser.parse_args(arguments)
    if options.resume:
        try:
            parser.set_defaults(**json.loads((options.output / "options.json").read_text()))
        except (OSError, ValueError) as error:
            parser.error(f"argument --resume: there is no run in {options.output}: {error}")
        options = parser.parse_args(arguments)
    if options.width % options.heads:
        parser.error(f"argument --heads: {options.heads} heads do not share {options.width} evenly")
    if not 0 <= options.dropout < 1:
        parser.error(f"argument --dropout: {options.dropout} is not a share from 0 to below 1")
    try:
        text = Path(options.file).read_text(encoding="utf-8") if options.file else documentation()
    except (OSError, ValueError) as error:
        parser.error(f"argument --file: {options.file}: {getattr(error, 'strerror', None) or error}")
    if len(text) < 10 * (options.context + 2):
        parser.error(f"argument --file: {len(text)} characters are too few for a context of {options.context}")
    return options, text


def documentation() -> str:
    """Python's own."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit status: 0, 1 if it cannot be done, 130 if interrupted."""
    options, text = parse(arguments)
    torch.set_num_threads(options.threads)
    for advice in (
        "The '.*' does not have many workers",  # the text is in memory
        "Checkpoint directory .* exists and is not empty",  # so that --resume finds it
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # to Lightning itself
        "The number of training batches",
    ):
        warnings.filterwarnings("ignore", advice)
    for noisy in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return run(options, text)
    except (OSError, NonFiniteLossError, CheckpointError) as error:
        print(f"gpt.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resume = shlex.join(["python", sys.argv[0], "--output", str(options.output), "--resume"])
        print(f"interrupted; to go on from the last checkpoint: {resume}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
