# Written by `make stubs`, for type checkers, editors and grep: every class that a file here defines.
# At run time a class is found in the file that defines it, when it is asked for; nothing is registered.

from lightning_depth.callbacks.activation_images import ActivationImages as ActivationImages
from lightning_depth.callbacks.effective_rank import EffectiveRank as EffectiveRank
from lightning_depth.callbacks.feature_similarity import FeatureSimilarity as FeatureSimilarity
from lightning_depth.callbacks.identity_constant import IdentityConstant as IdentityConstant
from lightning_depth.callbacks.jacobian_norm import JacobianNorm as JacobianNorm
from lightning_depth.callbacks.linear_operator import LinearOperator as LinearOperator
from lightning_depth.callbacks.local_stability import LocalStability as LocalStability
from lightning_depth.callbacks.neural_collapse import NeuralCollapse as NeuralCollapse
from lightning_depth.callbacks.operator_norm import OperatorNorm as OperatorNorm
from lightning_depth.callbacks.representation_collapse import RepresentationCollapse as RepresentationCollapse
from lightning_depth.callbacks.spectrum import Spectrum as Spectrum
from lightning_depth.callbacks.weight_distance import WeightDistance as WeightDistance
