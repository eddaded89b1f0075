"""The filesystem broker, used by many processes at once."""

import errno
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from kombu import Connection, Queue
from kombu.exceptions import ChannelError

from benchmarks.harness.processes import wait_until
from replaceme_core.broker import FILESYSTEM_TRANSPORT, broker_config
from replaceme_core.settings import Settings

SEND = """
import sys
from celery import Celery
from replaceme_core.broker import broker_config
from replaceme_core.settings import Settings
app = Celery("sender")
app.conf.update(broker_config(Settings(data=sys.argv[1])))
for number in range(int(sys.argv[3])):
    app.send_task("task", args=[f"{sys.argv[2]}-{number}"])
"""


def test_every_message_of_many_senders_arrives_whole(tmp_path: Path) -> None:
    senders = [subprocess.Popen([sys.executable, "-c", SEND, str(tmp_path), str(sender), "100"]) for sender in range(3)]
    options = broker_config(Settings(data=tmp_path))["broker_transport_options"]
    received: list[str] = []
    queue = Queue("replaceme", routing_key="replaceme")
    with (
        Connection("filesystem://", transport=FILESYSTEM_TRANSPORT, transport_options=options) as connection,
        connection.SimpleQueue(queue) as inbox,
    ):

        def drained() -> bool:
            while True:
                try:
                    message = inbox.get(block=False)
                except inbox.Empty:
                    return len(received) >= 300
                received.append(message.payload[0][0])
                message.ack()

        wait_until(drained, what="300 messages")
    assert [sender.wait() for sender in senders] == [0, 0, 0]
    assert sorted(received) == sorted(f"{sender}-{number}" for sender in range(3) for number in range(100))
    assert not list((tmp_path / "broker" / "messages").iterdir())


def test_a_table_that_its_writer_left_empty_is_written_anew(tmp_path: Path) -> None:
    table = tmp_path / "broker" / "control" / "replaceme.exchange"
    table.parent.mkdir(parents=True)
    table.touch()
    subprocess.run([sys.executable, "-c", SEND, str(tmp_path), "one", "1"], check=True)
    assert len(list((tmp_path / "broker" / "messages").glob("*.replaceme.msg"))) == 1


def test_a_full_disk_keeps_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would remove those of an outage: each try of each sweep would leave one, and workers list them all."""
    options = broker_config(Settings(data=tmp_path))["broker_transport_options"]
    with (
        Connection("filesystem://", transport=FILESYSTEM_TRANSPORT, transport_options=options) as connection,
        connection.SimpleQueue(Queue("replaceme", routing_key="replaceme")) as outbox,
    ):
        monkeypatch.setattr(Path, "rename", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(ChannelError, match="No space left"):
            outbox.put({})
    assert list((tmp_path / "broker" / "messages").iterdir()) == []


def test_a_worker_that_waits_for_messages_can_soon_stop(tmp_path: Path) -> None:
    """Celery checks whether to stop after each wait, which is two seconds by default."""
    options = broker_config(Settings(data=tmp_path))["broker_transport_options"]
    queue = Queue("replaceme", routing_key="replaceme")
    with (
        Connection("filesystem://", transport=FILESYSTEM_TRANSPORT, transport_options=options) as connection,
        connection.Consumer(queue),
    ):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=30)
        assert time.monotonic() - began < 10
