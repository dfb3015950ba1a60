"""Two models on the same tokens: where they part, and what each would have said."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from r1ov.errors import UserError
from r1ov.look.trace import Trace, each_token


@dataclass(frozen=True)
class Comparison:
    """What the two think of each token given those before it; the first has none.

    Attributes:
        divergence: (T,) Jensen-Shannon, in nats from 0 to log 2.
        choices: (2, T) the likeliest token of each; logprobs: (2, T) of the token that is there.
    """

    divergence: Tensor
    choices: Tensor
    logprobs: Tensor

    def partings(self) -> list[int]:
        """The places where their likeliest tokens differ, the most divergent first."""
        places = (self.choices[0] != self.choices[1]).nonzero().squeeze(1)
        return places[self.divergence[places].argsort(descending=True)].tolist()


@torch.no_grad()
def compare(a: Trace, b: Trace) -> Comparison:
    """Raises UserError if the two are not of the same tokens."""
    if not torch.equal(a.token_ids, b.token_ids.to(a.token_ids.device)):
        raise UserError(
            f"the traces are of other tokens ({len(a)} and {len(b)}); give the second the completion of the "
            "first: trace(..., completion=trace_a.token_ids[trace_a.prompt_length:])"
        )

    def beside(p: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        q = b.model.logits(states).double().log_softmax(-1).to(p.device)
        p = p.double()
        middle = torch.logaddexp(p, q) - math.log(2)
        each = [(one.exp() * (one - middle).clamp(min=-1e30)).sum(-1) for one in (p, q)]
        return ((each[0] + each[1]) / 2).clamp(min=0).float(), p.argmax(-1), q.argmax(-1)

    states = a["model.norm.out"], b["model.norm.out"][:-1]
    divergence, *choices = (one.cpu() for one in each_token(a.model, states[0], beside, states[1]))
    logprobs = torch.stack([a.logprobs.cpu(), b.logprobs.cpu()])
    return Comparison(divergence.nan_to_num(), torch.stack(choices), logprobs)
