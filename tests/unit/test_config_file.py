"""The configuration file: its two forms, its keys, the lines that faults name."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.config import option_fields
from wscluster.config_file import parse_config_file
from wscluster.config_text import show_config
from wscluster.sources import Sources, flag_values, resolve


def parse(text: str, name: str = "wscluster.toml") -> tuple[dict[str, Any], list[str]]:
    found = parse_config_file(text, name)
    assert found is not None
    values, problems = found
    return {field: (given.value, given.place) for field, given in values.items()}, problems


@pytest.mark.parametrize(
    ("name", "head", "line"),
    [
        ("wscluster.toml", "", 1),
        ("wscluster.toml", "[tool.wscluster]\n", 2),
        ("pyproject.toml", "[project]\nport = 1\n\n[tool.wscluster]\n", 5),
        ("a/pyproject.toml", "[tool]\nother = '''\nport = 2\n'''\n[ tool . \"wscluster\" ]  # ours\n", 6),
        ("other.toml", "# port = 3\n", 2),
    ],
)
def test_both_forms_of_the_file_with_the_line_of_each_key(name: str, head: str, line: int) -> None:
    text = f'{head}port = 80\n"slot-wait" = "1m"\nbind = [\n  "a:1", # port = 4\n]\nworkers = "auto"\n'
    values, problems = parse(text, name)
    assert problems == []
    assert values == {
        "port": (80, f"{name}:{line}: port"),
        "slot_wait": ("1m", f"{name}:{line + 1}: slot-wait"),
        "bind": (["a:1"], f"{name}:{line + 2}: bind"),
        "workers": ("auto", f"{name}:{line + 5}: workers"),
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tool.wscluster.port = 1\n", 1),
        ("[tool]\nwscluster = { host = 'a', port = 1 }\n", 2),
        ("[tool]\nwscluster.port = 1\n", 2),
        ("[other]\nport = 2\n[tool.wscluster]\nhost = '''\nport = 3\n'''\n'port' = 1\n", 7),
        ("[tool.wscluster]\nhost = '# port = 3'\n  port=1\n[tool.wsclusters]\nport=3", 3),
        ("[tool.wscluster]\nport = 1  # the last line has no end", 2),
    ],
)
def test_every_way_to_write_the_table(text: str, line: int) -> None:
    values, problems = parse(text, "pyproject.toml")
    assert problems == []
    assert values["port"] == (1, f"pyproject.toml:{line}: port")


def test_a_key_is_found_however_it_is_written() -> None:
    assert parse('\n"p\\u006frt" = 1\n') == ({"port": (1, "wscluster.toml:2: port")}, [])


@pytest.mark.parametrize(
    "head",
    [
        "".join(f"[table{number}]\nport = {number}\n" for number in range(5000)),
        "[project]\ndependencies = [\n" + '  "one",\n' * 9997 + "]\n",
        '[project]\nreadme = """\n' + "text\n" * 9997 + '"""\n',
    ],
    ids=["tables", "list", "text"],
)
def test_a_large_file_is_read_in_no_time(head: str) -> None:
    begun = time.process_time()
    found = parse(f"{head}[tool.wscluster]\nport = 1\n", "pyproject.toml")
    assert found == ({"port": (1, "pyproject.toml:10002: port")}, [])
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("text", ["", "[tool.other]\nport = 1\n", "[project]\nname = 'x'\n", "tool = 3\n"])
def test_a_pyproject_without_the_table_says_nothing(text: str) -> None:
    assert parse_config_file(text, "pyproject.toml") is None
    assert parse_config_file(text, "a\\pyproject.toml") is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("port = 1\nport = 2\n", "wscluster.toml:2: this is not TOML: Cannot overwrite a value"),
        ("port\n", "wscluster.toml:1: this is not TOML: Expected '=' after a key in a key/value pair (column 5)"),
        ("host = '''", "wscluster.toml: this is not TOML: "),
        ("port = " + "9" * 5000, "wscluster.toml: this is not TOML: Exceeds the limit"),
        ("bind = " + "[" * 100_000, "wscluster.toml: this is not TOML: "),
        ("a = 1\nws_max_sise = 2\n", "wscluster.toml:1: there is no option 'a'; `wscluster serve --help` lists"),
        ("ws-max-sise = 2\n", "wscluster.toml:1: there is no option 'ws-max-sise'; did you mean ws-max-size?"),
        ("ws_max_sise = 2\n", "wscluster.toml:1: there is no option 'ws_max_sise'; did you mean ws_max_size?"),
        ("\n[listen]\nport = 2\n", "wscluster.toml:2: there is no option 'listen'; the options stand in no tables"),
        (
            "ws-max-size = 1\nws_max_size = 2\n",
            "wscluster.toml:2: ws_max_size stands in the file twice, as ws-max-size",
        ),
        ("tool.wscluster = 3\n", "wscluster.toml:1: tool.wscluster 3: a table is wanted"),
        ("[[tool.wscluster]]\nport = 3\n", "wscluster.toml:1: tool.wscluster [{'port': 3}]: a table is wanted"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(text: str, fault: str) -> None:
    _, problems = parse(text)
    assert problems[0].startswith(fault), problems
    assert all(problem.isprintable() for problem in problems)


@given(st.text(st.sampled_from("port=[]{}'\"\n#.- 1\\")) | st.text())
def test_any_text_is_a_file_or_a_fault(text: str) -> None:
    found = parse_config_file(text, "f.toml")
    assert found is not None
    values, problems = found
    assert all(given.place.startswith("f.toml") for given in values.values())
    assert all(problem.startswith("f.toml") for problem in problems)


OTHERS = st.sampled_from(
    [
        "# port = 1\n",
        "\n",
        "host = '''\nport = 7\n'''\n",
        "bind = [\n 'port = 1',\n]\n",
        "log_level = 'info' # port = 2\n",
        'uds = """["\n port = 3\n"""""\n',
        "app_dir = '''#\n]''''\n",
        "subprotocols = ['''a'''', '#[', \"\"\"b\"\"\"\", # ]\n]\n",
    ]
)


@given(before=st.lists(OTHERS, unique=True), after=st.lists(OTHERS, unique=True, max_size=1))
def test_the_line_of_a_key_is_the_one_that_sets_it(before: list[str], after: list[str]) -> None:
    head = "".join(before)
    tail = "".join(text for text in after if text not in before)
    values, problems = parse(f"{head}port = 5\n{tail}")
    line = head.count("\n") + 1
    assert problems == []
    assert values["port"] == (5, f"wscluster.toml:{line}: port")


# As it is shown


def test_what_is_shown_says_where_each_value_comes_from_and_can_be_read_again() -> None:
    file = parse_config_file('target = "h:chat"\nslot-wait = "1m"\nsubprotocols = ["a", "b"]\nworkers = 3\n', "w.toml")
    assert file is not None
    resolved = resolve(Sources(environment={"PORT": "81"}, file=file[0]))
    lines = show_config(resolved).splitlines()
    assert len(lines) == len(option_fields()) + 1
    for name, comment in {
        "target": "file w.toml:1", "port": "variable PORT", "subprotocols": "file w.toml:3",
        "slot_wait": "file w.toml:2", "host": "default", "redis_url": "default",
    }.items():  # fmt: skip
        (line,) = [line for line in lines if line.split()[0] == name or line.startswith(f"# {name} ")]
        assert line.endswith(f"  # {comment}"), line
    again = parse_config_file("\n".join(lines), "again.toml")
    assert again is not None
    assert again[1] == []
    assert resolve(Sources(file=again[0])).config == resolved.config


def test_of_the_ways_to_listen_the_one_that_is_used_is_shown() -> None:
    resolved = resolve(Sources("a:b", environment={"WSCLUSTER_UDS": "/a"}))
    lines = show_config(resolved).splitlines()
    unset = ["# host is not set", "# port is not set", "# bind is not set"]
    assert [line.split("  ")[0] for line in lines[1:4]] == unset
    again = parse_config_file("\n".join(lines), "again.toml")
    assert again is not None
    assert resolve(Sources(file=again[0])).config == resolved.config


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_text_that_is_shown_can_be_read_again(text: str) -> None:
    resolved = resolve(Sources("a:b", environment={"WSCLUSTER_HOST": text}))
    again = parse_config_file(show_config(resolved), "again.toml")
    assert again is not None
    assert resolve(Sources(file=again[0])).config.listen.host == text


def test_no_password_is_shown() -> None:
    environment = {"REDIS_URL": "redis://u:sesame@h", "WSCLUSTER_SSL_KEYFILE_PASSWORD": "sesame"}
    shown = show_config(resolve(Sources("a:b", environment=environment, flags=flag_values({"ssl_certfile": "a.pem"}))))
    assert "sesame" not in shown
    assert f"redis_url = {json.dumps('redis://u:***@h')}" in shown
    assert 'ssl_keyfile_password = "***"' in shown
