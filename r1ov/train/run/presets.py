"""`--preset`: published recipes as options of each stage."""

# What these take is counted in tests/test_fits.py. One card of 24 GB: 4-bit weights under an adapter.
CARD = {
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "lora_r": 16,
    "quantize": "int4",
    "activation_checkpointing": "full",
    "max_length": 4096,
    "max_pixels": 512 * 512,
}
# Four nodes of eight cards of 80 GB: the cards of a node answer, and read each pack, together.
NODES = {
    "model": "Qwen/Qwen2.5-VL-72B-Instruct",
    "activation_checkpointing": "full",
    "tensor_parallel": 8,
    "context_parallel": 8,
}
SFT = {
    "lora-24gb": {**CARD, "train_batch_size": 32},
    "72b-4-nodes": NODES,
    # The paper's recipe; its configuration files agree but for the pictures. "512" stands in the model card
    # as image_resolution, which in LLaMA-Factory was first the longer side and then a number of pixels; a
    # literal 512 makes sense as a side alone, hence a square of it.
    "r1-onevision": {
        "model": "Qwen/Qwen2.5-VL-7B-Instruct",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "num_train_epochs": 1.0,
        "train_batch_size": 128,
        "max_length": 8192,
        "max_pixels": 512 * 512,
        "adam_beta2": 0.999,
        "optim": "adamw",
    },
}
# How to learn, not how much: batch sizes and numbers of steps stay the user's. Names are TRL's where TRL has
# them.
GRPO = {
    "lora-24gb": {**CARD, "train_batch_size": 64, "max_completion_length": 512, "max_num_seqs": 16},
    "72b-4-nodes": NODES,
    # The authors' grpo_config.py and grpo_trainer.py (VLM-R1's) at the defaults that their run_grpo.sh leaves
    # in force. They sum the rewards, take the KL term without the ratio, and update once per rollout, so that
    # the clip never binds.
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
        "use_bias_correction_kl": False,
    },
    # DAPO (arXiv 2503.14476): clip higher, token mean, dynamic sampling, no lesson from truncated
    # completions, no reference model. Its soft penalty for length is an option of the rewards, because it
    # needs a length that suits the model.
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
