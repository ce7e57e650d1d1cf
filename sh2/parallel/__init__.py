"""Context parallelism: one sequence over several processes, with the results of one. `parallelise` is the way in."""

from sh2.parallel.context import AttentionMethod, ContextParallel, ConvolutionMethod, parallelise
from sh2.parallel.sharding import Sharding, Shards

__all__ = ["AttentionMethod", "ContextParallel", "ConvolutionMethod", "Sharding", "Shards", "parallelise"]
