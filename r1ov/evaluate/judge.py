"""A model that is asked where the rules cannot decide. What it says stands in a column of its own, and is
never asked for twice.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from r1ov.errors import UserError
from r1ov.evaluate.item import Item, Prediction, Verdict
from r1ov.reward.accuracy import kind_of

DECIDED = (
    "mcq",
    "yes_no",
    "bbox",
    "boxes",
)  # kinds of which an answer that was read is right or wrong beyond doubt
AT_ONCE, ATTEMPTS, SECONDS = 8, 4, 60  # requests side by side, tries each, time limit each
TAIL = 4_000  # characters at the end of a reply that the judge sees
INSTRUCTIONS = (
    "You compare the final answer of a student's reply with the reference answer to the same question. Ignore how it is worded, rounded "
    "in the last digit, or reasoned; a reply without a final answer is wrong. Say only CORRECT or WRONG."
)


def needs_judge(item: Item, verdict: Verdict) -> bool:
    """Whether the rules leave it open: no answer was read from a whole reply, or a free one that they do not
    accept.
    """
    if verdict.method in ("error", "truncated") or verdict.score > 0:
        return False
    return verdict.method == "unparsed" or (item.kind or kind_of(item.answer)) not in DECIDED


class Judge:
    """Any endpoint that speaks OpenAI's chat completions. The key comes from OPENAI_API_KEY; without it none
    is sent.
    """

    def __init__(self, url: str, model: str, cache: Path):
        """Args: cache: a file of json lines, read now, appended to with each new verdict."""
        # Imported here because it takes a second, and most evaluations have no judge.
        from huggingface_hub import InferenceClient

        # An empty key would make the client send the Hugging Face token of this machine, which is no business
        # of the endpoint.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.client, self.model, self.cache = (
            InferenceClient(base_url=url, api_key=key, timeout=SECONDS),
            model,
            cache,
        )
        self.known: dict[str, float] = {}
        for line in cache.read_text(encoding="utf-8").splitlines() if cache.exists() else ():
            try:
                row = json.loads(line)
                self.known[row["key"]] = float(row["score"])
            except (ValueError, KeyError, TypeError):
                continue  # torn: it is asked once more

    def __call__(
        self, items: Mapping[str, Item], predictions: Sequence[Prediction], verdicts: Sequence[Verdict]
    ) -> list[Verdict]:
        """The verdicts with `judged` where the judge had to be asked and answered. Raises UserError if it
        answers nothing at all.
        """
        open_ = {}
        for number, (prediction, verdict) in enumerate(zip(predictions, verdicts, strict=True)):
            if needs_judge(items[verdict.id], verdict):
                open_[number] = self.prompt(items[verdict.id], prediction)
        new = {key: prompt for prompt in open_.values() if (key := self.key(prompt)) not in self.known}
        failures: list[str] = []
        with (
            self.cache.open("a", encoding="utf-8", errors="backslashreplace") as file,
            ThreadPoolExecutor(AT_ONCE) as pool,
            tqdm(total=len(new), unit=" judged", disable=not new) as bar,
        ):
            asked = {pool.submit(self.ask, prompt): key for key, prompt in new.items()}
            for future in as_completed(asked):
                bar.update()
                said = future.result()
                if isinstance(said, str):
                    failures.append(said)
                else:
                    self.known[asked[future]] = said
                    file.write(json.dumps({"key": asked[future], "score": said}) + "\n")
                    file.flush()
        if failures and len(failures) == len(new):
            raise UserError(
                f"--judge: none of {len(new)} requests was answered ({failures[0]}); the next start asks again"
            )
        if failures:
            print(
                f"the judge left {len(failures)} of {len(new)} open ({failures[0]}); the next start asks again",
                file=sys.stderr,
            )
        scores = {number: self.known.get(self.key(prompt)) for number, prompt in open_.items()}
        return [replace(verdict, judged=scores.get(number)) for number, verdict in enumerate(verdicts)]

    def prompt(self, item: Item, prediction: Prediction) -> str:
        reply = prediction.text.rsplit("</think>", 1)[-1].strip() or prediction.text
        return f"Question:\n{item.question}\n\nReference answer:\n{item.answer}\n\nStudent's reply:\n{reply[-TAIL:]}"

    def key(self, prompt: str) -> str:
        return hashlib.blake2b(
            f"{self.model}\n{INSTRUCTIONS}\n{prompt}".encode(errors="replace"), digest_size=16
        ).hexdigest()

    def ask(self, prompt: str) -> float | str:
        """1 or 0, or why there is no verdict."""
        from huggingface_hub.errors import (
            HTTPError,
            InferenceTimeoutError,
        )  # the first is httpx's, of every refusal and broken line

        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt}]
        for attempt in range(ATTEMPTS):
            try:
                done = self.client.chat_completion(
                    messages, model=self.model, max_tokens=1024, temperature=0.0
                )
                text = str(done.choices[0].message.content).rsplit("</think>", 1)[-1]
                if said := re.findall(r"\b(NOT CORRECT|INCORRECT|WRONG|CORRECT)\b", text.upper()):
                    return float(said[-1] == "CORRECT")
                reason = f"it said {text[:60]!r}"
            except (
                HTTPError,
                InferenceTimeoutError,
                OSError,
                ValueError,
                AttributeError,
                IndexError,
                TypeError,
            ) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                status = getattr(getattr(error, "response", None), "status_code", 0)
                if status in (400, 401, 403, 404, 422):  # asking again would not help
                    return reason
            if attempt + 1 < ATTEMPTS:
                time.sleep(2**attempt)
        return reason
