"""Other calls of a target than the one that its user gives, by which gradients are wrong that are right there.

Each function takes a :class:`~torch_manualbp.verify.subject.Setting` and yields :class:`Varied` settings of its kind. A
variation is a proposal: what the target's forward refuses is not asked of its backward.
"""

from torch_manualbp.verify.vary.made import Varied, redrawn

__all__ = ["Varied", "redrawn"]
