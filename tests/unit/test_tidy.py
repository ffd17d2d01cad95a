"""House rules that no linter knows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "trio_p2p").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Lines over which a module wants splitting; the largest ones are each one thing.
MODULE_LINES_MAX = 600
# Where anything a user's function or a peer causes may be caught: each says so in a comment.
GUARD = re.compile(r"except Exception\b.*# .*[Gg]uard")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", PACKAGE, ids=names(PACKAGE))
def test_a_module_is_documented_and_of_bounded_size(path: Path) -> None:
    text = path.read_text()
    if text:
        assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", PACKAGE, ids=names(PACKAGE))
def test_exceptions_are_caught_broadly_in_guards_only(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert "except:" not in line
        if "except Exception" in line:
            assert GUARD.search(line), line


@pytest.mark.parametrize("path", TESTS, ids=names(TESTS))
def test_tests_do_not_sleep_retry_or_skip(path: Path) -> None:
    text = path.read_text()
    # On a clock that jumps a sleep takes no time, and is a way to let it pass.
    clock_jumps = "autojump" in text or "TrioDriver" in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("skip", "skipif", "xfail", "flaky")
            assert ast.unparse(node) != "time.sleep"
            assert ast.unparse(node) != "trio.sleep" or clock_jumps
