"""A model that is asked where the rules cannot decide. Its verdicts have a column of their own, and are never
asked for twice.
"""

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from r1ov.common.journal import Journal
from r1ov.common.remote import Remote, TryAgain, retried
from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.reward.accuracy import kind_of

DECIDED = ("mcq", "yes_no", "bbox", "boxes")  # an answer of these kinds is right or wrong beyond doubt
AT_ONCE, ATTEMPTS, SECONDS = 8, 4, 60  # requests side by side, tries each, time limit each
TAIL = 4_000  # characters at the end of a reply that the judge sees
INSTRUCTIONS = (
    "You compare the final answer of a student's reply with the reference answer to the same question. "
    "Ignore how it is worded, rounded in the last digit, or reasoned; "
    "a reply without a final answer is wrong. Say only CORRECT or WRONG."
)


def needs_judge(item: Item, verdict: Verdict) -> bool:
    """True if the rules leave it open: no answer was read from a whole reply, or a free one that they do not
    accept.
    """
    if verdict.method in ("error", "truncated") or verdict.score > 0:
        return False
    return verdict.method == "unparsed" or (item.kind or kind_of(item.answer)) not in DECIDED


class Judge:
    """Any endpoint that speaks OpenAI's chat completions. The key comes from OPENAI_API_KEY.

    Args: cache: the journal of all verdicts so far.
    """

    def __init__(self, url: str, model: str, cache: Path):
        self.model, self.cache = model, cache
        key = os.environ.get("OPENAI_API_KEY")
        self.remote = Remote(url, model, key=key, timeout=SECONDS, max_tokens=1024, temperature=0.0)

    def __call__(
        self, items: Mapping[str, Item], predictions: Sequence[Prediction], verdicts: Sequence[Verdict]
    ) -> list[Verdict]:
        """Returns the verdicts, with `judged` if the judge had to be asked and answered. Raises UserError if
        it answers nothing at all.
        """
        keys, prompts = {}, {}
        for prediction, verdict in zip(predictions, verdicts, strict=True):
            item = items[verdict.id]
            if needs_judge(item, verdict):
                reply = prediction.text.rsplit("</think>", 1)[-1].strip() or prediction.text
                prompt = (
                    f"Question:\n{item.question}\n\nReference answer:\n{item.answer}"
                    f"\n\nStudent's reply:\n{reply[-TAIL:]}"
                )
                text = f"{self.model}\n{INSTRUCTIONS}\n{prompt}".encode(errors="replace")
                keys[verdict] = key = hashlib.blake2b(text, digest_size=16).hexdigest()
                prompts[key] = prompt
        with Journal(self.cache, "key") as known:
            self._ask_all({key: prompt for key, prompt in prompts.items() if key not in known}, known)
            scores = {key: record["score"] for key in prompts if (record := known.get(key))}
        return [replace(verdict, judged=scores.get(keys.get(verdict))) for verdict in verdicts]

    def _ask_all(self, prompts: Mapping[str, str], known: Journal) -> None:
        """Asks each prompt and writes the verdicts down under its key."""
        failures: list[str] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = {pool.submit(self._ask, prompt): key for key, prompt in prompts.items()}
            for future in tqdm(as_completed(asked), total=len(asked), unit=" judged", disable=not asked):
                try:
                    known.append({"key": asked[future], "score": future.result()})
                except UserError as error:
                    failures.append(str(error))
        if failures:
            again = f"({failures[0]}); the next start asks again"
            if len(failures) == len(prompts):
                raise UserError(f"--judge: none of {len(prompts)} requests was answered {again}")
            print(f"the judge left {len(failures)} of {len(prompts)} open {again}", file=sys.stderr)

    def _ask(self, prompt: str) -> float:
        """Returns 1 or 0. Raises UserError without a verdict."""
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt}]

        def attempt() -> float:
            text = str(self.remote.send(messages).text).rsplit("</think>", 1)[-1]
            if said := re.findall(r"\b(NOT CORRECT|INCORRECT|WRONG|CORRECT)\b", text.upper()):
                return float(said[-1] == "CORRECT")
            raise TryAgain(f"it said {text[:60]!r}")

        return retried(attempt, ATTEMPTS)
