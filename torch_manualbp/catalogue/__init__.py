"""Every rule with its torch twin and its sample inputs: a rule is tested by being listed here."""

from torch_manualbp.catalogue.activation import ACTIVATIONS
from torch_manualbp.catalogue.linear import LINEAR
from torch_manualbp.catalogue.loss import LOSSES
from torch_manualbp.catalogue.margin import MARGINS
from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.catalogue.structure import STRUCTURE

__all__ = ["CATALOGUE", "Make", "Operation", "Sample"]

CATALOGUE: tuple[Operation, ...] = LINEAR + ACTIVATIONS + LOSSES + MARGINS + STRUCTURE
