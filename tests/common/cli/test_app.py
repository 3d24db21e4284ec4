from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.cli import app
from common.cli.console import PrefixedLines
from common.cli.settings_table import markdown_table
from common.settings import Settings

COMMANDS = ("up", "generate", "status", "settings", "dead-letters")


def test_the_console_script_is_this_app() -> None:
    (script,) = entry_points(group="console_scripts", name="slos-serve")
    assert script.load() is app


def test_the_version_is_the_package_s() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"slos-serve {version('slos-serve')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_without_a_command_the_help_is_shown() -> None:
    output = CliRunner().invoke(app, []).output
    assert all(command in output for command in COMMANDS)


def test_the_settings_table_has_every_setting_with_its_default() -> None:
    table = markdown_table()
    assert table.count("\n") == len(Settings.model_fields) + 1
    assert "| `SLOS_PORT` | `8000` | port of the api |" in table
    assert "| `SLOS_API_KEYS` | - |" in table


def test_settings_are_printed_as_text_and_as_markdown() -> None:
    assert "SLOS_REDIS_URL" in CliRunner().invoke(app, ["settings"]).stdout
    assert CliRunner().invoke(app, ["settings", "--markdown"]).stdout == markdown_table() + "\n"


def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOS_PORT", "sesame")
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 2
    assert "SLOS_PORT" in result.stderr
    assert "sesame" not in result.stderr


def test_up_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["up", "--port", str(port), "--data", str(tmp_path)], env={"SLOS_PORT": None})
    assert result.exit_code == 1
    assert f"port {port} of 127.0.0.1 is taken" in result.stderr


def test_lines_are_aligned_behind_their_process_s_name(capsys: pytest.CaptureFixture[str]) -> None:
    write = PrefixedLines(["api", "redis"], colour=False)
    write("api", "hello")
    write("redis", "[bold]as it is[/]")
    assert capsys.readouterr().out == "api   | hello\nredis | [bold]as it is[/]\n"


def test_each_process_has_a_colour_of_its_own_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write = PrefixedLines(["a", "b"], colour=True)
    write("a", "x")
    write("b", "x")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("\033[36ma | \033[0m")
    assert first.split("m")[0] != second.split("m")[0]
