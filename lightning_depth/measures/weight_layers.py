"""The depth of any network as one number: weight matrices and kernels on the longest path from input to output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that multiply by a matrix or a kernel.
PRODUCTS = frozenset(
    [
        "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "convolution", "embedding",
        "_embedding_bag", "_scaled_mm", "_trilinear", "_addmm_activation", "mkldnn_rnn_layer", "mkldnn_convolution",
    ]
)  # fmt: skip


def weight_layers(network: nn.Module, *inputs: Any) -> int:
    """The number of weight matrices and kernels on the longest path from input to output, 0 for none.

    Counted on the operators of one forward pass in evaluation mode, so it holds for any module: a residual branch
    counts where it is longer than its shortcut, a module that is called twice counts twice, functions count as layers
    do, and what never reaches the output counts nothing. Vectors (biases, BatchNorm) and products of two activations
    (attention) are none. A product of matrices that makes up a weight counts all of them, as if they were layers one
    after the other: a layer expanded by a factor of 4 (huh2021 App. B) counts 4, and a weight whose reparametrisation
    multiplies no two of its parameters (weight or spectral normalisation, Toeplitz) counts 1.

    `inputs` are the network's arguments, such as a batch of one sample. It is left as it was, but for what it draws
    from random generators. Costs a forward pass.

    >>> weight_layers(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(1, 3))
    2
    """
    modes = [(module, module.training) for module in network.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    network.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operator, whatever it multiplies
    try:
        with torch.inference_mode(False), torch.no_grad(), _Paths(network, inputs) as paths:
            outputs = network(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training
    return max((paths.activations.get(t, 0) for t in _tensors(outputs)), default=0)


class _Counts:
    """A number for the memory of a tensor: views have that of their base."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, int]] = {}

    def get(self, tensor: Tensor, default: int) -> int:
        return self._found.get(tensor.untyped_storage()._cdata, (None, default))[1]

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._found

    def raise_to(self, number: int, tree: Any) -> None:
        for tensor in _tensors(tree):
            storage = tensor.untyped_storage()  # kept, so that its address is not given to another
            self._found[storage._cdata] = storage, max(number, self.get(tensor, 0))


class _Paths(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows each operator: the longest path behind every activation, and the matrices that make up every weight."""

    def __init__(self, network: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activations, self.weights = _Counts(), _Counts()
        self.weights.raise_to(0, list(network.parameters()))
        self.activations.raise_to(0, inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` and count what comes out."""
        given = _tensors((args, kwargs))
        data = [self.activations.get(t, 0) for t in given if t in self.activations]
        weights = [self.weights.get(t, 0) for t in given if t in self.weights and t not in self.activations]
        out = func(*args, **(kwargs or {}))
        product = func.overloadpacket._qualified_op_name.rpartition("::")[2] in PRODUCTS
        if data:
            # A matrix that nothing was multiplied into counts 1.
            matrices = max(max(count, 1) for count in weights) if product and weights else 0
            self.activations.raise_to(max(data) + matrices, out)
        elif product and sum(t in self.weights and t.dim() >= 2 for t in given) > 1:
            self.weights.raise_to(sum(max(count, 1) for count in weights[-2:]), out)
        elif weights:
            self.weights.raise_to(max(weights), out)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
