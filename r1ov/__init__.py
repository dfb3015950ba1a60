"""R1-Onevision in one small code base: image and question go in, a chain of thought and an answer come out.

    model, processor = r1ov.load("r1ov-tiny")
    result = r1ov.generate(model, processor, messages)
    r1ov.save(model, processor, "folder")

Shape letters, the same in every docstring:
    B rows                              T packed tokens
    C hidden size                       V vocabulary
    H query heads                       K key/value heads
    D head dim                          S cached length
    N images                            P packed patches, of all pictures
    M merged vision tokens, P / spatial_merge_size^2
    G completions per prompt
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1ov.engine import generate
    from r1ov.folder.pretrained import load, save
    from r1ov.look import compare, edit, trace

__version__ = "0.1.0"
__all__ = ["compare", "edit", "generate", "load", "save", "trace"]

_HOMES = {
    "generate": "r1ov.engine",
    "load": "r1ov.folder.pretrained",
    "save": "r1ov.folder.pretrained",
    "trace": "r1ov.look",
    "edit": "r1ov.look",
    "compare": "r1ov.look",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: `import r1ov` alone takes no time."""
    if name not in _HOMES:
        raise AttributeError(f"module 'r1ov' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
