"""Makes training data of pictures and questions: `python -m r1ov.formalize --data playground --limit 200
--out runs/formalize`.
"""

import json
import os
import shlex
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1ov.cli import check_bounds, marked, option, parse_cli, run
from r1ov.errors import UserError
from r1ov.formalize.roles import Player, cast, models
from r1ov.formalize.row import Role, Row

if TYPE_CHECKING:
    from r1ov.common.journal import Journal

_MODEL = "of a --{} that is a URL: the model's name there"
_KEY = "environment variable with the key (default: HF_TOKEN for Hugging Face, OPENAI_API_KEY for OpenAI, else none)"
_PRICE = "money for a million tokens, IN/OUT, such as 2.5/10"


@dataclass(frozen=True, kw_only=True)
class FormalizeConfig:
    data: str = option("playground", "playground[:split], a file, a folder, or a hub data set")
    out: str = option(
        help="folder for what comes out; the same command again goes on where it stopped", resumable=True
    )
    limit: int | None = option(None, "rows, the first ones", least=1, resumable=True)
    describer: str | None = option(
        None, "a URL (OpenAI protocol), a model folder or name, or playground: its own descriptions"
    )
    describer_model: str | None = option(None, _MODEL.format("describer"))
    describer_key_env: str | None = option(None, _KEY, metavar="NAME", resumable=True)
    describer_price: str | None = option(None, _PRICE, metavar="IN/OUT", resumable=True)
    reasoner: str | None = option(None, "the same; with --data playground by default r1ov-tiny")
    reasoner_model: str | None = option(None, _MODEL.format("reasoner"))
    reasoner_key_env: str | None = option(None, _KEY, metavar="NAME", resumable=True)
    reasoner_price: str | None = option(None, _PRICE, metavar="IN/OUT", resumable=True)
    judge: str | None = option(None, "a URL, a model, or rules: no model")
    judge_model: str | None = option(None, _MODEL.format("judge"))
    judge_key_env: str | None = option(None, _KEY, metavar="NAME", resumable=True)
    judge_price: str | None = option(None, _PRICE, metavar="IN/OUT", resumable=True)
    rounds: int = option(1, "of going back to the picture for what the thought lacks", least=0)
    detector: str = option(
        "IDEA-Research/grounding-dino-tiny",
        "finds boxes in scenes, where transformers is installed; none: no boxes",
    )
    ocr: str = option("en", "EasyOCR's languages, separated by commas, where it is installed; none: no OCR")
    max_tokens: int = option(2048, "longest answer of a model", least=1)
    temperature: float | None = option(None, "default: the model's own", least=0, most=10)
    max_pixels: int = option(2_000_000, "larger pictures are scaled down before they are sent", least=1)
    concurrency: int = option(8, "rows at once, and so requests", least=1, most=64, resumable=True)
    timeout: float = option(120.0, "seconds for one request", above=0, most=3600, resumable=True)
    attempts: int = option(
        6, "requests for one answer, where the server fails or is busy", least=1, resumable=True
    )
    max_tokens_spent: int | None = option(
        None,
        "budget: tokens of all endpoints, in and out, over all starts of the run",
        least=1,
        resumable=True,
    )
    max_cost: float | None = option(
        None, "budget: money, by the prices given, over all starts of the run", least=0, resumable=True
    )
    retry_failed: bool = option(False, "rows that failed in an earlier start are tried again", resumable=True)
    device: str | None = option(
        None, "for r1ov's engine (default: cuda if there is one, else cpu)", resumable=True
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
    from r1ov.common.journal import Journal

    players, folder = cast(config), Path(config.out)
    facts = {"data": config.data, **{role: str(player) for role, player in players.items()}}
    for name, fact in facts.items():
        print(f"{name:<10}{fact}", file=sys.stderr)
    with (
        Journal(folder / "answers.journal", "key") as answers,
        Journal(folder / "rows.journal", "row") as finished,
    ):
        _same_run(folder, config)
        if unreadable := answers.unreadable + finished.unreadable:
            print(
                f"note      {unreadable} damaged lines in {folder}/*.journal; what they held is done again",
                file=sys.stderr,
            )
        _run(config, players, facts, answers, finished)


def _run(
    config: FormalizeConfig,
    players: Mapping[Role, Player],
    facts: dict[str, str],
    answers: "Journal",
    finished: "Journal",
) -> None:
    from tqdm import tqdm

    from r1ov.formalize.ask import Asker, Budget
    from r1ov.formalize.output import write_outputs
    from r1ov.formalize.rows import count_rows, read_rows
    from r1ov.formalize.run import Tally, in_order, process, stopping
    from r1ov.formalize.settings import Settings
    from r1ov.formalize.stages import formalize

    total, stop, tally = count_rows(config.data, config.limit), threading.Event(), Tally()
    asker = Asker(
        models(players, config),
        answers,
        budget=Budget(tokens=config.max_tokens_spent, cost=config.max_cost),
        attempts=config.attempts,
        retry_failed=config.retry_failed,
        stop=stop,
    )
    settings = Settings(
        models=frozenset(asker.models),
        reasoner_looks=players["reasoner"].is_engine,
        rounds=config.rounds,
        detector=None if config.detector == "none" else config.detector,
        ocr=None if config.ocr == "none" else config.ocr,
    )
    with stopping(stop), tqdm(total=total, unit=" rows", desc="formalize") as bar:

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
        print(
            f"stopped   {left} rows are left: {asker.over or 'asked to stop; the same command goes on'}",
            file=sys.stderr,
        )
    if asker.over or not left:  # whoever asked it to stop does not wait for this
        facts |= {
            "tokens": f"{asker.spent.prompt_tokens:,} in, {asker.spent.completion_tokens:,} out",
            "cost": asker.cost(),
        }
        write_outputs(Path(config.out), in_order(read_rows(config.data, config.limit), finished), facts)
    print(f"rows      {tally}, {left} left\nasked     {asker.told()}\noutput    {config.out}")
    if tally.outcomes["done"] and not left:
        print(f"train     python train.py --stage sft --data {shlex.quote(config.out)}")


def _same_run(folder: Path, config: FormalizeConfig) -> None:
    """Writes config.json; raises UserError where another run has been going on in this folder."""
    may_change = marked(config, "resumable")
    path, now = folder / "config.json", json.loads(json.dumps(asdict(config)))
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        differing = sorted(
            name
            for name in now.keys() | before.keys()
            if name not in may_change and before.get(name) != now.get(name)
        )
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another --out") from error
    if differing:
        flag = "--" + differing[0].replace("_", "-")
        raise UserError(
            f"{folder} holds a run with {flag} {before.get(differing[0])}; go on with that, or choose another --out"
        )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    formalize_all(parse_cli(FormalizeConfig, prog="python -m r1ov.formalize", description=__doc__))


if __name__ == "__main__":
    sys.exit(run(main))
