"""Flight's messages, put together and taken apart by hand, so that broken ones can be sent too."""

import struct

import grpc

SERVICE = "/arrow.flight.protocol.FlightService/"
TYPE = "type.googleapis.com/arrow.flight.protocol.sql."

PATH, COMMAND = 1, 2  # types of a FlightDescriptor

# Seconds a call may take.
DEADLINE = 30


# ---------------------------------------------------------------- protobuf


def varint(number):
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(*fields):
    """A message of (number, value) pairs; values are bytes, text or whole numbers."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else bytes(value)
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return bytes(out)


def fields(data):
    """Field number to the list of its values."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        match key & 7:
            case 0:
                value = number()
            case 1:
                value, at = data[at : at + 8], at + 8
            case 2:
                length = number()
                value, at = data[at : at + length], at + length
            case 5:
                value, at = data[at : at + 4], at + 4
            case kind:
                raise ValueError(f"wire type {kind}")
        found.setdefault(key >> 3, []).append(value)
    return found


def packed(name, *content):
    """A message of Flight SQL in an Any."""
    return message((1, TYPE + name), (2, message(*content)))


def statement(sql):
    """The command of a query."""
    return packed("CommandStatementQuery", (1, sql))


def by_command(command):
    return message((1, COMMAND), (2, command))


def by_path(*parts):
    return message((1, PATH), *((3, part) for part in parts))


def action(name, body=b""):
    return message((1, name), (2, body))


def flight_data(descriptor=None, header=None, body=None):
    """A message of a stream of batches."""
    parts = ((1, descriptor), (2, header), (1000, body))
    return message(*(part for part in parts if part[1] is not None))


def ipc_messages(table):
    """The messages (header, body) of a table's IPC stream: its schema, then its batches."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    data, at, out = sink.getvalue().to_pybytes(), 0, []
    while at < len(data):
        marker, length = struct.unpack_from("<Ii", data, at)
        assert marker == 0xFFFFFFFF
        if length == 0:
            break
        header = data[at + 8 : at + 8 + length]
        parsed = pa.ipc.read_message(data[at:])
        size = parsed.body.size if parsed.body is not None else 0
        at += 8 + length
        out.append((header, data[at : at + size]))
        at += size
    return out


# ---------------------------------------------------------------- calls


class Client:
    """Calls of single methods; errors are grpc.RpcError with the very code the server gave."""

    def __init__(self, address, root=None, certificate=None, key=None, metadata=()):
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        # Channels of one process share connections, unless told not to.
        options = [*unlimited, ("grpc.use_local_subchannel_pool", 1)]
        if root is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(root, key, certificate)
            self.channel = grpc.secure_channel(address, credentials, options)
        self.metadata = list(metadata)

    def close(self):
        self.channel.close()

    def unary(self, method, request, timeout=DEADLINE, metadata=()):
        """One message for one."""
        return self._call(self.channel.unary_unary, method)(request, timeout=timeout, metadata=self._all(metadata))

    def streamed(self, method, request, timeout=DEADLINE, metadata=()):
        """Messages for one, as they come."""
        return self._call(self.channel.unary_stream, method)(request, timeout=timeout, metadata=self._all(metadata))

    def exchanged(self, method, requests, timeout=DEADLINE, metadata=()):
        """Messages for messages, as they come."""
        call = self._call(self.channel.stream_stream, method)
        return call(iter(requests), timeout=timeout, metadata=self._all(metadata))

    def _all(self, metadata):
        return [*self.metadata, *metadata] or None

    @staticmethod
    def _call(kind, method):
        return kind(method if method.startswith("/") else SERVICE + method)

    # ------------------------------------------------------------ the calls most tests make

    def tickets(self, sql):
        """The tickets of a query's endpoints."""
        info = fields(self.unary("GetFlightInfo", by_command(statement(sql))))
        return [fields(fields(endpoint)[1][0])[1][0] for endpoint in info.get(3, [])]

    def fetch(self, ticket, **options):
        """The messages of a ticket, as they come."""
        return self.streamed("DoGet", message((1, ticket)), **options)

    def query(self, sql, **options):
        """The messages of a query, as they come."""
        return self.fetch(statement(sql), **options)

    def act(self, name, body=b"", **options):
        """The bodies of an action's results."""
        results = self.streamed("DoAction", action(name, body), **options)
        return [fields(result).get(1, [b""])[0] for result in results]

    def put(self, *messages):
        """Sends a stream; gives the answers."""
        return list(self.exchanged("DoPut", messages))


def refusal(call, *arguments, **options):
    """The code and the message with which a call is refused."""
    try:
        answer = call(*arguments, **options)
        if not isinstance(answer, (bytes, list)):
            answer = list(answer)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError(f"not refused: {answer!r:.200}")
