"""A training step without an autograd graph, derived from the rules, that a person can read.

- ``operations``: which rules compute the functions of torch that a model calls
- ``tape``: runs the rules forward and backward in autograd's place, and records their torch calls
- ``inner``, ``foreign``: gradients inside of a forward, and Functions that are no rules
- ``draws``, ``effects``: random numbers meanwhile, and what a forward does besides computing
- ``tracers``: what libraries leave out where a tracer is at work
- ``program``, ``recording``: those calls, on named values, and which of these are what
- ``refusals``: what cannot be derived, in one error
- ``reads``: what a forward reads from Python
- ``buffers``: what forward writes to them, done together with the update
- ``floats``: numbers of modules that are inputs of the program
- ``check``: the program's numbers held against autograd's
- ``update``: what becomes of the gradients
- ``plan``: what is done once, and where the values live
- ``source``: the program as Python
- ``deriving``: all of this in order
- ``derived``, ``interruptions``: the program at work, all of it or none
- ``step``: :class:`TrainStep`, which derives programs and keeps them
- ``command``: ``torch-manualbp derive``, which prints it
"""

from torch_manualbp.derive.step import TrainStep
from torch_manualbp.derive.tape import NotDerivableError

__all__ = ["NotDerivableError", "TrainStep"]
