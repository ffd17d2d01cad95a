"""`passwd`: the users of a password file."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trio_p2p.cli import main
from trio_p2p.security.passwords import PasswordFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


def run(*arguments: object, password: str | None = "s3cret", status: int = 0) -> Result:
    environment = {"TRIO_P2P_PASSWORD": password}
    result = CliRunner().invoke(main, ["passwd", *map(str, arguments)], env=environment)
    assert result.exit_code == status, result.output
    return result


async def test_users_are_added_changed_and_removed(file: Path) -> None:
    assert "ann added" in run(file, "ann").stderr
    assert "bob added" in run(file, "bob").stderr
    assert "new password" in run(file, "ann", password="other").stderr
    users = PasswordFile(file)
    assert users.users == ("ann", "bob")
    assert await users.check("ann", "other")
    assert not await users.check("ann", "s3cret")
    assert "bob removed" in run(file, "bob", "--delete").stderr
    assert users.users == ("ann",)
    assert "no user 'bob'" in run(file, "bob", "--delete", status=1).stderr


def test_the_password_is_asked_for_twice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prompt(text: str, **settings: object) -> str:
        asked.append((text, settings))
        return "s3cret"

    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr("trio_p2p.cli.options._is_terminal", lambda: True)
    run(file, "ann", password=None)
    [(text, settings)] = asked
    assert "ann" in text
    assert settings["hide_input"] is True
    assert settings["confirmation_prompt"] is True


def test_where_nobody_can_be_asked_the_password_must_be_given(file: Path) -> None:
    assert "TRIO_P2P_PASSWORD" in run(file, "ann", password=None, status=2).stderr
    assert not file.exists()


def test_a_name_that_cannot_be_is_refused(file: Path) -> None:
    run(file, "a:b", status=1)
    assert not file.exists()
