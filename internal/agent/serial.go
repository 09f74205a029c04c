package agent

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// serialFiles are where the kernel shows the machine's serial number, in the order of preference: SMBIOS,
// device tree.
var serialFiles = []string{"sys/class/dmi/id/product_serial", "sys/firmware/devicetree/base/serial-number"}

// noSerials are what firmware says where nobody has put in a serial number, in lower case.
var noSerials = []string{
	"", "0", "none", "n/a", "na", "null", "unknown", "default", "default string", "not specified", "not applicable", "not available", "not present",
	"to be filled by o.e.m.", "to be filled by o.e.m", "system serial number", "serial number", "chassis serial number", "invalid", "oem", "o.e.m.",
	"123456789", "1234567890", "0123456789", "empty", "xxxxxxxxxx", ".", "-",
}

// machineSerial is the machine's serial number; empty if it has none to speak of. root is "/".
func machineSerial(root string) string {
	for _, name := range serialFiles {
		if s := readSerial(filepath.Join(root, name)); s != "" {
			return s
		}
	}
	return ""
}

func readSerial(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "" // not there, or not for this user
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, enrollapi.MaxSerial+2))
	if err != nil {
		return ""
	}
	return cleanSerial(string(data))
}

// cleanSerial takes off what firmware puts around a serial number. What is too long, has anything but
// printable ASCII in it, or is a placeholder, is none.
func cleanSerial(s string) string {
	s = strings.Trim(s, " \t\r\n\x00")
	if len(s) > enrollapi.MaxSerial || slices.Contains(noSerials, strings.ToLower(s)) || strings.Trim(s, "0") == "" {
		return ""
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return ""
		}
	}
	return s
}
