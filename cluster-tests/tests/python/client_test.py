"""A client in another language, with nothing but the contract.

It starts `ebla dev`, asks the servers by reflection what they offer, generates stubs from
the protos, and reads, writes and scans. Run by scripts/python-client.sh.
"""

import importlib
import os
import pathlib
import queue
import socket
import subprocess
import sys
import tempfile
import unittest

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROTOS = ROOT / "proto" / "proto"
DEADLINE_S = 10


def generate_stubs(out):
    """Compiles the protos to Python modules below `out` and puts them on the path."""
    files = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    arguments = ["protoc", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*arguments, *files]) != 0:
        raise SystemExit("the protos do not compile")
    sys.path.insert(0, str(out))


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % listener.getsockname()[1]


class Cluster:
    """`ebla dev` in a directory of its own; ended by its own process id only."""

    def __init__(self, place):
        binary = os.environ.get("EBLA_BIN", str(ROOT / "target" / "debug" / "ebla"))
        self.address = free_address()
        self.log = open(place / "log", "wb")
        arguments = ["dev", "--listen", self.address, "--data-dir", str(place / "data")]
        self.process = subprocess.Popen(
            [binary, *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        ready = self.process.stdout.readline()
        if not ready.startswith("ready "):
            self.stop()
            raise SystemExit(f"not ready: {ready!r}\n{(place / 'log').read_text()}")

    def stop(self):
        self.process.terminate()
        status = self.process.wait(timeout=30)
        self.process.stdout.close()
        self.log.close()
        return status


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.place = tempfile.TemporaryDirectory(prefix="ebla-python-")
        place = pathlib.Path(cls.place.name)
        (place / "stubs").mkdir()
        generate_stubs(place / "stubs")
        cls.modules = {
            name: importlib.import_module(f"ebla.v1.{name}")
            for service in ("kv", "admin", "route", "room", "watch")
            for name in (f"{service}_pb2", f"{service}_pb2_grpc")
        }
        cls.cluster = Cluster(place)
        cls.master = grpc.insecure_channel(cls.cluster.address)
        admin = cls.modules["admin_pb2_grpc"].AdminServiceStub(cls.master)
        request = cls.modules["admin_pb2"].CreateTableRequest(name="t", split_keys=[b"m"])
        admin.CreateTable(request, timeout=30)
        cls.channels = {}

    @classmethod
    def tearDownClass(cls):
        for channel in [cls.master, *cls.channels.values()]:
            channel.close()
        status = cls.cluster.stop()
        cls.place.cleanup()
        if status != 0:
            raise AssertionError(f"the cluster ended with {status} after SIGTERM")

    def routes(self):
        stub = self.modules["route_pb2_grpc"].RouteServiceStub(self.master)
        request = self.modules["route_pb2"].GetRoutesRequest(table="t")
        return stub.GetRoutes(request, timeout=DEADLINE_S).routes

    def channel_of(self, key):
        """A channel to the leader of `key`, found in the map as any client would."""
        routes = self.routes()
        addresses = {server.id: server.address for server in routes.servers}
        for tablet in routes.tablets:
            if tablet.start <= key and (not tablet.end or key < tablet.end):
                address = addresses[tablet.leader_server_id]
                return self.channels.setdefault(address, grpc.insecure_channel(address))
        self.fail(f"no tablet holds {key}")

    def kv(self, key):
        return self.modules["kv_pb2_grpc"].KvServiceStub(self.channel_of(key))

    def get(self, key):
        request = self.modules["kv_pb2"].GetRequest(table="t", key=key)
        return self.kv(key).Get(request, timeout=DEADLINE_S)

    def write(self, key, *ops):
        request = self.modules["kv_pb2"].WriteRequest(table="t", ops=ops)
        return self.kv(key).Write(request, timeout=DEADLINE_S)

    def op(self, **fields):
        return self.modules["kv_pb2"].WriteOp(**fields)

    def set(self, key, value, **condition):
        kv = self.modules["kv_pb2"]
        return self.op(set=kv.SetOp(key=key, value=value), **condition)

    def test_reflection_names_the_services(self):
        for channel, wanted in (
            (self.master, {"ebla.v1.AdminService", "ebla.v1.RouteService"}),
            (
                self.channel_of(b"a"),
                {
                    "ebla.v1.KvService",
                    "ebla.v1.RouteService",
                    "ebla.v1.WatchService",
                    "ebla.v1.RoomService",
                },
            ),
        ):
            database = ProtoReflectionDescriptorDatabase(channel)
            names = set(database.get_services())
            self.assertLessEqual(wanted | {"grpc.health.v1.Health"}, names)
            service = DescriptorPool(database).FindServiceByName("ebla.v1.RouteService")
            self.assertIn("GetRoutes", service.methods_by_name)

    def test_a_row_is_written_and_read(self):
        kv = self.modules["kv_pb2"]
        written = self.write(b"apple", self.set(b"apple", b"\x00red\xff"))
        self.assertEqual(written.outcome, kv.WRITE_OUTCOME_COMMITTED)
        row = self.get(b"apple")
        self.assertTrue(row.found)
        self.assertEqual((row.value, row.ts), (b"\x00red\xff", written.ts))
        self.write(b"apple", self.op(delete=kv.DeleteOp(key=b"apple")))
        self.assertFalse(self.get(b"apple").found)

    def watch(self, key, **fields):
        """Events of a watch that is served where `key` is, as they come."""
        watch = self.modules["watch_pb2"]
        stub = self.modules["watch_pb2_grpc"].WatchServiceStub(self.channel_of(key))
        call = stub.Watch(watch.WatchRequest(table="t", **fields), timeout=DEADLINE_S)
        return call, (event for message in call for event in message.events)

    def test_changes_are_watched_and_a_token_goes_on(self):
        watch = self.modules["watch_pb2"]
        kv = self.modules["kv_pb2"]
        call, events = self.watch(b"watched", prefix=b"watched")
        begun = next(events)
        self.assertEqual(begun.type, watch.WATCH_EVENT_TYPE_RESOLVED)
        one = self.write(b"watched-1", self.set(b"watched-1", b"one"))
        self.write(b"watched-1", self.op(delete=kv.DeleteOp(key=b"watched-1")))
        changes = (event for event in events if event.type != watch.WATCH_EVENT_TYPE_RESOLVED)
        first, second = next(changes), next(changes)
        call.cancel()
        self.assertEqual((first.type, first.key), (watch.WATCH_EVENT_TYPE_SET, b"watched-1"))
        self.assertEqual((first.value, first.ts), (b"one", one.ts))
        self.assertEqual((second.type, second.key), (watch.WATCH_EVENT_TYPE_DELETE, b"watched-1"))
        call, events = self.watch(b"watched", prefix=b"watched", token=first.token)
        again = next(event for event in events if event.type != watch.WATCH_EVENT_TYPE_RESOLVED)
        call.cancel()
        self.assertEqual((again.type, again.ts), (second.type, second.ts))

    def test_a_watch_of_a_table_that_is_not_there_is_refused(self):
        watch = self.modules["watch_pb2"]
        stub = self.modules["watch_pb2_grpc"].WatchServiceStub(self.channel_of(b"a"))
        with self.assertRaises(grpc.RpcError) as caught:
            next(stub.Watch(watch.WatchRequest(table="nosuch"), timeout=DEADLINE_S))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_a_condition_that_does_not_hold_changes_nothing(self):
        self.write(b"c", self.set(b"c", b"one"))
        with self.assertRaises(grpc.RpcError) as caught:
            self.write(b"c", self.set(b"c", b"two", if_value=b"other"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.ABORTED)
        self.write(b"c", self.set(b"c", b"two", if_value=b"one"))
        self.assertEqual(self.get(b"c").value, b"two")

    def test_a_counter_counts(self):
        kv = self.modules["kv_pb2"]
        add = lambda delta: self.write(b"n", self.op(add=kv.AddOp(key=b"n", delta=delta)))
        self.assertEqual(add(5).results[0].counter, 5)
        self.assertEqual(add(-8).results[0].counter, -3)
        row = self.get(b"n")
        self.assertTrue(row.counter)
        self.assertEqual(int.from_bytes(row.value, "big", signed=True), -3)

    def test_a_pipe_answers_and_ends_when_the_client_has_asked(self):
        kv = self.modules["kv_pb2"]
        write = kv.WriteRequest(table="t", ops=[self.set(b"pipe", b"1")])
        calls = [kv.PipeCall(id=7, write=write), kv.PipeCall(id=7)]
        frames = iter([kv.PipeRequest(calls=calls)])
        answers = [a for frame in self.kv(b"pipe").Pipe(frames, timeout=DEADLINE_S) for a in frame.answers]
        self.assertEqual(sorted(a.WhichOneof("answer") for a in answers), ["error", "write"])
        self.assertEqual({a.id for a in answers}, {7})
        self.assertEqual(self.get(b"pipe").value, b"1")

    def test_errors_have_the_canonical_codes(self):
        kv = self.modules["kv_pb2"]
        with self.assertRaises(grpc.RpcError) as caught:
            self.get_in("nowhere", b"k")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        with self.assertRaises(grpc.RpcError) as caught:
            self.kv(b"a").Get(kv.GetRequest(table="t", key=b""), timeout=DEADLINE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)

    def get_in(self, table, key):
        request = self.modules["kv_pb2"].GetRequest(table=table, key=key)
        return self.kv(b"a").Get(request, timeout=DEADLINE_S)

    def test_a_batch_is_scanned_back_in_order(self):
        kv = self.modules["kv_pb2"]
        keys = [b"scan-%03d" % number for number in range(500)]
        self.write(keys[0], *[self.set(key, b"value of " + key) for key in reversed(keys)])
        request = kv.ScanRequest(table="t", prefix=b"scan-")
        pages = list(self.kv(keys[0]).Scan(request, timeout=DEADLINE_S))
        rows = [(row.key, row.value) for page in pages for row in page.rows]
        self.assertEqual(rows, [(key, b"value of " + key) for key in keys])
        request = kv.ScanRequest(table="t", prefix=b"scan-", reverse=True, limit=3, keys_only=True)
        pages = self.kv(keys[0]).Scan(request, timeout=DEADLINE_S)
        self.assertEqual([row.key for page in pages for row in page.rows], keys[:-4:-1])


    def rooms(self):
        """A stub at any tablet server, once the cluster has its table of rooms."""
        room = self.modules["room_pb2"]
        stub = self.modules["room_pb2_grpc"].RoomServiceStub(self.channel_of(b"a"))
        stub.Publish(room.PublishRequest(room=b"nobody", message=b"x"), timeout=DEADLINE_S)
        return stub

    def test_a_room_carries_what_is_published(self):
        room, rooms = self.modules["room_pb2"], self.rooms()
        requests = queue.Queue()
        frames = rooms.Subscribe(iter(requests.get, None), timeout=DEADLINE_S)
        requests.put(room.SubscribeRequest(id=5, join=[b"talk", b"\x00\xff"]))
        answers = list(next(frames).answers)
        self.assertEqual([(answer.id, answer.HasField("error")) for answer in answers], [(5, False)])
        published = rooms.Publish(room.PublishRequest(room=b"\x00\xff", message=b"hello"), timeout=DEADLINE_S)
        self.assertEqual(published.delivered, 1)
        (message,) = next(frames).messages
        self.assertEqual((message.room, message.message), (b"\x00\xff", b"hello"))
        self.assertEqual(message.seq, published.seq)
        who = rooms.Who(room.WhoRequest(room=b"talk"), timeout=DEADLINE_S)
        self.assertEqual((who.subscribers, len(who.server_ids), who.partial), (1, 1, False))
        calls = [room.PublishCall(id=n, room=b"talk", message=b"%d" % n) for n in range(3)]
        stream = rooms.PublishStream(iter([room.PublishStreamRequest(calls=calls)]), timeout=DEADLINE_S)
        # Nothing more is sent, so the stream ends when all are answered.
        answers = [answer for frame in stream for answer in frame.answers]
        self.assertEqual([(answer.id, answer.delivered) for answer in answers], [(0, 1), (1, 1), (2, 1)])
        requests.put(None)
        frames.cancel()

    def test_a_room_without_a_name_is_refused(self):
        room, rooms = self.modules["room_pb2"], self.rooms()
        with self.assertRaises(grpc.RpcError) as caught:
            rooms.Publish(room.PublishRequest(message=b"x"), timeout=DEADLINE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
