"""The choices of how processes share a sequence. Knows nothing of torch."""

from enum import StrEnum


class Sharding(StrEnum):
    """How a sequence is cut over ranks."""

    CONTIGUOUS = "contiguous"
    ZIGZAG = "zigzag"  # from both ends, so that causal attention gives all ranks the same work


class ConvolutionMethod(StrEnum):
    """How the convolutions look across ranks (paper section 4; `state` is ours)."""

    STATE = "state"  # the state that a piece leaves goes to the next: halos for FIR filters, modes for Hyena-LI
    A2A = "a2a"  # shards of the sequence are traded for shards of the channels, and back
    A2A_PIPELINED = "a2a-pipelined"  # the same, in segments of the channels
    P2P = "p2p"  # FIR filters wait for the inputs before theirs; Hyena-LI as `state`
    P2P_OVERLAPPED = "p2p-overlapped"  # FIR filters run while these travel; Hyena-LI as `state`
    P2P_FFT = "p2p-fft"  # Hyena-LI by a Fourier transform across ranks; FIR filters as `p2p-overlapped`


class AttentionMethod(StrEnum):
    """How attention looks across ranks."""

    RING = "ring"  # keys and values go around
    A2A = "a2a"  # shards of the sequence are traded for heads, and back
