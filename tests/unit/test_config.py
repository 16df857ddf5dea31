"""What a person gives: defaults, precedence, ranges, faults, and passwords that are never shown."""

import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.config import (
    GROUPS,
    Config,
    ConfigError,
    flag_of,
    from_json,
    knows,
    option_fields,
    to_json,
    value_for,
)
from wscluster.handshake_options import FUNCTIONS
from wscluster.options import default_text, parse_value
from wscluster.sources import Sources, flag_values
from wscluster.sources import resolve as resolve_sources
from wscluster.urls import find_url_fault, hide_password

TARGET = "handlers:chat"

# As the public contract writes them.
DEFAULTS = """
--host 127.0.0.1 --port 8000 --workers auto --sticky ip --backlog 2048 --graceful-timeout 30 --log-level info
--ws-ping-interval 20 --ws-ping-timeout 20 --ws-open-timeout 10 --ws-close-timeout 10 --timeout-worker-healthcheck 30
--worker-startup-timeout 60 --drain-rate 0 --slot-wait 2 --bus-timeout 5 --max-send-queue 1048576 --room-log 100
--room-log-ttl 60
--redis-prefix wscluster --ws-per-message-deflate true --app-dir .
--proxy-protocol off --proxy-allow-from 127.0.0.0/8,::1/128 --proxy-headers true --forwarded-allow-ips 127.0.0.1,::1
--interface auto --ws-message-timeout 20 --factory false --lifespan auto --timeout-keep-alive 5 --server-header true
--log-format text --metrics false --metrics-address 127.0.0.1 --metrics-port 9464
--date-header true --reload false --reload-delay 0.25
"""
KINDS = {
    "ws_max_size": {"handlers": 1048576, "ASGI": 16777216},
    "ws_max_queue": {"handlers": 16, "ASGI": 32},
    "access_log": {"handlers": False, "ASGI": True},
}
NO_DEFAULT = {
    "balance", "redis_url", "ready_fd", "control_socket", "uds", "fd", "env_file", "ssl_certfile", "ssl_keyfile",
    "ssl_keyfile_password", "ssl_ca_certs", "process_request", "process_response", "select_subprotocol", "basic_auth",
    "limit_connections", "limit_connections_per_ip", "limit_connect_rate_per_ip", "limit_concurrency",
    "on_event", "log_file", "workers_lifetime", "workers_max_rss", "limit_max_messages", *KINDS,
}  # fmt: skip
EMPTY = {"bind", "subprotocols", "allowed_origins", "header", "reload_dir", "reload_include", "reload_exclude"}


def resolve(target: str, flags: Mapping[str, str], environment: Mapping[str, str]) -> Config:
    return resolve_sources(Sources(target, flag_values(flags), environment)).config


def value_of(config: Config, name: str) -> Any:
    return getattr(getattr(config, option_fields()[name][0]), name)


def faults(flags: Mapping[str, str], environment: Mapping[str, str] | None = None, target: str = TARGET) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(target, flags, environment or {})
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def test_every_default_is_that_of_the_contract() -> None:
    written = dict(re.findall(r"--(\S+) (\S+)", DEFAULTS))
    names = {name.replace("-", "_") for name in written}
    assert names | NO_DEFAULT | EMPTY | {"root_path"} == set(option_fields())
    config = resolve(TARGET, {}, {})
    for flag, text in written.items():
        name = flag.replace("-", "_")
        value = value_of(config, name)
        assert value == parse_value(option_fields()[name][1], text), flag
        assert type(value) is type(parse_value(option_fields()[name][1], text)), flag
    for name in NO_DEFAULT:
        assert value_of(config, name) is None
    for name in EMPTY:
        assert value_of(config, name) == ()
    assert config.asgi.root_path == ""
    kinds: dict[str, Any] = KINDS
    for name, defaults in kinds.items():
        group = getattr(config, option_fields()[name][0])
        assert {kind: value_for(kind, group, name) for kind in defaults} == defaults
    assert config == Config(TARGET)
    assert config.fleet.workers is None  # auto


def test_a_name_is_an_option_of_one_group_only() -> None:
    assert sum(len(fields(kind)) for kind in GROUPS.values()) == len(option_fields())


