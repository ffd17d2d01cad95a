"""The tables of docs/topics/errors-and-retry.md that follow from the code.

Run this file to write them into the page.
"""

import errno
import inspect
import re
from http import HTTPStatus
from pathlib import Path

from trio_p2p import errors
from trio_p2p.errors import AuthError, ReplicationError, TrioP2PError
from trio_p2p.retry import DNS_FAILURE, RETRY, UNKNOWN_HOST, UNKNOWN_INTERFACE, Retry

PAGE = Path(__file__).parents[2] / "docs/topics/errors-and-retry.md"

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, TrioP2PError)
]

_WEBSOCKET = {1006: "gone without a goodbye", 4001: "come back later"}
_NETWORK = {
    DNS_FAILURE: "no name server answers",
    UNKNOWN_HOST: "unknown host",
    3: "timeout",
    16: "network reset",
    17: "connection aborted",
    18: "connection reset",
    19: "connection refused",
    UNKNOWN_INTERFACE: "unknown network interface",
}


def tried_again(error: type[TrioP2PError]) -> str:
    """Whether a replicator tries again after an error of this class, as the page says it."""
    if error is ReplicationError:
        return "as its cause"
    if error is not AuthError and "retryable" in error.__init__.__code__.co_names:
        return "by its code"
    if error("x").retryable if error is AuthError else error.retryable:
        return "yes"
    return "if continuous" if error.network_dependent else "no"


def code_table() -> str:
    """Every code after which something is tried again, as Markdown."""
    domains = dict.fromkeys(domain for domain, _ in RETRY)
    head = ["domain", "always", "if continuous"]
    rows = [
        [domain, *(_cell(domain, retry) for retry in (Retry.ALWAYS, Retry.CONTINUOUS))]
        for domain in sorted(domains)
    ]
    return "\n".join(map(_line, [head, ["---"] * len(head), *rows]))


def filled(page: str) -> str:
    """The page with the table of codes, and the column of classes, as they are now."""
    pattern = re.compile("(<!-- table: codes -->\n).*?(<!-- end of table -->)", re.DOTALL)
    assert pattern.search(page)
    page = pattern.sub(lambda found: f"{found[1]}{code_table()}\n{found[2]}", page)
    for error in CLASSES:
        row = re.compile(rf"^(\| `{error.__name__}` \| [^|]* \| )[^|]*( \|)", re.MULTILINE)
        page = row.sub(rf"\g<1>{tried_again(error)}\2", page)
    return page


def told(page: str) -> list[str]:
    """The classes that have a row, in the order of the page."""
    return re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)


def _cell(domain: str, wanted: Retry) -> str:
    codes = sorted(c for (name, c), retry in RETRY.items() if (name, retry) == (domain, wanted))
    if domain == "POSIX":
        shown = sorted(f"`{errno.errorcode[code]}`" for code in codes)
    else:
        shown = [f"{code} ({_word(domain, code)})" for code in codes]
    return ", ".join(shown) or "\N{EN DASH}"


def _word(domain: str, code: int) -> str:
    if domain == "Network":
        return _NETWORK[code]
    return _WEBSOCKET.get(code) or HTTPStatus(code).phrase


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
