# Written by `make stubs`, for type checkers, editors and grep: every class that a file here defines.
# At run time a class is found in the file that defines it, when it is asked for; nothing is registered.

from lightning_depth.data.cifar import CIFAR10 as CIFAR10
from lightning_depth.data.cifar import CIFAR100 as CIFAR100
from lightning_depth.data.embedded_digits import EmbeddedDigits as EmbeddedDigits
from lightning_depth.data.folds import Folds as Folds
from lightning_depth.data.gaussian_inputs import GaussianInputs as GaussianInputs
from lightning_depth.data.image_folder import ImageFolder as ImageFolder
from lightning_depth.data.imagenet import ImageNet as ImageNet
from lightning_depth.data.imagenet32 import ImageNet32 as ImageNet32
from lightning_depth.data.ising import Ising as Ising
from lightning_depth.data.k_local import KGlobal as KGlobal
from lightning_depth.data.k_local import KLocal as KLocal
from lightning_depth.data.low_rank_least_squares import LowRankLeastSquares as LowRankLeastSquares
from lightning_depth.data.mnist import FashionMNIST as FashionMNIST
from lightning_depth.data.mnist import MNIST as MNIST
from lightning_depth.data.patterns import Patterns as Patterns
from lightning_depth.data.random_labels import RandomLabels as RandomLabels
from lightning_depth.data.single_example import SingleExample as SingleExample
from lightning_depth.data.toy_pixels import ToyPixels as ToyPixels
