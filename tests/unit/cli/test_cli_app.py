"""How the program is used, and how it ends."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from trio_p2p.cli import main

URL = "wss://127.0.0.1:4984/shop"
SYNC = ["sync", "till.p2p"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*SYNC, "http://127.0.0.1/shop"],
        [*SYNC, "wss://127.0.0.1"],
        [*SYNC, URL, "--pin", "abc"],
        [*SYNC, URL, "--pin", "00" * 32, "--self-signed"],
        [*SYNC, URL.replace("wss", "ws"), "--self-signed"],
        [*SYNC, URL, "--ca", "missing.pem"],
        [*SYNC, URL, "--ca", __file__],
        [*SYNC, URL, "--user", "ann:s3cret", "--identity", "till"],
        [*SYNC, URL.replace("wss", "ws"), "--identity", "till"],
        ["listen", "shop.p2p", "--users", "missing"],
        ["listen", "shop.p2p", "--users", __file__, "--user", "ann:s3cret"],
        ["listen", "shop.p2p", "--no-tls", "--identity", "till"],
        ["identity", "dance"],
        ["identity", "create", "till", "--days", "0"],
        [*SYNC, URL, "--attempts", "0"],
        [*SYNC, URL, "--user", ":password"],
        [*SYNC, URL, "--collection", "_notes"],
        ["listen", "shop.p2p", "--port", "65536"],
        ["demo", "--documents", "9"],
        ["demo", "--dataset", "planets"],
        ["import", "shop.p2p", "missing.jsonl"],
        ["dance"],
    ],
)
def test_wrong_usage_ends_with_2_and_makes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_password_is_refused_where_nobody_can_be_asked() -> None:
    result = CliRunner().invoke(
        main, [*SYNC, URL, "--user", "ann"], env={"TRIO_P2P_PASSWORD": None}
    )
    assert result.exit_code == 2
    assert "TRIO_P2P_PASSWORD" in result.stderr


def test_the_version_is_told() -> None:
    assert "version" in CliRunner().invoke(main, ["--version"]).stdout


def test_every_command_has_a_help_text() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
