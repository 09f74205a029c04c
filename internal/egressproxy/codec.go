package egressproxy

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// codec is konnectivity's packets as gRPC's own codec writes and reads them, but that those of data, which are nearly all, are neither
// copied more than once nor put into a buffer that is zeroed first and one that is left to the garbage collector.
type codec struct{}

// Name implements encoding.CodecV2. It is that of the codec in whose place this one is.
func (codec) Name() string { return "proto" }

// sending is a packet of data that is sent: n bytes of buf, which is whose it is to send from then on.
type sending struct {
	id  int64
	buf *[]byte
	n   int
}

// received is a packet. One of data is in data, and not in packet.
type received struct {
	packet *konnectivity.Packet // nil: it is one of data
	id     int64
	data   held
}

// held are bytes in a buffer of the pool.
type held struct {
	bytes []byte
	buf   *[]byte // nil: there is none
}

// weight is what they take of the memory.
func (h held) weight() int {
	if h.buf == nil {
		return len(h.bytes)
	}
	return cap(*h.buf)
}

func (h held) free() {
	if h.buf != nil {
		dirty.Put(h.buf)
	}
}

// Fields of Packet and Data: see konnectivity's client.proto.
const (
	packetType = 1
	packetData = 4
	dataID     = 1
	dataBytes  = 3
)

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *sending:
		head := make([]byte, 0, 40)
		head = protowire.AppendTag(head, packetType, protowire.VarintType)
		head = protowire.AppendVarint(head, uint64(konnectivity.PacketType_DATA))
		head = protowire.AppendTag(head, packetData, protowire.BytesType)
		size := protowire.SizeTag(dataID) + protowire.SizeVarint(uint64(v.id)) + protowire.SizeTag(dataBytes) + protowire.SizeBytes(v.n)
		head = protowire.AppendVarint(head, uint64(size))
		head = protowire.AppendTag(head, dataID, protowire.VarintType)
		head = protowire.AppendVarint(head, uint64(v.id))
		head = protowire.AppendTag(head, dataBytes, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(v.n))
		*v.buf = (*v.buf)[:v.n]
		return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(v.buf, dirty)}, nil
	case proto.Message:
		b, err := proto.Marshal(v)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("%T is no packet", v)
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*received)
	if !ok {
		return fmt.Errorf("%T is not what packets are read into", v)
	}
	n := data.Len()
	h := held{buf: dirty.Get(n)}
	data.CopyTo(*h.buf)
	id, b, ok := parseData((*h.buf)[:n])
	if ok {
		h.bytes = b
		*r = received{id: id, data: h}
		return nil
	}
	defer h.free()
	*r = received{packet: new(konnectivity.Packet)}
	return proto.Unmarshal((*h.buf)[:n], r.packet)
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

// dirty is a mem.BufferPool whose buffers hold what they held before: each is written to its length before it is read.
var dirty = newDirtyPool()

type dirtyPool [len(dirtySizes)]sync.Pool

// dirtySizes are those of the buffers: for what is short, for a frame of HTTP/2, for a packet of io.Copy's at the client, and for one of
// chunk. No buffer is much larger than what is in it: who sends little things must not fill the memory with them.
var dirtySizes = [...]int{4 << 10, 16<<10 + 64, 32<<10 + 64, chunk + 64}

// dirtyLeast is from when on a buffer is worth to be kept.
const dirtyLeast = 512

func newDirtyPool() *dirtyPool {
	p := new(dirtyPool)
	for i, n := range dirtySizes {
		p[i].New = func() any { b := make([]byte, n); return &b }
	}
	return p
}

// Get implements mem.BufferPool.
func (p *dirtyPool) Get(n int) *[]byte {
	for i, size := range dirtySizes {
		if n > dirtyLeast && n <= size {
			b := p[i].Get().(*[]byte)
			*b = (*b)[:n]
			return b
		}
	}
	b := make([]byte, n)
	return &b
}

// Put implements mem.BufferPool.
func (p *dirtyPool) Put(b *[]byte) {
	for i, size := range dirtySizes {
		if cap(*b) == size {
			p[i].Put(b)
			return
		}
	}
}
