"""The rules of the losses: s is the network's output, y the target, C the cost.

The loss C_i of each entry or sample is reduced to C: ``"none"`` keeps the C_i, ``"sum"`` adds them, ``"mean"`` divides
the sum by n. The upstream gradient g = ∂(what follows)/∂C is mostly 1; it has the shape of C: () after a reduction, the
shape of the C_i without.
"""

from torch_manualbp.rules.loss.binary import (
    BinaryCrossEntropy,
    BinaryCrossEntropyWithLogits,
    HingeEmbedding,
    SoftMargin,
    binary_cross_entropy_derivative,
    binary_cross_entropy_target_derivative,
    binary_cross_entropy_with_logits_derivative,
    binary_cross_entropy_with_logits_target_derivative,
    hinge_embedding_slope,
    soft_margin_derivative,
)
from torch_manualbp.rules.loss.classification import (
    CrossEntropy,
    CrossEntropyProbabilities,
    KullbackLeiblerDivergence,
    NegativeLogLikelihood,
    cross_entropy_gradient,
    divergence_derivative,
    divergence_target_derivative,
    negative_log_likelihood_gradient,
)
from torch_manualbp.rules.loss.embedding import (
    CosineEmbedding,
    TripletMargin,
    VectorNorm,
    vector_norm_gradient,
)
from torch_manualbp.rules.loss.margin import (
    MarginRanking,
    MultiLabelMargin,
    MultiLabelSoftMargin,
    MultiMargin,
    multi_label_margin_counts,
    multi_margin_gradient,
)
from torch_manualbp.rules.loss.regression import (
    AbsoluteError,
    GaussianNegativeLogLikelihood,
    Huber,
    MeanSquaredError,
    PoissonNegativeLogLikelihood,
    SmoothAbsoluteError,
    gaussian_error_derivative,
    gaussian_variance_derivative,
    huber_derivative,
    poisson_derivative,
    poisson_target_derivative,
    smooth_absolute_error_derivative,
    squared_error_gradient,
)

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "BinaryCrossEntropyWithLogits",
    "CosineEmbedding",
    "CrossEntropy",
    "CrossEntropyProbabilities",
    "GaussianNegativeLogLikelihood",
    "HingeEmbedding",
    "Huber",
    "KullbackLeiblerDivergence",
    "MarginRanking",
    "MeanSquaredError",
    "MultiLabelMargin",
    "MultiLabelSoftMargin",
    "MultiMargin",
    "NegativeLogLikelihood",
    "PoissonNegativeLogLikelihood",
    "SmoothAbsoluteError",
    "SoftMargin",
    "TripletMargin",
    "VectorNorm",
    "binary_cross_entropy_derivative",
    "binary_cross_entropy_target_derivative",
    "binary_cross_entropy_with_logits_derivative",
    "binary_cross_entropy_with_logits_target_derivative",
    "cross_entropy_gradient",
    "divergence_derivative",
    "divergence_target_derivative",
    "gaussian_error_derivative",
    "gaussian_variance_derivative",
    "hinge_embedding_slope",
    "huber_derivative",
    "multi_label_margin_counts",
    "multi_margin_gradient",
    "negative_log_likelihood_gradient",
    "poisson_derivative",
    "poisson_target_derivative",
    "smooth_absolute_error_derivative",
    "soft_margin_derivative",
    "squared_error_gradient",
    "vector_norm_gradient",
]
