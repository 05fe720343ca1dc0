"""Fonts for characters that matplotlib's own font lacks, such as those of Chinese or Korean labels."""

from collections.abc import Iterable
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from classifier.reporting.formatting import plural

MAX_NAMED = 5  # characters in a message

_families: dict[str, str | None] = {}  # of each character that was looked for; None: no installed font has it


def use_fonts(figure: Figure) -> None:
    """Gives the texts of a figure the installed fonts that have their characters, beside matplotlib's own.

    Prints one line, the first time that there is none.
    """
    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # makes the texts of the ticks
    texts = figure.findobj(Text)
    characters = {c for text in texts for c in text.get_text()}
    is_first = None not in _families.values()
    if families := families_for(characters):
        for text in texts:
            text.set_fontfamily(["sans-serif", *families])
    if is_first and (note := describe_missing(characters)):
        print(note)


def families_for(characters: Iterable[str]) -> list[str]:
    """The fewest installed font families that have the characters which matplotlib's own font lacks."""
    own = get_font(findfont(FontProperties(family=["sans-serif"])))
    lacking = {c for c in characters if c.isprintable() and not own.get_char_index(ord(c))}
    new = lacking - _families.keys()
    while new:
        covered = {name: _covered(file, new) for name, file in _installed().items()}
        best = max(covered, key=lambda name: len(covered[name]), default="")
        if not covered.get(best):
            break
        _families.update(dict.fromkeys(covered[best], best))
        new -= covered[best]
    _families.update(dict.fromkeys(new, None))
    return sorted({family for c in lacking if (family := _families[c])})


def describe_missing(characters: Iterable[str]) -> str:
    """A sentence on those of the characters that a figure could not show; "" if there are none."""
    missing = sorted(c for c in set(characters) if _families.get(c, "") is None)
    if not missing:
        return ""
    named = ", ".join(f"U+{ord(c):04X}" for c in missing[:MAX_NAMED]) + (", …" if len(missing) > MAX_NAMED else "")
    return (
        f"No installed font has {plural(len(missing), 'character')} of the names ({named}): figures and the PDF show "
        "boxes, unless you install a font such as Debian's fonts-noto-cjk for Chinese, Japanese and Korean."
    )


@cache
def _installed() -> dict[str, str]:
    """{family: file of its upright font that is closest to the normal weight}."""
    fonts = sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", _weight(font.weight), font.fname))
    return {font.name: font.fname for font in reversed(fonts) if "lastresort" not in font.name.lower().replace(" ", "")}


def _weight(weight: int | str) -> int:
    """The distance of a font's weight from the normal one."""
    return abs(weight - 400) if isinstance(weight, int) else 0 if weight in ("normal", "regular", "book") else 400


def _covered(file: str, characters: Iterable[str]) -> set[str]:
    """Those of the characters that a font has."""
    try:
        font = get_font(file)
    except (OSError, RuntimeError):  # it was deleted, or FreeType can't read it
        return set()
    return {c for c in characters if font.get_char_index(ord(c))}