SAMPLES: dict[str, tuple[str, Any]] = {
    **dict.fromkeys((*FUNCTIONS, "on_event"), ("auth:look", "auth:look")),
    "bind": ("h:1, unix:/a", ("h:1", "unix:/a")),
    "subprotocols": ("one, two", ("one", "two")),
    "allowed_origins": ("https://a.example, null", ("https://a.example", "null")),
    "forwarded_allow_ips": ("10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
    "header": ("cache-control: no-store, private", ("cache-control: no-store, private",)),
}

APART = {"balance", "bind", "uds", "fd"}
"""What does not go together with every other option."""
CERTIFICATE = {"WSCLUSTER_SSL_CERTFILE": "chain.pem"}
"""What the other options of TLS need."""


def sample(name: str) -> tuple[str, Any]:
    """Return a text that is not the default, and its value."""
    if name in SAMPLES:
        return SAMPLES[name]
    item = option_fields()[name][1]
    kind = str(item.type).removesuffix(" | None")
    if item.metadata["choices"]:
        text = item.metadata["choices"][-1]
        return text, text
    return {
        "str": ("other", "other"),
        "bool": ("true", True) if item.default is False else ("false", False),
        "int": ("77", 77),
        "float": ("1m17s", 77.0),
        "tuple[str, ...]": ("10.1.0.0/16, ::2", ("10.1.0.0/16", "::2")),
    }[kind]


@pytest.mark.parametrize("name", [name for name in option_fields() if name != "balance"])
def test_a_flag_comes_before_its_variable_and_that_before_the_default(name: str) -> None:
    text, value = sample(name)
    default = value_of(Config(TARGET), name)
    assert value != default
    variable = f"WSCLUSTER_{name.upper()}"
    base = CERTIFICATE if name.startswith("ssl_") and name != "ssl_certfile" else {}
    assert value_of(resolve(TARGET, {name: text}, base), name) == value
    assert value_of(resolve(TARGET, {}, {**base, variable: text}), name) == value
    assert value_of(resolve(TARGET, {name: text}, {**base, variable: "not looked at"}), name) == value
    assert value_of(resolve(TARGET, {}, {**base, variable: ""}), name) == default
    assert value_of(resolve(TARGET, {}, {**base, variable.lower(): text, name.upper() + "X": text}), name) == default


@pytest.mark.parametrize(
    ("variable", "name", "text", "value"),
    [
        ("PORT", "port", "81", 81),
        ("WEB_CONCURRENCY", "workers", "3", 3),
        ("REDIS_URL", "redis_url", "unix:///a", "unix:///a"),
    ],
)
def test_a_variable_that_others_read_too_comes_last(variable: str, name: str, text: str, value: object) -> None:
    own = f"WSCLUSTER_{name.upper()}"
    assert value_of(resolve(TARGET, {}, {variable: text}), name) == value
    assert value_of(resolve(TARGET, {}, {variable: text, own: "9"}), name) in (9, "9")
    assert value_of(resolve(TARGET, {name: "8"}, {variable: text, own: "9"}), name) in (8, "8")


def test_the_environment_may_hold_anything_else() -> None:
    assert resolve(TARGET, {}, {"WSCLUSTER_": "x", "WSCLUSTER_NONSENSE": "x", "HOST": "h"}) == Config(TARGET)


def test_all_faults_are_told_at_once_each_with_where_it_stands() -> None:
    told = faults({"port": "65536", "workers": "banana"}, {"WSCLUSTER_SLOT_WAIT": "-1", "PORT": "unused"}, "chat")
    assert told == [
        "target 'chat': module:attribute is wanted, such as handlers:chat",
        "--port '65536': a whole number from 0 to 65535 is wanted",
        "--workers 'banana': a whole number from 1 to 1024 is wanted, or auto",
        "WSCLUSTER_SLOT_WAIT '-1': a number of seconds or a duration like 1h30m of 0 or more is wanted",
    ]


@pytest.mark.parametrize("text", ["0", "-3", "banana", "", "1.5", "1025", "٣", "AUTO", " 2", "1e3", "9" * 30])
def test_a_number_of_workers_that_is_none(text: str) -> None:
    assert faults({"workers": text}) == [f"--workers {text!r}: a whole number from 1 to 1024 is wanted, or auto"]


@pytest.mark.parametrize(("text", "workers"), [("auto", None), ("1", 1), ("+4", 4), ("1024", 1024), ("007", 7)])
def test_a_number_of_workers(text: str, workers: int | None) -> None:
    assert resolve(TARGET, {"workers": text}, {}).fleet.workers == workers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("30", 30.0), ("2.5", 2.5), (".5", 0.5), ("3.", 3.0), ("1h30m", 5400.0), ("90m", 5400.0),
        ("5s", 5.0),
        ("1.5s", 1.5), ("1d", 86400.0), ("1d2h3m4.5s", 93784.5), ("0s", 0.0), ("+1", 1.0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert resolve(TARGET, {"graceful_timeout": text}, {}).fleet.graceful_timeout == seconds


@pytest.mark.parametrize(
    "text",
    ["", "-1", "-0.1", "h", "1m1h", "1h 30m", "1.5h", "nan", "inf", "1e3", "0x10", "1_000", "٣s", "s", "30S", "1ms",
     "-1s",
     "9" * 40, "9" * 40 + "s", "1h\n"],
)  # fmt: skip
def test_durations_that_are_none(text: str) -> None:
    assert len(faults({"graceful_timeout": text})) == 1


@given(st.text())
def test_any_text_of_a_duration_is_a_number_or_a_fault(text: str) -> None:
    try:
        seconds = resolve(TARGET, {"slot_wait": text}, {}).placement.slot_wait
    except ConfigError as exc:
        (problem,) = exc.problems
        assert problem.startswith(f"--slot-wait {text!r}"[:100])
    else:
        assert 0 <= seconds < float("inf")


@given(days=st.integers(0, 99), hours=st.integers(0, 999), minutes=st.integers(0, 999), seconds=st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(days: int, hours: int, minutes: int, seconds: int) -> None:
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    text = "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert resolve(TARGET, {"slot_wait": text}, {}).placement.slot_wait == expected


def numeric(bound: str) -> list[str]:
    return [name for name, (_, item) in option_fields().items() if item.metadata[bound] is not None]


@pytest.mark.parametrize("name", numeric("low"))
def test_the_least_value_is_accepted_and_less_is_not(name: str) -> None:
    low = int(option_fields()[name][1].metadata["low"])
    assert value_of(resolve(TARGET, {name: str(low)}, {}), name) == low
    assert len(faults({name: str(low - 1)})) == 1


@pytest.mark.parametrize("name", numeric("high"))
def test_the_greatest_value_is_accepted_and_more_is_not(name: str) -> None:
    high = int(option_fields()[name][1].metadata["high"])
    assert value_of(resolve(TARGET, {name: str(high)}, {}), name) == high
    assert len(faults({name: str(high + 1)})) == 1


@pytest.mark.parametrize("name", numeric("above"))
def test_a_bound_that_is_excluded_is_not_accepted(name: str) -> None:
    assert "above 0 is wanted" in faults({name: "0"})[0]
    assert value_of(resolve(TARGET, {name: "0.001"}, {}), name) == 0.001


def test_every_number_has_a_least_value() -> None:
    numbers = {name for name, (_, item) in option_fields().items() if str(item.type).startswith(("int", "float"))}
    assert numbers == {*numeric("low"), *numeric("above")}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("TRUE", True),
        ("yes", True),
        ("on", True),
        ("1", True),
        ("false", False),
        ("no", False),
        ("0", False),
    ],
)
def test_booleans(text: str, value: bool) -> None:
    assert resolve(TARGET, {"ws_per_message_deflate": text}, {}).websocket.ws_per_message_deflate is value


@pytest.mark.parametrize("text", ["", "2", "maybe", "truee"])
def test_booleans_that_are_none(text: str) -> None:
    wanted = f"--ws-per-message-deflate {text!r}: true or false is wanted"
    assert faults({"ws_per_message_deflate": text}) == [wanted]


@pytest.mark.parametrize("name", ["sticky", "balance", "log_level"])
def test_a_choice_that_is_none_lists_those_there_are(name: str) -> None:
    choices = option_fields()[name][1].metadata["choices"]
    assert faults({name: "nonsense"}) == [f"{flag_of(name)} 'nonsense': one of {', '.join(choices)} is wanted"]


def test_how_to_balance_without_stickiness_alone() -> None:
    told = faults({"balance": "random"})
    assert told == ["--balance random needs --sticky none"]
    assert resolve(TARGET, {"balance": "random", "sticky": "none"}, {}).placement.balance == "random"
    assert resolve(TARGET, {"sticky": "none"}, {}).placement.balance is None


@pytest.mark.parametrize("prefix", ["", "a{b", "a}", "a\nb", "x" * 65, "ü" * 33, "\udcff"])
def test_a_prefix_that_cannot_begin_a_key(prefix: str) -> None:
    (told,) = faults({"redis_prefix": prefix})
    assert told.startswith("--redis-prefix ")
    assert told.isprintable()


def test_contradictions_are_told_together() -> None:
    assert len(faults({"balance": "random", "redis_prefix": "{"})) == 2


@pytest.mark.parametrize(
    "target", ["", ":", "chat", "a:", ":b", "a b:c", "a:b:c", "a..b:c", "a:b.", "1a:b", "./a.py:b", "a:b()"]
)
def test_a_target_that_is_none(target: str) -> None:
    assert faults({}, target=target) == [f"target {target!r}: module:attribute is wanted, such as handlers:chat"]


@pytest.mark.parametrize("target", ["a:b", "a.b.c:d.e", "_a:_b", "größe:chat"])
def test_a_target(target: str) -> None:
    assert resolve(target, {}, {}).target == target


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.isprintable)


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.just(sample(name)[0]) for name in option_fields() if name not in APART}
    )
)
def test_a_configuration_comes_back_from_its_json(flags: dict[str, str]) -> None:
    config = resolve(TARGET, flags, CERTIFICATE)
    text = to_json(config)
    assert from_json(text) == config
    assert "\n" not in text


