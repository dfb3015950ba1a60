"""Text for people: one safe line."""


def one_line(text: str) -> str:
    """The text on one line that is safe on a terminal: white space closed up, control characters escaped, at
    most 2,000 characters.
    """
    text = " ".join(text[:10_000].split())
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= 2000 else text[:1997] + "..."
