package egress

import (
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// traceparentLen is the length of the header's fields of version 00: 2, 32, 16 and 2 digits, and dashes between them.
const traceparentLen = 2 + 1 + 32 + 1 + 16 + 1 + 2

// traceparent is the caller's trace context (https://www.w3.org/TR/trace-context/, section 3.2); zero if it sent none
// that is valid. kube-apiserver sends none.
func traceparent(h http.Header) wire.Trace {
	all := h.Values("Traceparent")
	if len(all) != 1 {
		return wire.Trace{}
	}
	return parseTraceparent(all[0])
}

func parseTraceparent(v string) wire.Trace {
	// Versions to come may have more fields behind those of the first.
	if len(v) < traceparentLen || v[2] != '-' || v[35] != '-' || v[52] != '-' ||
		strings.Trim(v[:traceparentLen], "0123456789abcdef-") != "" {
		return wire.Trace{}
	}
	if version, more := v[:2], v[traceparentLen:]; version == "ff" || more != "" && (version == "00" || more[0] != '-') {
		return wire.Trace{}
	}
	var t wire.Trace
	var version, flags [1]byte
	for _, f := range []struct {
		into []byte
		from string
	}{{version[:], v[:2]}, {t.ID[:], v[3:35]}, {t.Span[:], v[36:52]}, {flags[:], v[53:55]}} {
		if _, err := hex.Decode(f.into, []byte(f.from)); err != nil {
			return wire.Trace{}
		}
	}
	if t.Flags = flags[0] & wire.FlagSampled; !t.Valid() {
		return wire.Trace{}
	}
	return t
}
