"""Texts as words: what search compares, the same on every store.

A word is a run of letters and digits, without case and accents; each ideograph and kana is a word of its own. A query is words, all
of which have to be in one text; "several words" in quotes stand side by side; a word* may go on; -word must not be there.
"""

import itertools
import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ship.errors import InvalidInput

WORD_CHARACTERS = 64
"""What is longer is cut: nobody types it."""
TEXT_WORDS = 15_000
"""So much of a text is found by."""
QUERY_TERMS = 32
PASSAGE_CHARACTERS = 240
MEANING_CHARACTERS = 60 * PASSAGE_CHARACTERS
"""So much of a text is found by its meaning."""
SNIPPET_CHARACTERS = 200
_LEAD_CHARACTERS = 60

_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
_TERM = re.compile(r'(-?)(?:"([^"]*)"?(\*?)|(\S+))')


class Term(NamedTuple):
    """Words side by side, the last of which may be the beginning of one; ``excluded`` when they must not be there. A word is as
    ``words`` makes it."""

    words: tuple[str, ...]
    prefix: bool = False
    excluded: bool = False


class Mark(NamedTuple):
    """A piece of a snippet. ``match`` says whether it was looked for."""

    text: str
    match: bool


def words(text: str) -> list[str]:
    """The text's words, in order."""
    found = []
    for word, _, _ in _words(text):
        found.append(word)
        if len(found) == TEXT_WORDS:
            break
    return found


def parse(query: str) -> tuple[Term, ...]:
    """What is looked for.

    Raises:
        InvalidInput: ``search_empty`` when no word is to be there, ``search_too_long``.
    """
    terms = []
    for minus, quoted, star, plain in _TERM.findall(query):
        found = tuple(words(quoted or plain))
        if found:
            terms.append(Term(found, bool(star) or plain.endswith("*"), bool(minus)))
    if all(term.excluded for term in terms):
        raise InvalidInput(
            "there is no word to look for",
            code="search_empty",
            hint='Words, "phrases in quotes", beginnings*, and -not.',
        )
    if sum(len(term.words) for term in terms) > QUERY_TERMS:
        raise InvalidInput(f"at most {QUERY_TERMS} words", code="search_too_long")
    return tuple(terms)


def snippet(text: str, terms: Sequence[Term]) -> list[Mark]:
    """Where the text says it first, on one line, what was looked for marked."""
    text = unicodedata.normalize("NFC", text)
    hits = _first_hits(text, [term for term in terms if not term.excluded])
    start = max(0, hits[0][0] - _LEAD_CHARACTERS) if hits else 0
    end = min(len(text), start + SNIPPET_CHARACTERS)
    marks, at = [Mark("…", False)] if start else [], start
    for first, last in hits:
        if first >= at and last <= end:
            marks += [Mark(text[at:first], False), Mark(text[first:last], True)]
            at = last
    marks += [Mark(text[at:end], False), Mark("…" if end < len(text) else "", False)]
    lined = (Mark(re.sub(r"\s+", " ", mark.text), mark.match) for mark in marks)
    return [mark for mark in lined if mark.text]


def passages(text: str) -> list[str]:
    """The text in pieces that are about one thing each: cut between paragraphs, or else between lines, or else between words."""
    found: list[str] = []
    rest = text[:MEANING_CHARACTERS].strip()
    while rest:
        end = _passage_end(rest)
        piece, rest = rest[:end].strip(), rest[end:].strip()
        if _WORD.search(piece):
            found.append(piece)
    return found


def storable(text: str) -> str:
    """The text as every store can keep it."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def _passage_end(text: str) -> int:
    paragraph = text.find("\n\n", PASSAGE_CHARACTERS // 3, PASSAGE_CHARACTERS)
    if paragraph >= 0:
        return paragraph
    if len(text) <= PASSAGE_CHARACTERS:
        return len(text)
    for end in ("\n", " "):
        place = text.rfind(end, PASSAGE_CHARACTERS // 2, PASSAGE_CHARACTERS)
        if place >= 0:
            return place
    return PASSAGE_CHARACTERS


def _first_hits(text: str, terms: Sequence[Term]) -> list[tuple[int, int]]:
    """(where it begins, where it ends) of each word that was looked for, in order, as far as a snippet from the first one on goes."""
    whole: dict[str, list[Term]] = {}
    for term in terms:
        if not term.prefix:
            whole.setdefault(term.words[-1], []).append(term)
    begun = [term for term in terms if term.prefix]
    hits: set[tuple[int, int]] = set()
    run: deque[tuple[str, int, int]] = deque(maxlen=QUERY_TERMS)
    for place in itertools.islice(_words(text), TEXT_WORDS):
        run.append(place)
        word, start, _ = place
        for term in (*whole.get(word, ()), *(term for term in begun if word.startswith(term.words[-1]))):
            said = list(run)[-len(term.words) :]
            if [word for word, _, _ in said[:-1]] == list(term.words[:-1]):
                hits.update((start, end) for _, start, end in said)
        if hits and start > min(hits)[0] + SNIPPET_CHARACTERS:
            break
    return sorted(hits)


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """(word, where it begins, where it ends)."""
    for found in _WORD.finditer(unicodedata.normalize("NFC", text)):
        plain = unicodedata.normalize("NFKD", found[0]).casefold()
        word = "".join(character for character in plain if character.isalnum())[:WORD_CHARACTERS]
        if word:
            yield word, found.start(), found.end()
