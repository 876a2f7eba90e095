"""Texts as words, queries as terms, snippets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ship.errors import InvalidInput
from ship.words import Term, parse, snippet, storable, words


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


@given(st.text(), st.text())
def test_nothing_that_is_typed_breaks_it(text: str, query: str) -> None:
    storable(text).encode()
    assert all(word.isalnum() and word for word in words(text))
    try:
        terms = parse(query)
    except InvalidInput:
        return
    snippet(text, terms)
