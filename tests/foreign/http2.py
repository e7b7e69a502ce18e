"""A caller by Python's own TLS and the library h2: HTTP/2 that no Rust has a hand in.

http2.py SCENARIO PORT, in a folder with callers-ca.pem, orders.pem and orders.key. Prints what it saw as JSON.
"""

import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
from hyperframe.frame import Frame, HeadersFrame

PATIENCE = 20
PING, GOAWAY = 6, 7


class Caller:
    def __init__(self, port):
        context = ssl.create_default_context(cafile="callers-ca.pem")
        context.load_cert_chain("orders.pem", "orders.key")
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket = context.wrap_socket(plain, server_hostname="gateway.test")
        assert self.socket.selected_alpn_protocol() == "h2"
        self.change = None
        self.answers, self.goodbye, self.pushed_back = {}, None, 0
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http2.initiate_connection()
        self.write()

    def write(self):
        data = self.http2.data_to_send()
        if self.change:
            data = self.change(data)
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # What it has to say may be here already.

    def begin(self, path, **more):
        stream = self.http2.get_next_available_stream_id()
        head = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "gateway.test"),
            (":path", "/openapi/v1/" + path),
            ("content-type", "application/json"),
        ]
        self.http2.send_headers(stream, head, **more)
        self.write()
        self.answers[stream] = {"status": None, "body": b"", "ended": False}
        return stream

    def body(self, stream, body, end=True, **more):
        """In pieces, as the other side lets it; until it has answered in full."""
        while body and not self.answers[stream]["ended"]:
            room = min(self.http2.local_flow_control_window(stream), self.http2.max_outbound_frame_size)
            room -= 1 + more.get("pad_length", 0) if more else 0
            if room <= 0:
                self.pushed_back += 1
                self.read()
                continue
            self.http2.send_data(stream, body[:room], **more)
            self.write()
            body = body[room:]
        if end and not self.answers[stream]["ended"]:
            self.http2.end_stream(stream)
            self.write()

    def exactly(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise EOFError("the connection has ended")
            data += more
        return data

    def frame(self):
        """One at a time: the library takes nothing more after a GOAWAY."""
        head = self.exactly(9)
        return head + self.exactly(int.from_bytes(head[:3], "big"))

    def read(self):
        for event in self.http2.receive_data(self.frame()):
            answer = self.answers.get(getattr(event, "stream_id", None))
            if isinstance(event, h2.events.ResponseReceived):
                answer["status"] = dict(event.headers)[":status"]
            elif isinstance(event, h2.events.DataReceived):
                answer["body"] += event.data
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                answer["ended"] = True
            elif isinstance(event, h2.events.StreamReset):
                answer["ended"], answer["reset"] = True, int(event.error_code)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goodbye = int(event.error_code)
        self.write()

    def answer(self, stream):
        while not self.answers[stream]["ended"]:
            self.read()
        answer = self.answers[stream]
        answer["body"] = answer["body"].decode()
        return answer

    def call(self, path, body=b"{}", **more):
        stream = self.begin(path, **more)
        self.body(stream, body)
        return self.answer(stream)


def many(caller):
    answers = []
    for _ in range(3):
        streams = [caller.begin("customerOpenApi/add") for _ in range(100)]
        for stream in streams:
            caller.body(stream, b'{"n":%d}' % stream)
        answers += [caller.answer(stream) for stream in streams]
    return answers


def large(caller):
    answer = caller.call("customerOpenApi/queryByUid", b'{"a":"%s"}' % (b"x" * 1_000_000))
    return {"status": answer["status"], "body": len(answer["body"]), "pushed_back": caller.pushed_back}


def refused(caller):
    """More than the gateway wants, to an operation that it knows, and to one that it doesn't; and the connection goes on."""
    body = b'{"a":"%s"}' % (b"x" * 3_000_000)
    answers = [caller.call(path, body) for path in ("customerOpenApi/add", "customerOpenApi/nothing")]
    return answers + [caller.call("customerOpenApi/add")]


def trailers(caller):
    stream = caller.begin("customerOpenApi/add")
    caller.body(stream, b'{"a":1}', end=False)
    caller.http2.send_headers(stream, [("data-signature", "00"), ("x-checksum", "1")], end_stream=True)
    caller.write()
    return [caller.answer(stream), caller.call("customerOpenApi/add")]


def padded(caller):
    def pad(data):
        changed = b""
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            if isinstance(frame, HeadersFrame):
                frame.flags.add("PADDED")
                frame.pad_length = 200
            changed += frame.serialize()
            data = data[9 + length :]
        return changed

    caller.change = pad
    stream = caller.begin("customerOpenApi/add")
    caller.body(stream, b'{"a":1}', pad_length=255)
    return [caller.answer(stream)]


def priority(caller):
    caller.http2.prioritize(7, weight=1, depends_on=0, exclusive=True)
    first = caller.call("customerOpenApi/add", priority_weight=256, priority_depends_on=0)
    caller.http2.prioritize(1, weight=200, depends_on=3)
    return [first, caller.call("customerOpenApi/add", priority_weight=1, priority_exclusive=True)]


def age(caller):
    first = caller.call("customerOpenApi/add")
    while caller.goodbye is None:
        caller.read()
    # The rest by hand.
    later = []
    try:
        while True:
            frame = caller.frame()
            if frame[3] == PING:
                caller.socket.sendall(frame[:4] + b"\1" + frame[5:])
            elif frame[3] == GOAWAY:
                later.append(int.from_bytes(frame[9:13], "big"))
    except EOFError:
        return {"first": first["status"], "goodbye": caller.goodbye, "last_streams": later}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Caller(int(sys.argv[2])))))
