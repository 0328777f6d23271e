# Written by `make stubs`, for type checkers, editors and grep: every class that a file here defines.
# At run time a class is found in the file that defines it, when it is asked for; nothing is registered.

from lightning_depth.models.conv_net import ConvNet as ConvNet
from lightning_depth.models.deep_linear import DeepLinear as DeepLinear
from lightning_depth.models.fully_conv import FullyConv as FullyConv
from lightning_depth.models.huh_cnn import HuhCNN as HuhCNN
from lightning_depth.models.imported import Imported as Imported
from lightning_depth.models.mlp import MLP as MLP
from lightning_depth.models.resnet import ResNet as ResNet
