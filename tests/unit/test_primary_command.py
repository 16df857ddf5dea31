"""What a cluster of a test is started with."""

import pytest

from wscluster.primary_command import as_flags, check_options, reached
from wscluster.testing import Cluster


def test_options_are_the_flags_of_the_same_name() -> None:
    options = {
        "workers": 2, "graceful_timeout": 0.5, "header": ["A:1", "B:2"], "uds": None, "factory": True,
        "date_header": False, "ws_per_message_deflate": False,
    }  # fmt: skip
    assert as_flags(options) == [
        "--workers", "2", "--graceful-timeout", "0.5", "--header", "A:1", "--header", "B:2", "--factory",
        "--no-date-header", "--ws-per-message-deflate", "false",
    ]  # fmt: skip


@pytest.mark.parametrize(("verb", "name"), [("serve", "colour"), ("run", "port"), ("run", "ssl_certfile")])
def test_an_option_that_the_verb_does_not_have(verb: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"wscluster {verb} has no option {name}"):
        check_options(verb, {"workers": 1, name: 1})


def test_what_a_cluster_refuses_before_it_starts() -> None:
    with pytest.raises(TypeError, match="wscluster serve has no option colour"):
        Cluster("main:app", colour=1)
    with pytest.raises(TypeError, match="wscluster run has no option app_dir"):
        Cluster.run("server.py", app_dir=".")
    with pytest.raises(TypeError, match="wants a program"):
        Cluster.run()


@pytest.mark.parametrize(
    ("listeners", "where"),
    [
        (["127.0.0.1:80", "127.0.0.1:81"], "127.0.0.1:80"),
        (["unix:/run/x", "0.0.0.0:80"], "127.0.0.1:80"),
        (["[::]:80"], "[::1]:80"),
        (["[fd00::1]:80"], "[fd00::1]:80"),
    ],
)
def test_where_a_client_of_this_machine_finds_it(listeners: list[str], where: str) -> None:
    assert reached(listeners) == where


def test_a_cluster_without_a_tcp_listener_says_so() -> None:
    with pytest.raises(LookupError, match="no TCP listener: unix:/run/x"):
        reached(["unix:/run/x"])
