"""Supervised fine-tuning: learn to write the assistant's replies, thought and answer, given what stands
before them.
"""

from functools import partial

import torch

from r1ov.data.formats.tally import Tally
from r1ov.data.steps import Steps, load_steps
from r1ov.errors import UserError
from r1ov.train.run.config import SFTConfig
from r1ov.train.run.heldout import evaluate, objective
from r1ov.train.run.log import say
from r1ov.train.run.open import open_run
from r1ov.train.run.rows import count, open_source
from r1ov.train.run.sharding import sum_over_copies


def train(config: SFTConfig) -> None:
    """Runs the whole of it, and leaves the trained model in `out`/final."""
    source, rows_per_epoch = open_source(config, need="reply")
    with open_run(config, rows_per_epoch) as run:
        steps = Steps(
            source,
            run.processor,
            run.train_batch_size,
            config.max_length,
            run.world.rank,
            run.world.size,
            overlong=config.overlong,
        )
        tally = Tally(config.max_bad_share, say if run.world.is_main else None)
        run.introduce(rows_per_epoch)
        if run.step == 0:
            evaluate(run)
        for data in load_steps(steps, run.step, run.max_steps, config.dataloader_num_workers):
            count(data, tally, run.world)
            is_logged = run.is_logged
            num_items, num_tokens = run.world.sum(
                sum(int((batch["labels"] != -100).sum()) for batch in data.batches),
                sum(len(batch["labels"]) for batch in data.batches),
            )
            if not num_items:
                raise UserError(
                    f"step {run.step + 1}: not one of its {run.train_batch_size} rows can be trained on; {tally.summary()}"
                )
            loss = correct = torch.zeros((), device=run.device)  # read once, after the step
            for number, batch in enumerate(data.batches, 1):
                sum_over_copies(run.model, is_last=number == len(data.batches))
                batch = batch.to(run.device)
                labels = batch.pop("labels")
                parts = run.model(
                    **batch,
                    then=partial(objective, labels=labels, num_items=num_items, count_correct=is_logged),
                )
                parts["loss"].backward()
                loss, correct = loss + parts["loss"].detach(), correct + parts["correct"]
            metrics = run.update()
            loss, correct = run.world.sum(loss.item(), correct.item())
            run.extra["num_tokens"] = run.extra.get("num_tokens", 0) + int(num_tokens)
            metrics = {
                "loss": loss,
                "mean_token_accuracy": correct / num_items,
                **metrics,
                "num_tokens": run.extra["num_tokens"],
                "step_tokens": num_tokens,
                "step_samples": data.rows,
            }
            if rows_per_epoch:
                metrics["epoch"] = run.step * run.train_batch_size / rows_per_epoch
            goes_on = run.end_step(metrics, is_logged, data.cost)
            if (
                config.eval_steps
                and (run.step % config.eval_steps == 0 or run.step == run.max_steps)
                and goes_on
            ):
                evaluate(run)
            if not goes_on:
                return
        run.finish()
