"""Two models on the same tokens: where they part, and what each would have said."""

from dataclasses import dataclass

import torch
from torch import Tensor

from r1ov.errors import UserError
from r1ov.look.trace import CHUNK, Trace


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
    divergence, choices = [torch.zeros(1)], [torch.zeros(2, 1, dtype=torch.int64)]
    size = max(1, CHUNK // 2 // a.model.head_weight.shape[0])
    for part in torch.arange(len(a) - 1).split(size):
        p, q = (one._head(one["model.norm.out"][part]).double().log_softmax(-1).cpu() for one in (a, b))
        middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
        each = [(one.exp() * (one - middle).clamp(min=-1e30)).sum(-1) for one in (p, q)]
        divergence.append(((each[0] + each[1]) / 2).clamp(min=0).float())
        choices.append(torch.stack([p.argmax(-1), q.argmax(-1)]))
    logprobs = torch.stack([a.logprobs.cpu(), b.logprobs.cpu()])
    return Comparison(torch.cat(divergence), torch.cat(choices, dim=1), logprobs)
