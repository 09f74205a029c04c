package egressproxy

import (
	"google.golang.org/protobuf/encoding/protowire"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// Packets of data, which are nearly all, are written and read here, so that their bytes are not copied for it.

// Fields of Packet and Data: see konnectivity's client.proto.
const (
	packetType = 1
	packetData = 4
	dataID     = 1
	dataBytes  = 3
)

// appendData writes what comes before the n bytes of a packet of data: all but them.
func appendData(b []byte, id int64, n int) []byte {
	b = protowire.AppendTag(b, packetType, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(konnectivity.PacketType_DATA))
	b = protowire.AppendTag(b, packetData, protowire.BytesType)
	size := protowire.SizeTag(dataID) + protowire.SizeVarint(uint64(id)) + protowire.SizeTag(dataBytes) + protowire.SizeBytes(n)
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendTag(b, dataID, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(id))
	b = protowire.AppendTag(b, dataBytes, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(n))
}

// parseData reads a packet of data as its client writes it. Whatever else it is, also if it could be read as one in the end, is not ok.
func parseData(b []byte) (id int64, data []byte, ok bool) {
	var kind uint64
	var inner []byte
	for len(b) > 0 {
		f, n := consume(b)
		switch {
		case n < 0:
			return 0, nil, false
		case f.is(packetType, protowire.VarintType):
			kind = f.number
		case f.is(packetData, protowire.BytesType) && inner == nil:
			inner = f.bytes
		default:
			return 0, nil, false
		}
		b = b[n:]
	}
	if kind != uint64(konnectivity.PacketType_DATA) || inner == nil {
		return 0, nil, false
	}
	for len(inner) > 0 {
		f, n := consume(inner)
		switch {
		case n < 0:
			return 0, nil, false
		case f.is(dataID, protowire.VarintType):
			id = int64(f.number)
		case f.is(dataBytes, protowire.BytesType):
			data = f.bytes
		default: // such as the error, which clients do not send
			return 0, nil, false
		}
		inner = inner[n:]
	}
	return id, data, true
}

// field is one of a message: a number, or bytes.
type field struct {
	id     protowire.Number
	what   protowire.Type
	number uint64
	bytes  []byte
}

func (f field) is(id protowire.Number, what protowire.Type) bool { return f.id == id && f.what == what }

// consume reads the first field of a message, and returns its length; negative: there is none, or one that is neither number nor bytes.
func consume(b []byte) (f field, n int) {
	id, what, tag := protowire.ConsumeTag(b)
	if tag < 0 {
		return field{}, -1
	}
	f = field{id: id, what: what}
	switch what {
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(b[tag:])
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(b[tag:])
	default:
		return field{}, -1
	}
	if n < 0 {
		return field{}, -1
	}
	return f, tag + n
}
