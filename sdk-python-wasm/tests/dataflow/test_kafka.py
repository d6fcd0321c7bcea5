"""Kafka, against the broker that librdkafka has for tests: real clients and sockets, in this process."""

from __future__ import annotations

import json
import pickle
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

import skep.dataflow.operators as op
from skep.dataflow import Dataflow
from skep.dataflow.connectors.kafka import KafkaError, KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage, limits
from skep.dataflow.testing import TestingSink, TestingSource, run_main

kafka = pytest.importorskip("confluent_kafka", reason="not installed: pip install confluent-kafka")

import skep.dataflow.connectors.kafka.operators as kop  # noqa: E402


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """The address of a broker that lives as long as its client."""
    client = kafka.Producer({"test.mock.num.brokers": "1", "test.mock.broker.rtt": "0"})
    brokers = client.list_topics(timeout=10).brokers
    yield next(f"{b.host}:{b.port}" for b in brokers.values())
    client.flush(1)


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex[:8]}"


def read(broker: str, topic: str, **more: Any) -> list[Any]:
    flow, out = Dataflow("read"), []
    op.output("out", op.input("in", flow, KafkaSource([broker], [topic], tail=False, **more)), TestingSink(out))
    run_main(flow)
    return out


def write(broker: str, topic: str | None, messages: list[Any], **more: Any) -> None:
    flow = Dataflow("write")
    op.output("out", op.input("in", flow, TestingSource(messages, batch_size=100)), KafkaSink([broker], topic, **more))
    run_main(flow)


def test_what_is_written_is_read(broker: str, topic: str) -> None:
    sent = [KafkaSinkMessage(f"k{n % 7}".encode(), str(n).encode(), headers=[("n", b"%d" % n)], timestamp=1_700_000_000_000 + n) for n in range(500)]
    write(broker, topic, sent)
    got = read(broker, topic)
    assert sorted(int(m.value) for m in got) == list(range(500))
    by_key: dict[bytes, list[int]] = {}
    for m in got:
        by_key.setdefault(m.key, []).append(int(m.value))
        assert m.topic == topic and m.headers == [("n", m.value)] and m.timestamp[1] == 1_700_000_000_000 + int(m.value)
    assert all(numbers == sorted(numbers) for numbers in by_key.values()), "the order of a key is kept"
    assert len({m.partition for m in got}) > 1


def test_a_message_may_name_its_topic_and_partition(broker: str, topic: str) -> None:
    """The ancestor's sink ignored the partition."""
    write(broker, None, [KafkaSinkMessage(None, b"%d" % n, topic=topic, partition=2) for n in range(3)])
    got = read(broker, topic)
    assert [(m.partition, m.offset, m.key, m.value) for m in got] == [(2, 0, None, b"0"), (2, 1, None, b"1"), (2, 2, None, b"2")]


def test_a_partition_goes_on_where_its_state_says(broker: str, topic: str) -> None:
    write(broker, topic, [KafkaSinkMessage(b"k", b"%d" % n, partition=1) for n in range(10)])
    source = KafkaSource([broker], [topic], tail=False, batch_size=4)
    assert sorted(source.list_parts()) == [f"{n}-{topic}" for n in range(len(source.list_parts()))]
    state, numbers = None, []
    while True:
        part = source.build_part("in", f"1-{topic}", None if state is None else pickle.loads(state))
        try:
            batch: list[Any] = []
            while not batch:
                batch = list(part.next_batch())
        except StopIteration:
            break
        finally:
            state = pickle.dumps(part.snapshot())
            part.close()
        numbers += [int(m.value) for m in batch]
    assert numbers == list(range(10))
    assert pickle.loads(state or b"") == 10
    write(broker, topic, [KafkaSinkMessage(b"k", b"10", partition=1)])
    part = source.build_part("in", f"1-{topic}", 10)
    got: list[Any] = []
    while not got:
        got = list(part.next_batch())
    assert [m.value for m in got] == [b"10"]
    part.close()


def test_starting_offset(broker: str, topic: str) -> None:
    write(broker, topic, [KafkaSinkMessage(b"k", b"%d" % n, partition=0) for n in range(5)])
    source = KafkaSource([broker], [topic], tail=False, starting_offset=3)
    part = source.build_part("in", f"0-{topic}", None)
    got: list[Any] = []
    while not got:
        got = list(part.next_batch())
    assert [m.offset for m in got] == [3, 4]
    part.close()


def test_an_offset_that_is_gone_is_an_error(broker: str, topic: str) -> None:
    write(broker, topic, [KafkaSinkMessage(b"k", b"v", partition=0)])
    part = KafkaSource([broker], [topic]).build_part("in", f"0-{topic}", 99)
    with pytest.raises(RuntimeError, match=f"reading partition 0 of Kafka topic '{topic}'"):
        for _ in range(10_000):
            part.next_batch()
    part.close()


