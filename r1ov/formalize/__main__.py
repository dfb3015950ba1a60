"""Makes training data of images and questions: `python -m r1ov.formalize --data playground --limit 200`."""

import sys
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shlex import quote

from tqdm import tqdm

from r1ov.cli import marked, option, parse_cli, run
from r1ov.common.files import check_same_options, earlier_options, say, write_json
from r1ov.common.journal import Journal
from r1ov.common.remote import NoUse
from r1ov.common.stopping import stopping
from r1ov.errors import UserError
from r1ov.formalize.models import Engine, cast
from r1ov.formalize.rows import OUTCOMES, Row, Rows

_MODEL = "the model's name there, where that is a URL"
_KEY = "environment variable with the key (default: HF_TOKEN for Hugging Face, OPENAI_API_KEY for OpenAI)"
_ENGINE = "a URL (OpenAI's protocol), a model folder or name, or playground, its own truth"

changeable = partial(option, may_change=True)


@dataclass(frozen=True, kw_only=True)
class FormalizeConfig:
    """A run may change the options marked `may_change` when it goes on; all others decide what comes out."""

    data: str = option("playground", "playground[:split], a file, a folder, or a hub data set")
    out: str = changeable(
        "runs/formalize",
        "folder for what comes out; the same command again goes on where it stopped",
    )
    limit: int | None = changeable(None, "only the first N rows", least=1)
    describer: str | None = option(None, _ENGINE)
    describer_model: str | None = option(None, _MODEL)
    describer_key_env: str | None = changeable(None, _KEY)
    reasoner: str | None = option(None, "the same choices (default with the playground: r1ov-tiny)")
    reasoner_model: str | None = option(None, _MODEL)
    reasoner_key_env: str | None = changeable(None, _KEY)
    judge: str | None = option(None, "a URL, a model, or rules: no judge (default: rules)")
    judge_model: str | None = option(None, _MODEL)
    judge_key_env: str | None = changeable(None, _KEY)
    rounds: int = option(1, "times that the image is looked at again for what the thought lacks", least=0)
    detector: str = option(
        "IDEA-Research/grounding-dino-tiny",
        "finds boxes in scenes if transformers is installed; none: no boxes",
    )
    ocr: bool = option(True, "read the text in images for the describer, if rapidocr is installed")
    max_tokens: int = option(2048, "most tokens of one answer", least=1)
    temperature: float | None = option(None, "of sampling (default: the model's own)", least=0, most=10)
    max_pixels: int = option(2_000_000, "larger images are scaled down to this before they are sent", least=1)
    concurrency: int = changeable(8, "rows, and so requests, at once", least=1, most=64)
    timeout: float = changeable(120.0, "seconds for one request", above=0, most=3600)
    attempts: int = changeable(6, "requests for one answer while the server fails or is busy", least=1)
    max_tokens_spent: int | None = changeable(
        None,
        "budget: tokens of all endpoints, in and out, over all starts of the run; looked at before each "
        "request, so those under way may exceed it",
        least=1,
    )
    retry_failed: bool = changeable(False, "try rows again that failed in an earlier start")
    device: str | None = changeable(None, "for r1ov's engine (default: cuda if there is one, else cpu)")


def formalize_all(config: FormalizeConfig) -> None:
    """Leaves the outputs in `config.out`, and prints a summary on stdout."""
    # Some of these take a second to import.
    from r1ov.formalize.ask import Asker
    from r1ov.formalize.report import write_outputs
    from r1ov.formalize.run import in_order, process
    from r1ov.formalize.stages import Settings, formalize

    rows, folder, options = Rows(config.data, config.limit), Path(config.out), asdict(config)
    before = earlier_options(folder / "config.json") or options
    check_same_options(before, options, marked(config, "may_change"), f"the run in {folder}")
    players = cast(config)
    facts = {"data": config.data, **{role: player.told for role, player in players.items()}}
    for name, fact in facts.items():
        say(f"{name:<10}{fact}")
    models = {role: player.model for role, player in players.items() if player.model}
    reasoner_looks = isinstance(models.get("reasoner"), Engine)
    settings = Settings(frozenset(models), reasoner_looks, config.rounds, config.detector, config.ocr)
    ended = Counter()

    def told() -> str:
        return ", ".join(f"{ended[outcome]} {outcome}" for outcome in OUTCOMES)

    with (
        Journal(folder / "answers.journal", "key") as answers,
        Journal(folder / "rows.journal", "row") as finished,
    ):
        write_json(folder / "config.json", options)
        if damaged := answers.unreadable + finished.unreadable:
            say(f"note      {damaged} damaged lines in {folder}/*.journal are done again")
        with (
            stopping("stopping when what is under way has been answered") as stop,
            tqdm(total=len(rows), unit=" rows", desc="formalize") as bar,
        ):
            again = config.retry_failed
            asker = Asker(models, answers, config.max_tokens_spent, config.attempts, again, stop=stop)

            def tell(row: Row) -> None:
                ended[row.outcome] += 1
                bar.set_postfix_str(f"{told()}; {asker.told()}", refresh=False)
                bar.update()

            try:
                process(
                    rows,
                    lambda row: formalize(row, asker, settings),
                    finished,
                    config.concurrency,
                    stop,
                    again,
                    tell,
                )
            except NoUse as error:
                left = len(rows) - ended.total()
                raise UserError(f"{error}; {left} rows are left, and the same command goes on") from error
        left = len(rows) - ended.total()
        if left:
            why = (
                "the budget is used up; a larger one" if asker.is_over else "asked to stop; the same command"
            )
            say(f"stopped   {left} rows are left: {why} goes on")
        if asker.is_over or not left:  # whoever asked it to stop does not wait for this
            write_outputs(folder, in_order(rows, finished), {**facts, "asked": asker.told()})
    print(f"rows      {told()}, {left} left\nasked     {asker.told()}\noutput    {folder}")
    if ended["done"] and not left:
        model = config.reasoner if reasoner_looks and config.reasoner else "r1ov-tiny"
        print(f"train     python train.py --stage sft --data {quote(str(folder))} --model {quote(model)}")


def main() -> None:
    formalize_all(parse_cli(FormalizeConfig, prog="python -m r1ov.formalize", description=__doc__))


if __name__ == "__main__":
    sys.exit(run(main))
