"""The rules of what stands between the layers of a model: arithmetic, products, shapes, parts, sums and dropout.

Their operands are called x and y, and the result z; where there is one alone, z goes in and a comes out.
"""

from torch_manualbp.rules.structure.dropout import Dropout
from torch_manualbp.rules.structure.indexing import Index, Slice
from torch_manualbp.rules.structure.joining import Cat, Split, Stack, Unbind
from torch_manualbp.rules.structure.pointwise import Add, Difference, Divide, Multiply, Negate
from torch_manualbp.rules.structure.product import MatMul, matmul_left_gradient, matmul_right_gradient
from torch_manualbp.rules.structure.reduction import Mean, Sum
from torch_manualbp.rules.structure.shape import Cast, Expand, Permute, Reshape, Transpose

__all__ = [
    "Add",
    "Cast",
    "Cat",
    "Difference",
    "Divide",
    "Dropout",
    "Expand",
    "Index",
    "MatMul",
    "Mean",
    "Multiply",
    "Negate",
    "Permute",
    "Reshape",
    "Slice",
    "Split",
    "Stack",
    "Sum",
    "Transpose",
    "Unbind",
    "matmul_left_gradient",
    "matmul_right_gradient",
]