def test_errors_are_a_stream(broker: str, topic: str) -> None:
    write(broker, topic, [KafkaSinkMessage(b"k", value, partition=0) for value in (b'{"n": 1}', b"{oops", b'{"n": 2}')])
    flow, oks, errs, failures = Dataflow("eg"), [], [], []
    inp = kop.input("in", flow, brokers=[broker], topics=[topic], tail=False)
    parsed = kop.deserialize_value("json", inp.oks, lambda value, ctx: json.loads(value))
    both = kop.deserialize("both", inp.oks, key_deserializer=lambda k, ctx: k.decode(), val_deserializer=lambda v, ctx: json.loads(v))
    op.output("failures", inp.errs, TestingSink(failures))
    op.output("oks", parsed.oks, TestingSink(oks))
    # Through an exchange, so that errors are pickled on their way.
    op.output("errs", op.redistribute("spread", parsed.errs), TestingSink(errs))
    boths: list[Any] = []
    op.output("boths", both.oks, TestingSink(boths))
    run_main(flow)
    assert [m.value for m in oks] == [{"n": 1}, {"n": 2}]
    assert [(m.key, m.value) for m in boths] == [("k", {"n": 1}), ("k", {"n": 2})]
    assert failures == []
    assert len(errs) == 1 and isinstance(errs[0], KafkaError)
    assert errs[0].msg.value == b"{oops" and errs[0].err.code() == kafka.KafkaError._VALUE_DESERIALIZATION
    assert "JSONDecodeError" in errs[0].err.str()
    assert pickle.loads(pickle.dumps(errs[0])).err.code() == errs[0].err.code()


def test_from_topic_to_topic(broker: str, topic: str) -> None:
    from confluent_kafka.serialization import MessageField, StringDeserializer, StringSerializer

    write(broker, topic, [KafkaSinkMessage(b"k", b"abc"), KafkaSinkMessage(b"l", b"def")])
    flow = Dataflow("eg")
    inp = kop.input("in", flow, brokers=[broker], topics=[topic], tail=False)
    values = kop.deserialize_value("read", inp.oks, StringDeserializer()).oks
    keys = kop.deserialize_key("keys", values, StringDeserializer()).oks
    upper = op.map("upper", keys, lambda m: KafkaSinkMessage(m.key, m.value.upper()))
    seen = []

    def key_bytes(key: str, ctx: Any) -> bytes:
        seen.append(ctx.field)
        return key.encode()

    written = kop.serialize_value("write", kop.serialize_key("key", upper, key_bytes), StringSerializer())
    kop.output("out", written, brokers=[broker], topic=topic + "-out")
    run_main(flow)
    assert sorted((m.key, m.value) for m in read(broker, topic + "-out")) == [(b"k", b"ABC"), (b"l", b"DEF")]
    assert seen == [MessageField.KEY] * 2


def test_plain_avro(broker: str) -> None:
    pytest.importorskip("fastavro")
    from skep.dataflow.connectors.kafka.serde import PlainAvroDeserializer, PlainAvroSerializer

    schema = {"type": "record", "name": "R", "fields": [{"name": "n", "type": "int"}, {"name": "s", "type": "string"}]}
    for form in (schema, json.dumps(schema)):
        written = PlainAvroSerializer(form)({"n": 3, "s": "x"}, None)
        assert PlainAvroDeserializer(form)(written, None) == {"n": 3, "s": "x"}
        with pytest.raises(ValueError, match="more behind the Avro value"):
            PlainAvroDeserializer(form)(written + b"!", None)
        assert PlainAvroDeserializer(form)(None, None) is None


def test_a_delivery_that_fails_stops_the_flow(broker: str, topic: str) -> None:
    """The ancestor's sink asked for no reports: such messages vanished."""
    with pytest.raises(RuntimeError) as raised:
        write(broker, topic, [KafkaSinkMessage(b"k", b"v", partition=4_000)], add_config={"message.timeout.ms": "300"})
    assert "1 of 1 messages were not acknowledged" in f"{raised.value} {raised.value.__cause__}"


def test_a_broker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from skep.dataflow.connectors.kafka import source

    monkeypatch.setattr(source, "METADATA_SECONDS", 0.3)
    with pytest.raises(RuntimeError, match="the Kafka brokers 127.0.0.1:1 did not say in 0.3 s which partitions topic 'orders' has"):
        KafkaSource(["127.0.0.1:1"], ["orders"]).list_parts()


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("text", "KafkaSink takes KafkaSinkMessage items; got 'text'"),
        (KafkaSourceMessage(b"k", b"v"), r"has to_sink\(\)"),
        (KafkaSinkMessage(b"k", 3, "t"), "the value of a message for Kafka must be bytes or None; got 3"),
        (KafkaSinkMessage(b"k", b"v"), "names no topic, and the KafkaSink has none"),
    ],
)
def test_what_can_not_be_written(broker: str, item: Any, says: str) -> None:
    part = KafkaSink([broker], None).build("out", 0, 1)
    with pytest.raises((TypeError, ValueError), match=says):
        part.write_batch([item])


def test_settings_that_can_not_be() -> None:
    with pytest.raises(TypeError, match=r"`brokers` must be a list of text, as \['localhost:9092'\]; got 'localhost:9092'"):
        KafkaSource("localhost:9092", ["t"])
    with pytest.raises(TypeError, match="`topics` must be a list of text"):
        KafkaSource(["localhost:9092"], [])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
        KafkaSource(["localhost:9092"], ["t"], batch_size=0)
    with pytest.raises(TypeError, match="`topic` must be text or None; got 5"):
        KafkaSink(["localhost:9092"], 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'x' is no partition of the topics"):
        KafkaSource(["localhost:9092"], ["t"]).build_part("in", "x", None)
    assert limits.METADATA_SECONDS > 0


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    for make in (lambda: KafkaSource(["b"], ["t"]), lambda: KafkaSink(["b"], "t")):
        with pytest.raises(ImportError, match=r'pip install "skep\[kafka\]"'):
            make()