@given(host=TEXTS, url=TEXTS, folder=TEXTS)
def test_any_text_comes_back_from_json(host: str, url: str, folder: str) -> None:
    config = resolve(TARGET, {"host": host, "redis_url": url, "app_dir": folder}, {})
    assert from_json(to_json(config)) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config(TARGET).listen.port = 1  # type: ignore[misc]


# Passwords

SECRET = "Zx9Qw7"


@given(
    scheme=st.sampled_from(["redis", "rediss", "unix", "http", "x"]),
    user=st.text("abc:%./", max_size=5),
    before=st.text("/?#&=@:%[]~ \t€ü\n", max_size=4),
    after=st.text("/?#&=@:%[]~ \t€ü\n", max_size=4),
    place=st.sampled_from(["", "localhost", "[::1]:6379/0", "h:banana", "h:99999", "/tmp/a.sock", "h/0?db=1"]),
)
def test_a_password_in_front_of_the_host_is_never_shown(
    scheme: str, user: str, before: str, after: str, place: str
) -> None:
    for password in (before + SECRET + after, quote(before + SECRET + after, safe="")):
        assert SECRET not in hide_password(f"{scheme}://{user}:{password}@{place}")


@given(
    url=st.sampled_from(["unix:///tmp/a.sock", "redis://h:6379/0", "redis://u:x@h"]),
    key=st.sampled_from(["password", "PASSWORD", "pass%77ord", "pa\tssword", "ssl_password"]),
    before=st.text("/?#=@:%[]~ €ü\n", max_size=4),
    after=st.text("/?#=@:%[]~ €ü\n", max_size=4),
    others=st.sampled_from(["", "&db=1", "&db=1&username=u"]),
    first=st.sampled_from(["?", "?db=2&"]),
)
def test_a_password_in_the_query_is_never_shown(
    url: str, key: str, before: str, after: str, others: str, first: str
) -> None:
    assert SECRET not in hide_password(f"{url}{first}{key}={before}{SECRET}{after}{others}")


