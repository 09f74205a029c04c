package enroll

import (
	"strings"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// noSerials are what firmware says where nobody gave the board a number: it is no one box's.
var noSerials = map[string]bool{
	"to be filled by o.e.m.": true, "to be filled by oem": true, "default string": true, "system serial number": true,
	"chassis serial number": true, "not specified": true, "not applicable": true, "not available": true, "none": true, "n/a": true,
	"na": true, "unknown": true, "empty": true, "null": true, "serial": true, "serial number": true, "oem": true, "o.e.m.": true,
	"0123456789": true, "123456789": true, "1234567890": true, "12345678": true,
}

// normalSerial is the form in which serial numbers are compared and kept: lower case, runs of blanks as one.
// ok is false for what can't tell a box from others: nothing, a placeholder of firmware, one character
// repeated, or not printable ASCII.
func normalSerial(s string) (normal string, ok bool) {
	if len(s) > enrollapi.MaxSerial {
		return "", false
	}
	for _, c := range []byte(s) {
		if (c < ' ' || c > '~') && !strings.ContainsRune("\t\r\n", rune(c)) {
			return "", false
		}
	}
	s = strings.ToLower(strings.Join(strings.Fields(s), " "))
	if s == "" || noSerials[s] || len(s) > 1 && strings.Trim(s, s[:1]) == "" || s == "0" || s == "-" || s == "." {
		return "", false
	}
	return s, true
}
