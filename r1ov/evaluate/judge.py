"""A model that is asked where the rules cannot decide. Its verdicts have a column of their own, and are never
asked for twice.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from r1ov.common.files import say
from r1ov.common.journal import Journal
from r1ov.common.remote import Remote, TryAgain, retried
from r1ov.data.messages import conversation
from r1ov.errors import UserError
from r1ov.evaluate.item import Verdict, Verdicts
from r1ov.reward.accuracy import kind_of

DECIDED = ("mcq", "yes_no", "bbox", "boxes")  # an answer of these kinds is right or wrong beyond doubt
AT_ONCE, ATTEMPTS, SECONDS = 8, 4, 60  # requests side by side, tries each, time limit each
TAIL = 4_000  # characters at the end of a reply that the judge sees
INSTRUCTIONS = (
    "You compare the final answer of a student's reply with the reference answer to the same question. "
    "Ignore how it is worded, rounded in the last digit, or reasoned; "
    "a reply without a final answer is wrong. Say only CORRECT or WRONG."
)


def needs_judge(one: Verdict) -> bool:
    """True if the rules leave it open: no answer was read from a whole reply, or a free one that they do not
    accept.
    """
    if one.method in ("error", "truncated") or one.score > 0:
        return False
    return one.method == "unparsed" or (one.item.kind or kind_of(one.item.answer)) not in DECIDED


def judge(verdicts: Verdicts, url: str, model: str, cache: Path) -> list[Verdict]:
    """Returns the verdicts, with `judged` where the judge had to be asked and answered.

    Args: url: any endpoint that speaks OpenAI's chat completions; the key comes from OPENAI_API_KEY. cache:
        the journal of all verdicts so far.
    Raises: UserError if it answers nothing at all.
    """
    key = os.environ.get("OPENAI_API_KEY")
    remote = Remote(url, model, key=key, timeout=SECONDS, max_tokens=1024, temperature=0.0)
    names = [f"{model}\n{_prompt(one)}" if needs_judge(one) else "" for one in verdicts]
    failures = []
    with Journal(cache, "asked") as known, ThreadPoolExecutor(AT_ONCE) as pool:
        left = dict.fromkeys(name for name in names if name and name not in known)
        asked = {
            pool.submit(retried, partial(_ask, remote, name.removeprefix(f"{model}\n")), ATTEMPTS): name
            for name in left
        }
        for future in tqdm(as_completed(asked), total=len(asked), unit=" judged", disable=not asked):
            try:
                known.append({"asked": asked[future], "score": future.result()})
            except UserError as error:
                failures.append(str(error))
        scores = [(known.get(name) or {}).get("score") for name in names]
    if failures:
        again = f"({failures[0]}); the next start asks again"
        if len(failures) == len(left):
            raise UserError(f"--judge: none of {len(left)} requests was answered {again}")
        say(f"the judge left {len(failures)} of {len(left)} open {again}")
    return [replace(one, judged=score) for one, score in zip(verdicts, scores, strict=True)]


def _prompt(one: Verdict) -> str:
    text = one.prediction.text
    reply = text.rsplit("</think>", 1)[-1].strip() or text
    return (
        f"Question:\n{one.item.question}\n\nReference answer:\n{one.item.answer}"
        f"\n\nStudent's reply:\n{reply[-TAIL:]}"
    )


def _ask(remote: Remote, prompt: str) -> float:
    """Returns 1 or 0. Raises TryAgain without a verdict."""
    text = str(remote.send(conversation(prompt, [], INSTRUCTIONS)).text).rsplit("</think>", 1)[-1]
    if said := re.findall(r"\b(NOT CORRECT|INCORRECT|WRONG|CORRECT)\b", text.upper()):
        return float(said[-1] == "CORRECT")
    raise TryAgain(f"it said {text[:60]!r}")
