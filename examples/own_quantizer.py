"""A quantizer of your own beside the shipped ones: python examples/own_quantizer.py

A quantizer turns vectors [N, D] into codes [N, L]. This one gives a level to each of the first principal
components and cuts it at the quantiles, so that every code of a level has equally many items.
"""

import numpy as np

from llmrec import EmbedConfig, ItemTokenizer
from llmrec.data.synthetic import synthetic
from llmrec.embed import embed


def quantile_codes(vectors: np.ndarray, levels: int, codes: int) -> np.ndarray:
    """Codes int64 [N, L] of vectors float [N, D]: the quantile of each principal component."""
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:levels].T
    ranks = projected.argsort(axis=0).argsort(axis=0)
    return ranks * codes // len(vectors)


def main() -> None:
    catalog, _ = synthetic(n_items=500, n_users=100)
    config = EmbedConfig(encoder="tfidf-svd", dim=64)
    vectors = embed(catalog, config).vectors
    own = quantile_codes(vectors, levels=3, codes=16)
    print(f"own:       {len(np.unique(own, axis=0))} distinct semantic IDs of {len(own)} items")
    shipped = ItemTokenizer(levels=3, codes=16, embed=config).fit(catalog)
    print(f"rq-kmeans: {len(np.unique(shipped.codes[:, :3], axis=0))}")


if __name__ == "__main__":
    main()
