"""Numbers, lists of words and Markdown as text."""

import re
import unicodedata
from collections.abc import Iterable, Sequence


def percent(value: float) -> str:
    """A fraction as percent with two decimals."""
    return f"{value:.2%}"


def percent_interval(interval: Sequence[float]) -> str:
    """The lower and upper bound of an interval of fractions, as percent."""
    return f"{interval[0]:.2%} to {interval[1]:.2%}"


def points(value: float, sign: bool = True) -> str:
    """A difference of two fractions in percentage points, with its sign unless `sign` is false."""
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def fraction(value: float | None) -> str:
    """A fraction with four decimals; a dash for None."""
    return "–" if value is None else f"{value:.4f}"


def plural(n: int, singular: str, plural_form: str | None = None) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{n:,} {singular if n == 1 else plural_form or f'{singular}s'}"


def join_words(words: Sequence[str]) -> str:
    """An enumeration: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, depending on its length."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def si(value: float) -> str:
    """A count with three significant digits and an SI prefix, ready for its unit: "1.53 G"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:g} "


def one_line(text: str) -> str:
    """Text on one line, without control characters. The joiners of emoji and of Persian are kept."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable() or c in "\u200c\u200d")


def text_width(text: str) -> int:
    """The width of a text in letters, of which Chinese, Japanese and Korean ones and emoji take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def escape_markdown(text: str) -> str:
    """Text on one line, in which no character has a meaning in Markdown, HTML or Markdown tables."""
    return re.sub(r"([\\`*_{}\[\]<>|~#&$!]|^[-+](?= ))", r"\\\1", one_line(text))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are already escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
