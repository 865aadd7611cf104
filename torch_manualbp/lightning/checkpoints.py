"""Checkpoints: written whole or not at all, and read without running what their author wants."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from torch_manualbp._files import check_writable, whole_file
from torch_manualbp._text import one_line
from torch_manualbp.lightning.root import pl

__all__ = ["CheckpointError", "WholeCheckpointIO", "contents", "hyper_parameters", "prepare", "random_states", "read"]


HYPER_PARAMETERS = ("hparams", "module_arguments", "hyper_parameters")
"""Where a checkpoint of Lightning has them, the last above the others."""


class CheckpointError(ValueError, RuntimeError):
    """A checkpoint cannot be read, or is not one of this module; the message is one line."""


class WholeCheckpointIO(pl.plugins.TorchCheckpointIO):
    """Lightning's, but that a checkpoint is written beside the one that is there, and then takes its place.

    Lightning writes to the folder of temporary files first; where that is on another disk, a disk that gets full leaves
    the checkpoint cut off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint. Folders that are missing are made."""
        fs, local = fsspec.core.url_to_fs(str(path))
        if storage_options is not None or not isinstance(fs, LocalFileSystem):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # first: torch.save ends the process where it cannot write
        torch.save(checkpoint, content)
        Path(local).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(local) as file:
            file.write(content.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What a checkpoint holds.

        Raises:
            CheckpointError: it cannot be read, or is of another form.
        """
        try:
            held = super().load_checkpoint(path, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise CheckpointError(f"{path} cannot be read, such as where it is cut off: {one_line(error)}") from error
        return checked(held, str(path))


def prepare(trainer: pl.Trainer) -> None:
    """Have the trainer write whole checkpoints, unless it was given another way to write them.

    Raises:
        OSError: a folder of checkpoints cannot be written to; said before training and not after an epoch.
    """
    if type(trainer.strategy.checkpoint_io) is pl.plugins.TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    if trainer.state.fn != pl.trainer.states.TrainerFn.FITTING or not trainer.is_global_zero:
        return
    for callback in trainer.checkpoint_callbacks:
        fs, folder = fsspec.core.url_to_fs(str(getattr(callback, "dirpath", None) or "."))
        if isinstance(fs, LocalFileSystem):
            check_writable(os.path.join(folder, "checkpoint"), make_folder=True)


def read(where: str | os.PathLike[str] | IO[bytes]) -> bytes:
    """The bytes of a file, so that what has been looked at is what is loaded.

    Raises:
        OSError: there is none.
    """
    if hasattr(where, "read"):
        return where.read()
    if "://" not in str(where):
        return Path(where).read_bytes()
    with fsspec.open(str(where), "rb") as file:
        content: bytes = file.read()
    return content


def contents(data: bytes, name: str, weights_only: bool) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        CheckpointError: it is cut off, or of another form than Lightning's.
    """
    try:
        held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise CheckpointError(f"{name} cannot be read: {one_line(error)}") from error
        raise CheckpointError(
            f"{name} is no checkpoint, or holds more than tensors and plain data, which may run any code: "
            "load_from_checkpoint(path, weights_only=False) if you trust its author"
        ) from error
    except Exception as error:  # whatever a damaged file makes torch raise
        raise CheckpointError(f"{name} cannot be read, such as where it is cut off: {one_line(error)}") from error
    return checked(held, name)


def checked(held: Any, name: str) -> dict[str, Any]:
    """What a checkpoint holds, if it has the form that Lightning takes.

    Raises:
        CheckpointError: it has another.
    """
    if not isinstance(held, dict):
        raise CheckpointError(f"{name} is no checkpoint of Lightning: it holds a {type(held).__name__}, and no dict")
    for key in ("state_dict", *HYPER_PARAMETERS):
        if not isinstance(held.get(key, {}), Mapping):
            raise CheckpointError(f"{name}: {key} is a {type(held[key]).__name__}, and no mapping of names")
        unnamed = [part for part in held.get(key, {}) if not isinstance(part, str)]
        if unnamed:
            raise CheckpointError(f"{name}: {key} has the key {unnamed[0]!r}, which is no name")
    if "state_dict" not in held:
        raise CheckpointError(f"{name} is no checkpoint of Lightning: it lacks 'state_dict'")
    for key, value in held["state_dict"].items():
        if not isinstance(value, Tensor) and not key.endswith("_extra_state"):
            raise CheckpointError(f"{name}: state_dict[{key!r}] is a {type(value).__name__}, and no tensor")
        if isinstance(value, Tensor) and not _is_backed(value):
            raise CheckpointError(f"{name}: state_dict[{key!r}] is larger than what the file holds of it")
    return held


def hyper_parameters(held: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a checkpoint holds, those under Lightning's former names included."""
    return {name: value for key in HYPER_PARAMETERS for name, value in held.get(key, {}).items()}


def _is_backed(t: Tensor) -> bool:
    """Whether there is a number for each entry: a few bytes may be expanded to any size."""
    return t.layout is not torch.strided or t.numel() * t.element_size() <= t.untyped_storage().nbytes()


def random_states(given: Any) -> list[Tensor] | None:
    """The random states of a checkpoint, one for each process, such as ``torch.set_rng_state`` takes.

    Raises:
        CheckpointError: they are none.
    """
    if given is None:
        return None
    try:
        # A tensor of their own for each: torch.set_rng_state crashes on a view with an offset (torch 2.13).
        states = [state.cpu().clone(memory_format=torch.contiguous_format) for state in given]
        for state in states:
            torch.Generator().set_state(state)
    except Exception as error:
        raise CheckpointError(f"the checkpoint's random states are none: {one_line(error)}") from error
    return states
