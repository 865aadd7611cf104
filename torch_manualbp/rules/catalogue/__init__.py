"""Every rule with its torch twin and its sample inputs: a rule is tested by being listed here."""

from torch_manualbp.rules.catalogue.activation import ACTIVATIONS
from torch_manualbp.rules.catalogue.entry import Entry, Make, Sample
from torch_manualbp.rules.catalogue.linear import LINEAR
from torch_manualbp.rules.catalogue.loss import LOSSES
from torch_manualbp.rules.catalogue.margin import MARGINS
from torch_manualbp.rules.catalogue.structure import STRUCTURE

__all__ = ["CATALOGUE", "Entry", "Make", "Sample"]

CATALOGUE: tuple[Entry, ...] = LINEAR + ACTIVATIONS + LOSSES + MARGINS + STRUCTURE
