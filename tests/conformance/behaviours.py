"""What peers are expected to do, and which tests verify it.

`behaviours.toml` has the lines, the marks at the tests have their names, and
docs/topics/conformance.md is written from both: `python tests/conformance/behaviours.py`.
"""

import ast
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).with_name("behaviours.toml")
DOCUMENT = ROOT / "docs" / "topics" / "conformance.md"
MARK = "pytest.mark.behaviour"

INTRODUCTION = """\
# Conformance

What is expected of peers that replicate, line by line, and the tests that verify it. The lines, in
words of our own, are what the test suites of Couchbase Lite and Sync Gateway are about. A test
names its lines by a mark, `@pytest.mark.behaviour("P1")`; `pytest -m behaviour` runs all that have
one. This page is written from the marks and from `tests/conformance/behaviours.toml` by
`python tests/conformance/behaviours.py`, and a test compares it with them: a line without a test
and without a reason fails.

Where Couchbase Lite was recorded, the conversations themselves are replayed in both roles
(`tests/conformance/test_transcripts_*.py`).
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One expectation. At most one of `inapplicable` and `not_yet` tells why it has no test."""

    name: str
    text: str
    inapplicable: str = ""
    not_yet: str = ""
    differs: str = ""

    @property
    def number(self) -> tuple[str, int]:
        """The letter of its section and its number there."""
        letter, number = re.fullmatch(r"([A-Z])([0-9]+)[a-z]?", self.name).groups()
        return letter, int(number)


@dataclass(frozen=True, slots=True)
class Mark:
    """That a test verifies a line."""

    line: str
    path: str
    test: str


def read_lines(path: Path = DATA) -> tuple[dict[str, str], list[Line]]:
    """The titles of the sections, and the lines in order."""
    data = tomllib.loads(path.read_text())
    sections = data.pop("sections")
    return sections, [Line(name, **entry) for name, entry in data.items()]


def find_marks(directory: Path = ROOT / "tests") -> list[Mark]:
    """Every mark in the tests below a directory, in order of path and place."""
    found = []
    for path in sorted(directory.rglob("test_*.py")):
        for test, calls in _marked(ast.parse(path.read_text())):
            found += [
                Mark(argument.value, path.relative_to(directory.parent).as_posix(), test)
                for call in calls
                for argument in call.args
            ]
    return found


def _marked(tree: ast.Module) -> list[tuple[str, list[ast.Call]]]:
    """The marked tests of a module; one marked as a whole has no name."""
    marked = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                marked.append((node.name, node.decorator_list))
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                marked.append(("", [value]))
    return [(name, _marks_in(places)) for name, places in marked]


def _marks_in(places: list[ast.expr]) -> list[ast.Call]:
    return [
        node
        for place in places
        for node in ast.walk(place)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == MARK
    ]


def problems(lines: list[Line], marks: list[Mark]) -> list[str]:
    """What is wrong between them; nothing if every line has a test or a reason."""
    names = {line.name for line in lines}
    told = [
        f"{m.path}: {m.test} names {m.line}, which is no line" for m in marks if m.line not in names
    ]
    tested = {mark.line for mark in marks}
    for line in lines:
        reasons = bool(line.inapplicable) + bool(line.not_yet)
        if reasons > 1:
            told.append(f"{line.name} is not tested for two reasons")
        if reasons and line.name in tested:
            told.append(f"{line.name} has a test, and a reason why it has none")
        if not reasons and line.name not in tested:
            told.append(f"{line.name} has neither a test nor a reason")
    return told


def render(sections: dict[str, str], lines: list[Line], marks: list[Mark]) -> str:
    """The page."""
    parts = [INTRODUCTION, _summary(lines)]
    for letter, title in sections.items():
        parts.append(f"## {letter}. {title}\n")
        here = [line for line in lines if line.number[0] == letter]
        parts.append("".join(_entry(line, marks) for line in here))
    return "\n".join(parts)


def _summary(lines: list[Line]) -> str:
    states = Counter(_state(line) for line in lines)
    return "| | |\n| --- | --: |\n" + "".join(f"| {s} | {n} |\n" for s, n in states.most_common())


def _state(line: Line) -> str:
    if line.inapplicable:
        return "inapplicable"
    return "not yet tested" if line.not_yet else "tested"


def _entry(line: Line, marks: list[Mark]) -> str:
    said = [f"- **{line.name}** {line.text}"]
    if line.differs:
        said.append(f"*Ours differs:* {line.differs}")
    if line.inapplicable:
        said.append(f"*Inapplicable:* {line.inapplicable}")
    if line.not_yet:
        said.append(f"*Not yet:* {line.not_yet}")
    told = [fill(" ".join(said), 100, subsequent_indent="  ", break_long_words=False)]
    by_path: dict[str, list[str]] = {}
    for mark in marks:
        if mark.line == line.name:
            by_path.setdefault(mark.path, []).append(mark.test)
    for path, tests in by_path.items():
        told.append(
            f"  - [{Path(path).name}](../../{path})" + "".join(f"\n    `{t}`" for t in tests if t)
        )
    return "\n".join(told) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(*read_lines(), find_marks()))
    print("\n".join(problems(read_lines()[1], find_marks())))
