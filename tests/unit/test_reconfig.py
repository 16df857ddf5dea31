"""What of a configuration changes in a running cluster."""

from dataclasses import replace

from wscluster.config import Config, option_fields
from wscluster.gateway.reconfig import reconfigure

RUNNING = Config("app:handler")


def test_nothing_has_changed() -> None:
    assert reconfigure(RUNNING, RUNNING) == (RUNNING, [])


def test_what_workers_read_is_taken_and_so_is_the_target() -> None:
    read = replace(
        RUNNING, target="app:other", websocket=replace(RUNNING.websocket, ws_max_size=5),
        fleet=replace(RUNNING.fleet, graceful_timeout=1.0),
    )  # fmt: skip
    assert reconfigure(RUNNING, read) == (read, [])


def test_what_is_fixed_stays_and_is_said_without_passwords() -> None:
    read = replace(
        RUNNING, listen=replace(RUNNING.listen, port=9, bind=("[::1]:1",)),
        bus=replace(RUNNING.bus, redis_url="redis://:secret@host", bus_timeout=1.0),
    )  # fmt: skip
    config, kept = reconfigure(RUNNING, read)
    assert config == replace(RUNNING, bus=replace(RUNNING.bus, bus_timeout=1.0))
    assert kept == [
        "--port 8000 stays, 9 needs a restart",
        "--bind (none) stays, [::1]:1 needs a restart",
        "--redis-url (none) stays, redis://:***@host needs a restart",
    ]


def test_tls_neither_begins_nor_ends_but_its_files_change() -> None:
    begins = replace(RUNNING, tls=replace(RUNNING.tls, ssl_certfile="a.pem"))
    assert reconfigure(RUNNING, begins) == (RUNNING, ["--ssl-certfile (none) stays, a.pem needs a restart"])
    assert reconfigure(begins, RUNNING)[0] == begins
    other = replace(RUNNING, tls=replace(RUNNING.tls, ssl_certfile="b.pem"))
    assert reconfigure(begins, other) == (other, [])


def test_a_number_of_workers_that_was_counted_is_no_change_and_another_one_is() -> None:
    counted = replace(RUNNING, fleet=replace(RUNNING.fleet, workers=4))
    assert reconfigure(counted, RUNNING) == (counted, [])
    more = replace(RUNNING, fleet=replace(RUNNING.fleet, workers=5))
    assert reconfigure(counted, more) == (more, [])


def test_where_to_listen_whom_to_admit_and_the_bus_are_fixed() -> None:
    fixed = {name for name, (_, item) in option_fields().items() if item.metadata["fixed"]}
    assert {"host", "port", "sticky", "redis_url", "control_socket", "ready_fd"} <= fixed
    assert not {"ws_max_size", "graceful_timeout", "log_level", "ssl_certfile"} & fixed
