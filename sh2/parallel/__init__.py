"""Several processes with the results of one: a sequence's length, a block's channels and a model's weights shared.

`parallelise` is the way into context parallelism; `sh2.train.together` puts all of it together for training.
"""

from sh2.parallel.context import ContextParallel, parallelise
from sh2.parallel.sharding import Shards
from sh2.sharing import AttentionMethod, ConvolutionMethod, Sharding

__all__ = ["AttentionMethod", "ContextParallel", "ConvolutionMethod", "Sharding", "Shards", "parallelise"]
