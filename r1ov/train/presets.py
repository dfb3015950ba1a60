"""`--preset`: published recipes as options of the GRPO stage, by TRL's names where TRL has them.

A preset says how to learn, not how much: batch sizes and numbers of steps stay the user's.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The authors' grpo_config.py and grpo_trainer.py (VLM-R1's) at the defaults that their run_grpo.sh leaves in force. They sum the
    # rewards, take the KL term without the ratio, and update once per rollout, so that the clip never binds.
    "r1-onevision": {
        "num_generations": 8,
        "num_iterations": 1,
        "temperature": 1.0,
        "max_completion_length": 256,
        "learning_rate": 1e-6,
        "reward_funcs": ("accuracy", "format"),
        "reward_weights": (1.0, 1.0),
        "scale_rewards": "group",
        "loss_type": "grpo",
        "epsilon": 0.2,
        "beta": 0.04,
        "kl_estimator": "k3",
        "use_bias_correction_kl": False,
    },
    # DAPO (arXiv 2503.14476): clip higher, token mean, dynamic sampling, no lesson from truncated completions, no reference model. Its
    # soft penalty for length is an option of the rewards, because it needs a length that suits the model.
    "dapo": {
        "num_generations": 16,
        "temperature": 1.0,
        "learning_rate": 1e-6,
        "scale_rewards": "group",
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "dynamic_sampling": True,
        "mask_truncated_completions": True,
    },
}
