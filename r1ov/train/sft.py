"""Supervised fine-tuning: learn to write the assistant's replies from what precedes them."""

from functools import partial
from itertools import chain

import torch

from r1ov.common.memory import of_step
from r1ov.data.pack import num_trained
from r1ov.data.steps import Steps, load_steps
from r1ov.errors import UserError
from r1ov.train.loss import sft_loss_and_correct
from r1ov.train.optim import each_pack, update
from r1ov.train.run.config import SFTConfig
from r1ov.train.run.heldout import evaluate
from r1ov.train.run.open import open_run, open_source


def train(config: SFTConfig) -> None:
    """Trains until `max_steps`, and leaves the model in `out`/final."""
    source, num_rows = open_source(config, need="reply")
    with open_run(config, source, num_rows) as run:
        config, world, rows_per_step = run.config, run.trainers, run.config.train_batch_size
        steps = Steps(
            source, run.processor, rows_per_step, config.max_length, world.rank, world.size, config.overlong
        )
        run.check_data(lambda record: run.processor.with_pixels(steps.encoded(record)))
        prepared = load_steps(steps, run.step, config.max_steps, config.dataloader_num_workers)
        run.begin()
        if run.is_due(config.eval_steps):
            evaluate(run)

        for data in prepared:
            num_items, num_tokens, num_undecoded = world.sum(
                sum(num_trained(pack["labels"]) for pack in data.batches),
                sum(len(pack["labels"]) for pack in data.batches),
                len(data.undecoded),
            )
            undecoded = chain(*world.gather(data.undecoded)) if num_undecoded else ()
            for item in chain(data.items, undecoded):
                run.tally.add(item)
            if not num_items:
                raise UserError(
                    f"step {run.step + 1}: not one of its {rows_per_step} rows can be trained on; "
                    f"{run.tally.summary()}"
                )

            run.expect(of_step(run, data.batches))
            loss = correct = torch.zeros((), device=run.device)  # read once, after the packs
            for pack in each_pack(data.batches, run.model, run.device):
                then = partial(sft_loss_and_correct, labels=pack["labels"], num_items_in_batch=num_items)
                own_loss, own_correct = run.model(**pack.inputs, then=then)
                if own_loss.requires_grad:  # not without an image, where only its reading is trained
                    own_loss.backward()
                loss, correct = loss + own_loss.detach(), correct + own_correct
            loss, correct = run.world.sum(loss.item(), correct.item())
            metrics = update(run.optimizers, run.parameters, config, run.step)
            metrics |= {"loss": loss, "mean_token_accuracy": correct / num_items}
            metrics["num_tokens"] = run.extra["num_tokens"] = run.extra.get("num_tokens", 0) + int(num_tokens)
            if num_rows:
                metrics["epoch"] = (run.step + 1) * rows_per_step / num_rows
            if not run.end_step(metrics, {"tokens": num_tokens, "samples": data.rows}, data.cost):
                return
            if run.is_due(config.eval_steps):
                evaluate(run)
        run.finish()
