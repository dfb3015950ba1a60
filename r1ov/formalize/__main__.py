"""Makes training data of images and questions: `python -m r1ov.formalize --data playground --limit 200`."""

import shlex
import sys
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from tqdm import tqdm

from r1ov.cli import check_bounds, marked, option, parse_cli, run
from r1ov.common.files import check_same_options, earlier_options, write_json
from r1ov.common.journal import Journal
from r1ov.common.stopping import stopping
from r1ov.errors import UserError
from r1ov.formalize.models import DEFAULTS, cast, models
from r1ov.formalize.rows import Row, count_rows, read_rows

OUT = "runs/formalize"
_MODEL = "the model's name, where --{} is a URL"
_KEY = "environment variable with the key (default: HF_TOKEN for Hugging Face, OPENAI_API_KEY for OpenAI)"
_PRICE = "money for a million tokens, IN/OUT, such as 2.5/10"
_ENGINE = "a URL (OpenAI's protocol), a model folder or name, or playground, its own truth"


def _key() -> str | None:
    return option(None, _KEY, metavar="NAME", may_change=True)


def _price() -> str | None:
    return option(None, _PRICE, metavar="IN/OUT", may_change=True)


@dataclass(frozen=True, kw_only=True)
class FormalizeConfig:
    """A run may change the options marked `may_change` when it goes on; all others decide what comes out."""

    data: str = option("playground", "playground[:split], a file, a folder, or a hub data set")
    out: str | None = option(
        None,
        f"folder for what comes out; the same command again goes on where it stopped (default: {OUT}, or "
        "where that holds another run the next free name)",
        may_change=True,
    )
    limit: int | None = option(None, "only the first N rows", least=1, may_change=True)
    describer: str | None = option(None, _ENGINE)
    describer_model: str | None = option(None, _MODEL.format("describer"))
    describer_key_env: str | None = _key()
    describer_price: str | None = _price()
    reasoner: str | None = option(None, "the same choices (default with the playground: r1ov-tiny)")
    reasoner_model: str | None = option(None, _MODEL.format("reasoner"))
    reasoner_key_env: str | None = _key()
    reasoner_price: str | None = _price()
    judge: str | None = option(None, "a URL, a model, or rules: no judge (default: rules)")
    judge_model: str | None = option(None, _MODEL.format("judge"))
    judge_key_env: str | None = _key()
    judge_price: str | None = _price()
    rounds: int = option(1, "times that the image is looked at again for what the thought lacks", least=0)
    detector: str = option(
        "IDEA-Research/grounding-dino-tiny",
        "finds boxes in scenes if transformers is installed; none: no boxes",
    )
    ocr: str = option(
        "en", "languages to read, EasyOCR's codes with commas, if it or rapidocr is installed; none: no OCR"
    )
    max_tokens: int = option(2048, "most tokens of one answer", least=1)
    temperature: float | None = option(None, "of sampling (default: the model's own)", least=0, most=10)
    max_pixels: int = option(2_000_000, "larger images are scaled down to this before they are sent", least=1)
    concurrency: int = option(8, "rows, and so requests, at once", least=1, most=64, may_change=True)
    timeout: float = option(120.0, "seconds for one request", above=0, most=3600, may_change=True)
    attempts: int = option(
        6, "requests for one answer while the server fails or is busy", least=1, may_change=True
    )
    max_tokens_spent: int | None = option(
        None,
        "budget: tokens of all endpoints, in and out, over all starts of the run",
        least=1,
        may_change=True,
    )
    max_cost: float | None = option(
        None, "budget: money, by the prices given, over all starts of the run", least=0, may_change=True
    )
    retry_failed: bool = option(False, "try rows again that failed in an earlier start", may_change=True)
    device: str | None = option(
        None, "for r1ov's engine (default: cuda if there is one, else cpu)", may_change=True
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        for player in cast(self).values():
            if player.is_endpoint and player.price is None and self.max_cost is not None:
                raise UserError(
                    f"--max-cost needs --{player.role}-price IN/OUT, without which nobody knows the cost"
                )


def formalize_all(config: FormalizeConfig) -> None:
    """Leaves the outputs in `config.out`, and prints a summary on stdout."""
    total, folder = count_rows(config.data, config.limit), _folder(config)
    done_before = folder / "stages.jsonl"
    if not config.retry_failed and done_before.exists():
        ended = [line for line in done_before.open("rb") if b'"outcome": null' not in line]
        if len(ended) == total:
            print(f"finished  {folder} holds all {total} rows; another --out begins anew")
            return
    # Some of these take a second to import.
    from r1ov.formalize.ask import Asker
    from r1ov.formalize.report import write_outputs
    from r1ov.formalize.run import Tally, in_order, process
    from r1ov.formalize.stages import Settings, formalize

    players, tally = cast(config), Tally()
    facts = {"data": config.data, **{role: str(player) for role, player in players.items()}}
    for name, fact in facts.items():
        print(f"{name:<10}{fact}", file=sys.stderr)
    playing = models(players, config)  # and the folder after all that may be refused
    with (
        Journal(folder / "answers.journal", "key") as answers,
        Journal(folder / "rows.journal", "row") as finished,
    ):
        write_json(folder / "config.json", asdict(config))
        if unreadable := answers.unreadable + finished.unreadable:
            told = f"{unreadable} damaged lines in {folder}/*.journal; what they held is done again"
            print(f"note      {told}", file=sys.stderr)
        settings = Settings(
            models=frozenset(playing),
            reasoner_looks=players["reasoner"].is_engine,
            rounds=config.rounds,
            detector=config.detector,
            ocr=config.ocr,
        )
        with (
            stopping("stopping when what is under way has been answered") as stop,
            tqdm(total=total, unit=" rows", desc="formalize") as bar,
        ):
            asker = Asker(
                playing,
                answers,
                max_tokens_spent=config.max_tokens_spent,
                max_cost=config.max_cost,
                attempts=config.attempts,
                retry_failed=config.retry_failed,
                stop=stop,
            )

            def tell(row: Row) -> None:
                tally.add(row)
                bar.set_postfix_str(f"{tally}; {asker.told()}", refresh=False)
                bar.update()

            process(
                read_rows(config.data, config.limit),
                lambda row: formalize(row, asker, settings),
                finished,
                concurrency=config.concurrency,
                stop=stop,
                retry_failed=config.retry_failed,
                tell=tell,
            )
        left = total - tally.outcomes.total()
        if asker.is_mistake:
            raise UserError(f"{asker.over}; {left} rows are left, and the same command goes on")
        if left:
            why = asker.over or "asked to stop; the same command goes on"
            print(f"stopped   {left} rows are left: {why}", file=sys.stderr)
        if asker.over or not left:  # whoever asked it to stop does not wait for this
            facts["asked"] = asker.told()
            write_outputs(folder, in_order(read_rows(config.data, config.limit), finished), facts)
    print(f"rows      {tally}, {left} left\nasked     {asker.told()}\noutput    {folder}")
    if tally.outcomes["done"] and not left:
        model = players["reasoner"].spec if players["reasoner"].is_engine else DEFAULTS["reasoner"]
        words = ["train.py", "--stage", "sft", "--data", str(folder), "--model", model]
        print(f"train     python {shlex.join(words)}")


def _folder(config: FormalizeConfig) -> Path:
    """Returns the run's folder: --out, else the first of OUT, OUT-2, ... that is free or holds this very run.

    Raises: UserError if --out holds another run.
    """
    for number in count(1):
        folder = Path(config.out or (OUT if number == 1 else f"{OUT}-{number}"))
        now = asdict(config)
        try:
            before = earlier_options(folder / "config.json")
            check_same_options(before or now, now, marked(config, "may_change"), f"the run in {folder}")
            return folder
        except UserError:
            if config.out:
                raise


def main() -> None:
    formalize_all(parse_cli(FormalizeConfig, prog="python -m r1ov.formalize", description=__doc__))


if __name__ == "__main__":
    sys.exit(run(main))
