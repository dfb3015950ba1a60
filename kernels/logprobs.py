"""Log-probs of chosen tokens over a large vocabulary, straight from the hidden states.

Shape letters: T tokens, C hidden size, V vocabulary.
"""

import torch
from torch import Tensor

IMPLEMENTATIONS = ("torch",)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    return_entropy: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(hidden weight^T / temperature) at each row's target; (T,) float32, in nats.

    Args:
        hidden: (T, C), after the final norm. weight: (V, C), the output head.
        targets: (T,) int64; -100 marks rows without a target. They cost nothing and give 0.
        temperature: divides the logits; the sampling temperature when scoring samples.
        return_entropy: also give each row's entropy in nats, (T,) float32, 0 where there is no target.
        impl: "torch", or None for the device's default.
    """
    if (impl or "torch") not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, must be one of {', '.join(IMPLEMENTATIONS)}")
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"{hidden.shape[0]} rows of hidden states, but {targets.shape[0]} targets: they must be as many")
    rows = (targets != -100).nonzero().squeeze(1)  # (R,)
    logits = (hidden[rows] @ weight.mT).float() / temperature  # (R, V)
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, targets[rows, None]).squeeze(1)
    zeros = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
    chosen = zeros.index_put((rows,), chosen)
    if not return_entropy:
        return chosen
    return chosen, zeros.index_put((rows,), -(logprobs.exp() * logprobs).sum(-1))
