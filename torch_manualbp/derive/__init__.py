"""A training step without an autograd graph, derived from the rules, that a person can read.

- ``operations``: which rules compute the functions of torch that a model calls
- ``tape``: runs the rules forward and backward in autograd's place, and writes their torch calls down
- ``program``: those calls, on named values
- ``update``: what becomes of the gradients
- ``plan``: what is done once, and where the values live
- ``source``: the program as Python
- ``derived``, ``step``: the program at work, and :class:`TrainStep`, which derives it
- ``command``: ``torch-manualbp derive``, which prints it
"""

from torch_manualbp.derive.step import TrainStep
from torch_manualbp.derive.tape import NotDerivableError

__all__ = ["NotDerivableError", "TrainStep"]
