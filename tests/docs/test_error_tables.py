"""What the page on errors says of classes and codes is what they are."""

import error_tables

from trio_p2p import errors


def test_the_page_shows_the_table_of_codes_and_what_is_tried_again() -> None:
    page = error_tables.PAGE.read_text()
    assert error_tables.filled(page) == page, "run tests/docs/error_tables.py"


def test_every_error_has_one_row() -> None:
    told = error_tables.told(error_tables.PAGE.read_text())
    assert sorted([*told, "TrioP2PError"]) == sorted(e.__name__ for e in error_tables.CLASSES)


def test_a_class_that_the_page_says_something_else_of_is_noticed() -> None:
    page = error_tables.PAGE.read_text()
    right = error_tables.tried_again(errors.PeerUnreachableError)
    wrong = page.replace(f"| {right} | wait;", "| no | wait;")
    assert wrong != page
    assert error_tables.filled(wrong) == page
