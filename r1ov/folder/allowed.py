"""What the settings in a Hugging Face folder may be, as tables: refused by name is what r1ov does not compute."""

# Where a file leaves a choice: what r1ov computes, and that in words.
PLAIN_ROPE = (("default", "mrope"), "plain multimodal rope")
ALL_STEPS = ((True,), "images that are resized, rescaled, normalised and RGB")
CHOICES = {
    "use_sliding_window": ((False,), "full attention"),
    "hidden_act": (("silu",), "silu"),
    "attention_dropout": ((0,), "no dropout"),
    "quantization_config": (({},), "unquantised weights"),
    "type": PLAIN_ROPE,
    "rope_type": PLAIN_ROPE,
    "do_resize": ALL_STEPS,
    "do_rescale": ALL_STEPS,
    "do_normalize": ALL_STEPS,
    "do_convert_rgb": ALL_STEPS,
    "resample": ((3,), "bicubic resizing"),
}

# Kinds of values. The bounds are far above any real size, and low enough that no tensor's size overflows; NaN and
# infinity, which Python's JSON reader lets through, are no numbers.
TESTS = {
    "a positive integer": lambda value: type(value) is int and 0 < value <= 2**24,
    "an integer from 1 to 1024": lambda value: type(value) is int and 0 < value <= 1024,
    "an integer from 1 to 16": lambda value: type(value) is int and 0 < value <= 16,
    "a positive integer below 2^31": lambda value: type(value) is int and 0 < value < 2**31,
    "a positive number": lambda value: type(value) in (int, float) and 0 < value < 1e30,
    "an integer": lambda value: type(value) is int and value >= 0,
    "an integer or null": lambda value: value is None or (type(value) is int and value >= 0),
    "an integer, a list of integers or null": lambda value: all(
        type(each) is int and each >= 0
        for each in (value if isinstance(value, list | tuple) else [value or 0])
    ),
    "a list of integers": lambda value: (
        isinstance(value, list | tuple) and all(type(each) is int for each in value)
    ),
    "three integers": lambda value: (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(each) is int and each >= 0 for each in value)
    ),
    "three numbers": lambda value: (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(each) in (int, float) and 0 <= each < 1e30 for each in value)
    ),
    "three positive numbers": lambda value: TESTS["three numbers"](value) and min(value) > 0,
    "true or false": lambda value: isinstance(value, bool),
    "a name": lambda value: isinstance(value, str),
}
EXPECTED = {  # setting -> kind of value; all others are positive integers
    "depth": "an integer from 1 to 1024",
    "num_hidden_layers": "an integer from 1 to 1024",
    "patch_size": "an integer from 1 to 1024",
    "spatial_merge_size": "an integer from 1 to 16",
    "merge_size": "an integer from 1 to 16",
    "temporal_patch_size": "an integer from 1 to 16",
    "in_channels": "an integer from 1 to 16",
    "min_pixels": "a positive integer below 2^31",
    "max_pixels": "a positive integer below 2^31",
    "tokens_per_second": "a positive number",
    "rms_norm_eps": "a positive number",
    "rope_theta": "a positive number",
    "rescale_factor": "a positive number",
    "fullatt_block_indexes": "a list of integers",
    "mrope_section": "three integers",
    "image_mean": "three numbers",
    "image_std": "three positive numbers",
    "bos_token_id": "an integer or null",
    "pad_token_id": "an integer or null",
    "eos_token_id": "an integer, a list of integers or null",
    "vision_start_token_id": "an integer",
    "vision_end_token_id": "an integer",
    "vision_token_id": "an integer",
    "image_token_id": "an integer",
    "video_token_id": "an integer",
    "tie_word_embeddings": "true or false",
    "torch_dtype": "a name",
}

# What must fit together in a Config, and what is said where it does not.
FITS = (
    (
        lambda config: config.image_token_id < config.text.vocab_size,
        "image_token_id {0.image_token_id} must be below vocab_size {0.text.vocab_size}",
    ),
    (
        lambda config: config.text.hidden_size % config.text.num_attention_heads == 0,
        "num_attention_heads {0.text.num_attention_heads} does not divide hidden_size {0.text.hidden_size}",
    ),
    (
        lambda config: config.text.num_attention_heads % config.text.num_key_value_heads == 0,
        "num_key_value_heads {0.text.num_key_value_heads} does not divide num_attention_heads",
    ),
    (
        lambda config: 2 * sum(config.text.mrope_section) == config.text.head_dim,
        "mrope_section {0.text.mrope_section} must sum to half the head size {0.text.head_dim}",
    ),
    (
        lambda config: config.vision.hidden_size % (4 * config.vision.num_heads) == 0,
        "vision_config: head size {0.vision.hidden_size}/{0.vision.num_heads} must be a multiple of 4",
    ),
    (
        lambda config: config.vision.out_hidden_size == config.text.hidden_size,
        "vision_config.out_hidden_size {0.vision.out_hidden_size} must equal hidden_size {0.text.hidden_size}",
    ),
    (
        lambda config: (
            config.vision.window_size >= config.vision.patch_size * config.vision.spatial_merge_size
        ),
        "vision_config.window_size {0.vision.window_size} is smaller than one merged patch",
    ),
)
