package bidi

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// begin is the headers of every stream that is served.
var begin = headerBlock(":status", "200", "content-type", "application/grpc")

// headerBlock makes a block of names and their values. It neither adds to the table of the one who reads it, nor needs what is in there, so that it is good for
// all connections at any time.
func headerBlock(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1], Sensitive: true}) // a bytes.Buffer takes all
	}
	return b.Bytes()
}

// maxStatus bounds the message of a status, in bytes.
const maxStatus = 1 << 10

// statusBlock is the last headers of a stream; alone: they are the first, too.
func statusBlock(s *status.Status, alone bool) []byte {
	pairs := []string{"grpc-status", strconv.Itoa(int(s.Code()))}
	if s.Code() != codes.OK {
		pairs = append(pairs, "grpc-message", percent(s.Message()))
	}
	if alone {
		pairs = append([]string{":status", "200", "content-type", "application/grpc"}, pairs...)
	}
	return headerBlock(pairs...)
}

// percent encodes a message as gRPC's headers have it.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case b.Len() >= maxStatus:
			return b.String()
		case c >= ' ' && c <= '~' && c != '%':
			b.WriteByte(c)
		default:
			const hex = "0123456789ABCDEF"
			b.WriteString(string([]byte{'%', hex[c>>4], hex[c&15]}))
		}
	}
	return b.String()
}
