"""What the settings in a Hugging Face folder may be: what r1ov does not compute is refused by name.

The bounds are far above any real size, and low enough that no tensor's size overflows. NaN and infinity,
which Python's JSON reader lets through, are no numbers here.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from r1ov.model.config import Config, TextConfig, VisionConfig

Rule = tuple[Callable[[Any], bool], str]  # a test, and what is said of a value that fails it

SIZE = (lambda value: type(value) is int and 0 < value <= 2**24, "expected a positive integer")
COUNT = (lambda value: type(value) is int and 0 < value <= 512, "expected an integer from 1 to 512")
PIXELS = (lambda value: type(value) is int and 0 < value < 2**31, "expected a positive whole number")
NUMBER = (lambda value: type(value) in (int, float) and 0 < value < 1e30, "expected a positive number")
TOKEN = (lambda value: type(value) is int and value >= 0, "expected an integer")
TOKENS = (
    lambda value: value is None or all(map(TOKEN[0], value if isinstance(value, list | tuple) else [value])),
    "expected an integer, or a list of them",
)
INTEGERS = (
    lambda value: isinstance(value, list | tuple) and all(map(TOKEN[0], value)),
    "expected a list of integers",
)
POSITIVE = (
    lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(NUMBER[0], value)),
    "expected three positive numbers",
)
SHARES = (lambda value: value == [0, 0, 0] or POSITIVE[0](value), "expected three positive numbers, or zeros")
OBJECT = (lambda value: isinstance(value, dict), "expected an object")
MAYBE_OBJECT = (lambda value: isinstance(value, dict | None), "expected an object")
NAME = (lambda value: isinstance(value, str | None), "expected a name")
ROPE = (lambda value: value in ("default", "mrope"), "r1ov computes plain multimodal rope only")
UNUSED = (lambda value: not value or value == 1, "r1ov decodes without it; remove it, or set it to null")
STEP = (lambda value: value is True, "r1ov resizes, rescales and normalises images, and makes them RGB")
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
EDGES = {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}

# What holds for a setting of this name, in whichever file and section it is.
NAMED = (
    (COUNT, "depth num_hidden_layers in_channels in_chans"),
    (COUNT, "patch_size temporal_patch_size spatial_merge_size merge_size"),
    (TOKENS, "bos_token_id eos_token_id pad_token_id"),
    (PIXELS, "min_pixels max_pixels shortest_edge longest_edge"),
    (NUMBER, "rms_norm_eps rope_theta tokens_per_second rescale_factor"),
    (INTEGERS, "fullatt_block_indexes mrope_section"),
    (OBJECT, "text_config vision_config image_processor"),
    (MAYBE_OBJECT, "rope_scaling rope_parameters"),
    (NAME, "dtype torch_dtype"),
    (ROPE, "type rope_type"),
    (
        UNUSED,
        "num_beams num_beam_groups penalty_alpha min_p typical_p epsilon_cutoff eta_cutoff sequence_bias "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size encoder_repetition_penalty stop_strings "
        "bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id "
        "min_length min_new_tokens constraints force_words_ids dola_layers guidance_scale top_h max_time "
        "exponential_decay_length_penalty watermarking_config num_return_sequences token_healing",
    ),
    (STEP, "do_resize do_rescale do_normalize do_convert_rgb"),
)
RULES: dict[str, Rule] = {
    **{field.name: SIZE for cls in (TextConfig, VisionConfig) for field in fields(cls)},
    **{field.name: TOKEN for field in fields(Config) if field.name.endswith("_token_id")},
    **{name: rule for rule, names in NAMED for name in names.split()},
    "image_mean": SHARES,
    "image_std": POSITIVE,
    "size": (
        lambda value: isinstance(value, dict) and value.keys() <= EDGES,
        "expected shortest_edge and longest_edge",
    ),
    "resample": (lambda value: value == 3, "r1ov resizes bicubically"),
    "tie_word_embeddings": (lambda value: isinstance(value, bool | None), "expected true or false"),
    "hidden_act": (lambda value: value == "silu", "r1ov computes silu only"),
    "use_sliding_window": (lambda value: not value, "r1ov computes full attention only"),
    "attention_dropout": (lambda value: not value, "r1ov has no dropout"),
    "quantization_config": (
        lambda value: not value or value.items() >= AWQ.items(),
        "of the quantised, r1ov loads AWQ's of 4 bits (version gemm, with zero points)",
    ),
    "layer_types": (
        lambda value: not value or set(map(str, value)) == {"full_attention"},
        "r1ov computes full_attention only",
    ),
}
# What must fit together: a test of (config, text, vision), and what is said where it fails.
FITS = [
    (
        lambda c, t, v: c.image_token_id < t.vocab_size,
        "image_token_id {0.image_token_id} must be below vocab_size {0.text.vocab_size}",
    ),
    (
        lambda c, t, v: t.hidden_size % t.num_attention_heads == 0,
        "num_attention_heads {0.text.num_attention_heads} does not divide hidden_size {0.text.hidden_size}",
    ),
    (
        lambda c, t, v: t.num_attention_heads % t.num_key_value_heads == 0,
        "num_key_value_heads {0.text.num_key_value_heads} does not divide num_attention_heads",
    ),
    (
        lambda c, t, v: len(t.mrope_section) == 3 and 2 * sum(t.mrope_section) == t.head_dim,
        "mrope_section {0.text.mrope_section} must be three that sum to half the head size {0.text.head_dim}",
    ),
    (
        lambda c, t, v: v.hidden_size % (4 * v.num_heads) == 0,
        "vision_config: head size {0.vision.hidden_size}/{0.vision.num_heads} must be a multiple of 4",
    ),
    (
        lambda c, t, v: v.out_hidden_size == t.hidden_size,
        "vision_config.out_hidden_size {0.vision.out_hidden_size} is not hidden_size {0.text.hidden_size}",
    ),
    (
        lambda c, t, v: v.window_size >= v.patch_size * v.spatial_merge_size,
        "vision_config.window_size {0.vision.window_size} is below patch_size times spatial_merge_size",
    ),
]
