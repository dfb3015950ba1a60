"""Attention and log-probs, each beside its plain-PyTorch definition. Knows nothing of r1ov."""

from kernels.attention import attention, decode_attention, decode_bias
from kernels.logprobs import token_logprobs

__all__ = ["attention", "decode_attention", "decode_bias", "token_logprobs"]
