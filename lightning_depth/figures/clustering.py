"""The order of rows that makes blocks of a similarity matrix visible."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform


def clustered_order(similarity: NDArray[Any]) -> NDArray[np.intp]:
    r"""The order that hierarchical clustering gives n things: `similarity[np.ix_(order, order)]` shows their blocks.

    Average linkage on the distance 1 - similarity, its leaves in the order in which the distances of neighbours sum to
    the least (Bar-Joseph et al. 2001). huh2021 Figure 3 says no more than that its Gram matrices are "hierarchically
    clustered"; linkage and order of leaves are the choice made here.

    Args:
        similarity: n x n, symmetric: cosine similarities or any inner products (the diagonal is not used).

    Raises ValueError if the matrix is not square, not symmetric (to 1e-6 of its largest entry) or not finite.
    Cost: O(n^2) memory; 0.05 s at n = 256, 0.3 s at 512 and 3 s at 1,024, most of it the order of the leaves.

    >>> clustered_order(np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]])).tolist()
    [1, 2, 0]
    """
    matrix = np.asarray(similarity, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a similarity matrix is square, not {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("similarities are not finite")
    if len(matrix) < 2:
        return np.arange(len(matrix))
    if np.abs(matrix - matrix.T).max() > 1e-6 * np.abs(matrix).max():
        raise ValueError("similarities are not symmetric")
    pairs = squareform((matrix + matrix.T) / 2, checks=False)
    # 1 - s up to a constant, which changes neither the tree nor the order; scipy wants no distance below zero.
    tree = linkage(pairs.max() - pairs, method="average", optimal_ordering=True)
    order: NDArray[np.intp] = leaves_list(tree).astype(np.intp)
    return order
