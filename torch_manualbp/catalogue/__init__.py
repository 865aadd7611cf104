"""One row an operation: its rule, the functions and layers of torch that it stands for, its torch twin, its samples.

A rule is tested, named in tables and found by the derived step by being listed here::

    Operation(Tanh, torch.tanh, samples, functions="tanh", layers="Tanh")

``torch-manualbp layers`` prints the layers, and what a row promises that is not there.
"""

from collections.abc import Mapping

from torch_manualbp.catalogue.activation import ACTIVATIONS
from torch_manualbp.catalogue.arrangement import ARRANGEMENT
from torch_manualbp.catalogue.attention import ATTENTION
from torch_manualbp.catalogue.convolution import CONVOLUTIONS
from torch_manualbp.catalogue.ctc import CTC
from torch_manualbp.catalogue.dropout import DROPOUTS
from torch_manualbp.catalogue.embedding import EMBEDDING
from torch_manualbp.catalogue.entrywise import ENTRYWISE
from torch_manualbp.catalogue.linear import LINEAR
from torch_manualbp.catalogue.loss import LOSSES
from torch_manualbp.catalogue.margin import MARGINS
from torch_manualbp.catalogue.norm import NORMS
from torch_manualbp.catalogue.operation import Make, Operation, Sample, named
from torch_manualbp.catalogue.padding import PADDINGS
from torch_manualbp.catalogue.pooling import POOLINGS
from torch_manualbp.catalogue.projected import PROJECTED
from torch_manualbp.catalogue.recurrent import RECURRENT
from torch_manualbp.catalogue.reduction import REDUCTIONS
from torch_manualbp.catalogue.resampling import RESAMPLINGS
from torch_manualbp.catalogue.structure import STRUCTURE

__all__ = ["CATALOGUE", "FAMILIES", "Make", "Operation", "Sample", "named"]

FAMILIES: Mapping[str, tuple[Operation, ...]] = {
    "linear": LINEAR,
    "embedding": EMBEDDING,
    "convolutions": CONVOLUTIONS,
    "paddings": PADDINGS,
    "attention": ATTENTION,
    "poolings": POOLINGS,
    "resamplings": RESAMPLINGS,
    "activations": ACTIVATIONS,
    "losses": LOSSES,
    "losses of a linear layer": PROJECTED,
    "losses of labels without times": CTC,
    "losses of margins": MARGINS,
    "normalisations": NORMS,
    "recurrence": RECURRENT,
    "dropouts": DROPOUTS,
    "structure": STRUCTURE,
    "arrangements": ARRANGEMENT,
    "functions of entries": ENTRYWISE,
    "reductions": REDUCTIONS,
}

CATALOGUE: tuple[Operation, ...] = tuple(operation for family in FAMILIES.values() for operation in family)
