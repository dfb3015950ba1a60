"""Attention and log-probs: on CPUs each runs as its plain-PyTorch definition, on GPUs as Triton kernels.
Knows nothing of r1ov.
"""

from kernels.attention import attention, decode_attention, starts
from kernels.dispatch import IMPLEMENTATIONS, check_impl, unavailable, use
from kernels.logprobs import token_logprobs

__all__ = [
    "IMPLEMENTATIONS",
    "attention",
    "check_impl",
    "decode_attention",
    "starts",
    "token_logprobs",
    "unavailable",
    "use",
]
