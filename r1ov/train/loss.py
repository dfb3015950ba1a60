"""The losses, as pure functions of tensors. GRPO's stand in a file of their own; their names are here too."""

from torch import Tensor

from kernels import token_logprobs
from r1ov.train.grpo_loss import group_advantages, grpo_loss

__all__ = ["group_advantages", "grpo_loss", "sft_loss"]


def sft_loss(hidden: Tensor, weight: Tensor, labels: Tensor, num_items_in_batch: int) -> Tensor:
    """Mean negative log-likelihood, in nats, of the trained tokens: -1/N sum_t log p(labels[t+1] | tokens up
    to t).

    N is the number of trained tokens of the whole optimiser step, over all its micro-batches and ranks, so
    that the loss and its gradients do not depend on how the step was cut up.

    Args:
        hidden: (T, C) states of packed sequences. weight: (V, C), the output head.
        labels: (T,) int64, aligned with the input tokens (Hugging Face's convention), -100 where nothing is
            trained. The first token of a sequence is never trained, so no target crosses into the next
            sequence.
        num_items_in_batch: N.
    Source: transformers' `ForCausalLMLoss` with `num_items_in_batch`; here over a packed batch.
    """
    return -token_logprobs(hidden[:-1], weight, labels[1:]).sum() / num_items_in_batch
