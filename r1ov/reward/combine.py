"""Several scores of one completion to one reward."""

from collections.abc import Mapping

REQUIRED = "accuracy"


def total_reward(
    scores: Mapping[str, float | None], weights: Mapping[str, float], wrong_reward: float = 0.0
) -> float | None:
    """The weighted sum of the scores; a name without a weight counts once. None: the completion leaves its
    group's baseline.

    It is None if the accuracy is (the gold cannot be read), or if no score says anything. Another score that
    is None is left out, as TRL does it: that reward does not apply to this sample.

    Args: wrong_reward: what an accuracy of 0 is worth instead of 0, such as -1.
    Source: TRL GRPOTrainer `_generate_and_score_completions`, `(rewards_per_func *
        reward_weights).nansum(dim=1)`.
    """
    if REQUIRED in scores and scores[REQUIRED] is None:
        return None
    said = {name: score for name, score in scores.items() if score is not None}
    if said.get(REQUIRED) == 0:
        said[REQUIRED] = wrong_reward
    return sum(weights.get(name.split("/")[0], 1.0) * score for name, score in said.items()) if said else None


def soft_overlong(length: int, max_length: int, cache: int) -> float:
    """0 up to max_length - cache tokens, from there in a straight line down to -1 at max_length, -1 beyond.

    Source: DAPO (Yu et al. 2025), equation 13; TRL `get_soft_overlong_punishment`.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"cache is {cache}, must be above 0 and at most max_length ({max_length})")
    return min(0.0, max(-1.0, (max_length - cache - length) / cache))
