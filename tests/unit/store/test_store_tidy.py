"""No transaction lives across an await: a rule that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trio_p2p

PACKAGE = Path(trio_p2p.__file__).parent
SUSPENDING = (
    ast.Await,
    ast.AsyncFor,
    ast.AsyncWith,
    ast.Yield,
    ast.YieldFrom,
    ast.AsyncFunctionDef,
)


def opens_transaction(node):
    return isinstance(node, ast.With) and any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("read", "begin")
        for item in node.items
        for call in ast.walk(item.context_expr)
    )


def suspensions(source):
    """Lines where something may be suspended while a transaction is open."""
    return sorted(
        {
            inner.lineno
            for node in ast.walk(ast.parse(source))
            if opens_transaction(node)
            for inner in ast.walk(node)
            if isinstance(inner, SUSPENDING)
        }
    )


@pytest.mark.parametrize(
    "body", ["await x()", "yield 1", "async for y in z: pass", "async with y: pass"]
)
@pytest.mark.parametrize("opening", ["engine.read() as txn", "a, env.begin(write=True) as txn"])
def test_the_rule_finds_what_suspends(opening, body):
    assert suspensions(f"async def f():\n  with {opening}:\n    {body}\n") == [3]
    assert suspensions(f"async def f():\n  with {opening}:\n    pass\n  {body}\n") == []


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_is_suspended_while_a_transaction_is_open(path):
    assert suspensions(path.read_text()) == []
