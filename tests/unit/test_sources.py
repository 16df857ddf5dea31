"""Which source wins, what each may hold, and how faults name it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.addresses import Address, Inherited, Tcp, UnixPath, parse_address, show_address
from wscluster.config import Config, ConfigError, Listen, flag_of, knows, option_fields
from wscluster.config_text import show_config
from wscluster.options import is_list, parse_value, show_value, take_value
from wscluster.sources import Given, Sources, argument_values, find_given, flag_values, resolve

TARGET = "handlers:chat"
NAMES = sorted(option_fields())


def texts_of(name: str) -> list[str]:
    """Return texts that mean something for an option."""
    item = option_fields()[name][1]
    if item.metadata["choices"]:
        return list(item.metadata["choices"])
    return {
        "str": ["a.b:c", "x"], "bool": ["true", "false", "no"], "int": ["7", "0077", "99"],
        "float": ["1", "2.5", "1h30m"], "tuple[str, ...]": ["a", "a, b"],
    }[str(item.type).removesuffix(" | None")]  # fmt: skip


def in_file(name: str, value: Any) -> Given:
    return Given(f"f.toml:1: {name}", "file f.toml:1", value, texts=False)


def value_of(config: Config, name: str) -> Any:
    return getattr(getattr(config, option_fields()[name][0]), name)


def faults(sources: Sources) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(sources)
    return caught.value.problems


@given(st.data())
def test_flags_win_over_the_environment_over_the_file_over_defaults(data: st.DataObject) -> None:
    flags: dict[str, tuple[str, ...]] = {}
    environment: dict[str, str] = {}
    file: dict[str, Given] = {}
    expected: dict[str, tuple[Any, str]] = {}
    for name in data.draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8)):
        item = option_fields()[name][1]
        expected[name] = (item.default, "default")
        texts = st.sampled_from(texts_of(name))
        if data.draw(st.booleans()):
            text = data.draw(texts)
            file[name] = in_file(name, value := parse_value(item, text))
            expected[name] = (value, "file f.toml:1")
        for variable in (*reversed(item.metadata["env"]), f"WSCLUSTER_{name.upper()}"):
            if data.draw(st.booleans()):
                environment[variable] = data.draw(texts)
                expected[name] = (parse_value(item, environment[variable]), f"variable {variable}")
        if data.draw(st.booleans()):
            flags[name] = (data.draw(texts),)
            expected[name] = (parse_value(item, flags[name][0]), f"flag {flag_of(name)}")
    sources = Sources(TARGET, flag_values(flags), environment, file)
    for name, (value, origin) in expected.items():
        item = option_fields()[name][1]
        given = find_given(name, sources)
        if given is None:
            assert origin == "default"
            continue
        assert given.origin == origin
        assert (parse_value(item, given.value[0]) if given.texts else given.value) == value


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_python_or_toml_is_its_own_text(name: str) -> None:
    item = option_fields()[name][1]
    for text in texts_of(name):
        value = parse_value(item, text)
        taken = take_value(item, list(value) if isinstance(value, tuple) else value)
        assert (taken, type(taken)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "80"), ("port", 80.0), ("port", True), ("port", [80]), ("port", 65536), ("port", {}), ("workers", "3"),
        ("slot_wait", True), ("slot_wait", "soon"), ("slot_wait", -1), ("slot_wait", float("inf")),
        ("slot_wait", float("nan")), ("slot_wait", 10**400), ("slot_wait", [1]), ("host", 1), ("host", ["a"]),
        ("access_log", "true"), ("access_log", 1), ("bind", 1), ("bind", [1]), ("bind", {"a": 1}), ("sticky", "glue"),
        ("sticky", 1), ("ws_max_size", 0), ("ssl_keyfile_password", 1), ("backlog", 2**31), ("fd", 2**31),
        ("allowed_origins", []), ("room_log", 2**31),
        ("control_socket", "a\0b"), ("subprotocols", ["a", "b\0"]), ("room_log_ttl", 10**10), ("slot_wait", "36501d"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_out_of_range_is_a_fault(name: str, value: object) -> None:
    (told,) = faults(Sources(TARGET, file={name: in_file(name, value)}))
    assert told.startswith(f"f.toml:1: {name} ")
    assert told.endswith((" is wanted", ", or auto"))
    (told,) = faults(Sources(TARGET, argument_values({name: value})))
    assert told.startswith(f"{name} ")


def test_numbers_durations_lists_and_auto_of_the_file() -> None:
    file = {"slot_wait": 3, "graceful_timeout": "1h", "bind": ["a:1", "unix:/a,b"], "subprotocols": "a,b"}
    config = resolve(
        Sources(TARGET, {}, {}, {name: in_file(name, value) for name, value in {**file, "workers": "auto"}.items()})
    ).config
    assert (config.placement.slot_wait, config.fleet.graceful_timeout, config.fleet.workers) == (3.0, 3600.0, None)
    assert (config.listen.bind, config.handshake.subprotocols) == (("a:1", "unix:/a,b"), ("a", "b"))


def test_a_flag_that_was_given_twice_is_a_fault_and_that_of_a_list_is_not() -> None:
    told = faults(Sources(TARGET, flag_values({"port": ("1", "1"), "access_log": ("true", "false")})))
    assert told == [
        "--port: it was given twice, and holds one value",
        "--access-log: it was given twice, and holds one value",
    ]
    given = flag_values({"bind": ("a:1", "b:2, c:3"), "port": ()})
    assert resolve(Sources(TARGET, given)).config.listen.bind == ("a:1", "b:2", "c:3")


def test_every_source_tells_its_faults_at_once() -> None:
    told = faults(
        Sources(
            None,
            flag_values({"port": ("x",)}),
            {"WSCLUSTER_WORKERS": "0", "WSCLUSTER_ROOM_LOG": "-"},
            {"target": in_file("target", 3), "sticky": in_file("sticky", "glue"), "port": in_file("port", "unseen")},
            {"WSCLUSTER_ROOM_LOG": ".env:4"},
            ("f.toml:2: there is no option 'a'",),
        )
    )
    assert [fault.partition(" ")[0] for fault in told] == [
        "f.toml:1:", "f.toml:2:", "--port", "WSCLUSTER_WORKERS", "f.toml:1:", ".env:4:",
    ]  # fmt: skip
    assert told[0] == "f.toml:1: target 3: module:attribute is wanted, such as handlers:chat"


def test_a_contradiction_names_where_its_value_stands() -> None:
    (told,) = faults(Sources(TARGET, file={"balance": in_file("balance", "random")}))
    assert told == "f.toml:1: balance random needs --sticky none"
    (told,) = faults(Sources(TARGET, environment={"WSCLUSTER_BALANCE": "random"}))
    assert told == "WSCLUSTER_BALANCE random needs --sticky none"


def test_options_of_tls_without_a_certificate_are_all_told_without_the_password() -> None:
    environment = {"WSCLUSTER_SSL_KEYFILE_PASSWORD": "sesame"}
    file = {"ssl_ca_certs": in_file("ssl_ca_certs", "ca.pem")}
    assert faults(Sources(TARGET, flag_values({"ssl_keyfile": "a.key"}), environment, file)) == [
        "--ssl-keyfile needs --ssl-certfile",
        "WSCLUSTER_SSL_KEYFILE_PASSWORD needs --ssl-certfile",
        "f.toml:1: ssl_ca_certs needs --ssl-certfile",
    ]


def test_the_target_of_the_command_line_wins_over_that_of_the_file() -> None:
    file = {"target": in_file("target", "a:b")}
    assert resolve(Sources(None, file=file)).config.target == "a:b"
    resolved = resolve(Sources("c:d", file=file))
    assert (resolved.config.target, resolved.origins["target"]) == ("c:d", "argument TARGET")
    (told,) = faults(Sources())
    assert told.startswith("no target is given")


def test_a_wrong_value_that_is_long_is_cut_and_a_secret_one_is_hidden() -> None:
    (told,) = faults(Sources(TARGET, flag_values({"port": ("9" * 5000,)})))
    assert len(told) < 250
    (told,) = faults(Sources(TARGET, argument_values({"ssl_keyfile_password": 12345})))
    assert "12345" not in told


def test_lists_are_known() -> None:
    assert {name for name, (_, item) in option_fields().items() if is_list(item)} >= {"bind", "subprotocols"}


def test_a_target_that_may_stand_in_a_file_that_cannot_be_read_is_not_missed() -> None:
    assert faults(Sources(problems=("f.toml:1: this is not TOML",))) == ["f.toml:1: this is not TOML"]


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (("a", "b"), "a,b"), (2.0, "2"), (0.001, "0.001"), (7, "7"), ("x", "x")]
)
def test_a_value_as_a_person_would_write_it(value: object, text: str) -> None:
    assert show_value(value) == text


def test_a_kind_of_target_that_there_is_none_of_is_refused() -> None:
    (told,) = faults(Sources(TARGET, flag_values({"interface": ("wsgi",)})))
    assert told == "--interface 'wsgi': one of auto, handler, asgi is wanted"


@pytest.mark.parametrize("name", ["proxy_allow_from", "forwarded_allow_ips"])
def test_a_network_that_is_none_names_where_it_stands(name: str) -> None:
    (told,) = faults(Sources(TARGET, file={name: in_file(name, ["10.0.0.0/8", "10.0.0.1/33"])}))
    assert told.startswith(f"f.toml:1: {name} '10.0.0.1/33': ")


# Where to listen


@pytest.mark.parametrize(
    ("flags", "environment", "file", "listen"),
    [
        ({"uds": "/a"}, {"WSCLUSTER_HOST": "h", "PORT": "1"}, {"bind": ["a:1"]}, Listen(uds="/a")),
        ({"port": "1"}, {"WSCLUSTER_UDS": "/a"}, {"fd": 3, "host": "h"}, Listen(host="h", port=1)),
        ({}, {"PORT": "1", "WSCLUSTER_FD": "3"}, {}, Listen(fd=3)),
        ({}, {"PORT": "1"}, {"uds": "/a"}, Listen(port=1)),
        ({}, {"WSCLUSTER_PORT": "1"}, {"host": "h"}, Listen(host="h", port=1)),
        ({}, {}, {"host": "h", "port": 1, "bind": []}, Listen(host="h", port=1)),
        ({"bind": "a:1"}, {}, {"host": "h"}, Listen(bind=("a:1",))),
    ],
)
def test_the_strongest_source_decides_where_to_listen(
    flags: dict[str, str], environment: dict[str, str], file: dict[str, object], listen: Listen
) -> None:
    given = {name: replace(in_file(name, value), rank=3) for name, value in file.items()}
    assert resolve(Sources(TARGET, flag_values(flags), environment, given)).config.listen == listen


@pytest.mark.parametrize(
    ("flags", "environment", "fault"),
    [
        ({"uds": "/a", "host": "h"}, {}, "--uds and --host: one of them says where to listen, not both"),
        ({"bind": "a:1", "port": "2"}, {}, "--bind and --port: one of them says where to listen, not both"),
        ({"bind": "a:1", "uds": "/a", "fd": "3"}, {}, "--bind and --uds and --fd: one of them"),
        ({}, {"WSCLUSTER_FD": "3", "WSCLUSTER_PORT": "1"}, "WSCLUSTER_FD and WSCLUSTER_PORT: one of them"),
        ({"fd": "3", "ready_fd": "3"}, {}, "--ready-fd 3: this is the socket to listen on, --fd"),
        ({"bind": "a:1,fd:3", "ready_fd": "3"}, {}, "--ready-fd 3: this is the socket to listen on, --bind"),
        ({"bind": "a:1,a"}, {}, "--bind 'a': HOST:PORT, [V6]:PORT, unix:PATH or fd:N is wanted"),
        ({"bind": "a:1,fd:3,fd:3"}, {}, "--bind 'fd:3' stands there twice"),
        ({"on_event": "nope"}, {}, "--on-event 'nope': module:function is wanted"),
        ({}, {"WSCLUSTER_ON_EVENT": "a:b-c"}, "WSCLUSTER_ON_EVENT 'a:b-c': module:function is wanted"),
        ({"uds": ""}, {}, "--uds the path of a Unix socket is wanted"),
        ({"fd": "3"}, {"WSCLUSTER_BIND": "nonsense", "WSCLUSTER_SLOT_WAIT": "x"}, "WSCLUSTER_SLOT_WAIT 'x'"),
    ],
)
def test_two_ways_to_listen_in_one_source_and_addresses_that_are_none(
    flags: dict[str, str], environment: dict[str, str], fault: str
) -> None:
    (told,) = faults(Sources(TARGET, flag_values(flags), environment))
    assert told.startswith(fault)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h:1", Tcp("h", 1)), ("127.0.0.1:0", Tcp("127.0.0.1", 0)), ("[::1]:65535", Tcp("::1", 65535)),
        (":80", Tcp("", 80)), ("[]:80", Tcp("", 80)), ("unix:a b", UnixPath("a b")), ("unix:/a:b", UnixPath("/a:b")),
        ("fd:3", Inherited(3)),
    ],
)  # fmt: skip
def test_an_address(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(show_address(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "h", "h:", "h:65536", "h:-1", "::1:80", "[::1]", "[::1:80", "h:1:2", "unix:", "unix:a\0", "fd:", "fd:x",
     "fd:-1", "h:٣", "fd:9999999999"],
)  # fmt: skip
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"is wanted$"):
        parse_address(text)


# Programs

PROGRAM = ("server.py", "--port", "9")


def test_a_program_stands_in_for_a_target() -> None:
    resolved = resolve(Sources(run=PROGRAM, flags=flag_values({"workers": "3"}), file={"target": in_file("target", 7)}))
    assert (resolved.config.target, resolved.config.run, resolved.config.fleet.workers) == ("", PROGRAM, 3)


def test_what_only_serve_knows_is_not_looked_at_for_a_program() -> None:
    environment = {"PORT": "x", "WSCLUSTER_HOST": "", "WSCLUSTER_PORT": "y", "WSCLUSTER_BACKLOG": "7"}
    file = {"port": in_file("port", "z"), "uds": in_file("uds", 3), "slot_wait": in_file("slot_wait", "1m")}
    resolved = resolve(Sources(run=PROGRAM, environment=environment, file=file))
    assert replace(resolved.config.listen, backlog=2048) == Listen()
    assert (resolved.config.listen.backlog, resolved.config.placement.slot_wait) == (7, 60)
    assert {name for name in NAMES if name not in resolved.origins} == {
        name for name in NAMES if not knows("run", name)
    }
    assert "port" not in resolved.origins


def test_what_both_verbs_know_is_judged_for_a_program_too() -> None:
    sources = Sources(run=PROGRAM, environment={"WSCLUSTER_WORKERS": "0"}, file={"slot_wait": in_file("slot_wait", -1)})
    assert [line.split()[0] for line in faults(sources)] == ["WSCLUSTER_WORKERS", "f.toml:1:"]


def test_a_program_that_is_given_as_a_target_is_told_of_the_verb_that_runs_it() -> None:
    assert faults(Sources("server.py")) == [
        "target 'server.py': this is a program, which `wscluster run` runs; module:attribute is wanted here"
    ]


def test_what_a_program_is_shown_with() -> None:
    text = show_config(resolve(Sources(run=PROGRAM)))
    assert text.startswith('# run ["server.py", "--port", "9"]\nbacklog = 2048 ')
    assert "target" not in text
