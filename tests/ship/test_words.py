"""Texts as words, queries as terms, snippets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ship.errors import InvalidInput
from ship.words import PASSAGE_CHARACTERS, TEXT_WORDS, Term, parse, passages, snippet, storable, words


def test_words_have_no_case_and_no_accents() -> None:
    assert words("Déjà-vu: login_button.css, STRASSE/straße ﬁn") == [
        *("deja", "vu", "login", "button", "css", "strasse", "strasse", "fin")
    ]
    assert words("漢字とABC") == ["漢", "字", "と", "abc"]
    assert words("e\u0301te\u0301") == words("été")
    assert words(" .,_- ") == []


def test_queries() -> None:
    assert parse('fix "the login" but* -draft -"old page"') == (
        Term(("fix",)),
        Term(("the", "login")),
        Term(("but",), prefix=True),
        Term(("draft",), excluded=True),
        Term(("old", "page"), excluded=True),
    )
    assert parse('snake_case "open end') == (Term(("snake", "case")), Term(("open", "end")))
    assert parse('"log in"*') == (Term(("log", "in"), prefix=True),)
    for empty in ("", "  ", "-only", '""', "* - _"):
        with pytest.raises(InvalidInput) as refused:
            parse(empty)
        assert refused.value.code == "search_empty"


def test_a_snippet_shows_where_it_was_said() -> None:
    text = "word " * 100 + "the\nNeedle, here" + " word" * 100
    marks = snippet(text, parse("needle her* -word"))
    shown = "".join(f"[{mark.text}]" if mark.match else mark.text for mark in marks)
    assert "the [Needle], [here]" in shown
    assert shown.startswith("…") and shown.endswith("…")
    assert len(shown) < 250
    assert snippet("short", parse("other"))[0].text == "short"


def test_a_snippet_marks_phrases_and_looks_no_further_than_a_text_is_found_by() -> None:
    def marked(text: str, query: str) -> list[str]:
        return [mark.text for mark in snippet(text, parse(query)) if mark.match]

    assert marked("one two, two three; thr", '"two thr"*') == ["two", "three"]
    assert marked("two one two three", '"one two" three') == ["one", "two", "three"]
    assert marked("word " * TEXT_WORDS + "needle", "needle") == []


def test_passages_are_cut_between_lines_and_words() -> None:
    lines = "\n".join(f"line {number} says something" for number in range(100))
    pieces = passages(lines)
    assert "\n".join(pieces) == lines
    assert all(len(piece) <= PASSAGE_CHARACTERS for piece in pieces)
    assert all(piece.startswith("line") for piece in pieces)
    first, second = "a paragraph " * 8, "another\n\nwith a short one"
    assert passages(f"{first}\n\n{second}") == [first.strip(), second]
    assert " ".join(passages("word " * 200)) == ("word " * 200).strip()
    assert passages("x" * 1000) == ["x" * 240] * 4 + ["x" * 40]
    assert passages(" \n -- ") == passages("") == []
    assert len(passages("words " * 1_000_000)) < 70


@given(st.text(), st.text())
def test_nothing_that_is_typed_breaks_it(text: str, query: str) -> None:
    storable(text).encode()
    assert all(word.isalnum() and word for word in words(text))
    try:
        terms = parse(query)
    except InvalidInput:
        return
    snippet(text, terms)


@given(st.text(max_size=2_000))
def test_passages_leave_no_word_out(text: str) -> None:
    assert all(piece and len(piece) <= PASSAGE_CHARACTERS for piece in passages(text))
    assert sorted("".join(words("".join(passages(text))))) == sorted("".join(words(text)))