@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    assert isinstance(hide_password(text), str)
    fault = find_url_fault(text)
    assert fault is None or fault.isprintable()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:secret@h:1/2", "redis://user:***@h:1/2"),
        ("redis://:secret@h", "redis://:***@h"),
        ("redis://user@h", "redis://user@h"),
        ("redis://:a/b?c#d@e@h", "redis://:***@h"),
        ("unix:///tmp/a.sock?password=secret&db=1", "unix:///tmp/a.sock?password=***&db=1"),
        ("unix:///tmp/a.sock?db=1&password=a&b", "unix:///tmp/a.sock?db=1&password=***"),
        ("user:secret@h", "user:***@h"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize(
    "url",
    ["redis://h:banana", "redis://h:65536", "redis://:a/b@h", "redis://:12#34@h", "redis://:12?34@h", "redis://[::1",
     "redis://u:a[b@h", "redis://u:a\u2100@h"],
)  # fmt: skip
def test_a_url_that_cannot_be_read_is_a_fault_that_shows_nothing_of_it(url: str) -> None:
    fault = find_url_fault(url)
    assert fault is not None
    assert "%XX" in fault


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://u:p%2F@h:1/2", "redis://h/0?client_name=a@b", "unix:///tmp/a@b.sock", "rediss://[::1]:6379"],
)
def test_a_url_that_can_be_read_has_no_fault(url: str) -> None:
    assert find_url_fault(url) is None


@pytest.mark.parametrize("name", ["allowed_origins", "subprotocols", "forwarded_allow_ips", "proxy_allow_from"])
@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_list_is_a_fault_and_never_turns_a_check_off(name: str, text: str) -> None:
    assert faults({name: text}) == [f"{flag_of(name)} {text!r}: at least one is wanted"]


def test_a_default_is_told_in_words_and_by_the_kind_of_target() -> None:
    told = {name: default_text(item) for name, (_, item) in option_fields().items()}
    assert told["ws_max_size"] == "1048576 for handlers, 16777216 for ASGI"
    assert told["access_log"] == "false for handlers, true for ASGI"
    assert (told["workers"], told["port"], told["redis_url"], told["bind"]) == ("auto", "8000", "", "")


def test_a_value_that_was_given_counts_for_every_kind_of_target() -> None:
    given = resolve(TARGET, {"ws_max_size": "77"}, {}).websocket
    assert {value_for(kind, given, "ws_max_size") for kind in ("handlers", "ASGI")} == {77}
    assert [knows(verb, "port") for verb in ("serve", "run")] == [True, False]
    assert [knows(verb, "workers") for verb in ("serve", "run")] == [True, True]
    assert [knows(verb, "ssl_certfile") for verb in ("serve", "run")] == [True, False]
