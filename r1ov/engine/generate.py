"""`r1ov.generate`: from conversations to completions in one call."""

from collections.abc import Callable, Mapping, Sequence

from r1ov.data.messages import Messages
from r1ov.data.processor import Processor
from r1ov.engine.decode import Completion, decode
from r1ov.engine.plan import prepare
from r1ov.model.model import Qwen2_5_VL


def generate(
    model: Qwen2_5_VL,
    processor: Processor,
    messages: Messages | Sequence[Messages],
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    stream: Callable[[str], None] | None = None,
) -> Completion | list[Completion] | list[list[Completion]]:
    """The model's completion of a conversation; a list of conversations is decoded as one batch.

    One conversation gives a Completion, a list of conversations a list with one entry each; where num_samples
    is above 1, each entry is itself a list of that many completions. Settings left at None come from the
    checkpoint's generation_config.json (how: `SamplingParams.resolve`). A sample's random numbers depend on
    the seed and its prompt alone, not on what else is in the batch.

    Args:
        max_new_tokens: None and no such setting in the file: 2048. A row also ends at the model's last
            position.
        temperature: 0 is greedy.
        num_samples: for each conversation; its pictures are encoded and its prompt prefilled once.
        stream: called with each new piece of the text, for one conversation and one sample; the pieces add up
            to `text`.
    Raises:
        UserError: a setting out of its range, a prompt longer than the model's positions, or what the
            processor finds wrong.
    """
    is_single = bool(messages) and isinstance(messages[0], Mapping)
    plan = prepare(
        processor,
        [messages] if is_single else messages,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        num_samples=num_samples,
    )
    rows, _ = decode(model, processor, plan, stream)
    entries = (
        rows if num_samples == 1 else [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
    )
    return entries[0] if is_single else entries
