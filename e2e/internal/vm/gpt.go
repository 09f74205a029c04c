package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf16"
)

// Partition is an entry of a disk's GUID partition table (UEFI 2.10, section 5.3).
type Partition struct {
	ID, Name     string // as they are written: lower case with hyphens, and as it was named
	Offset, Size int64  // in bytes
}

const (
	sector = 512
	// maxEntries bounds what a table may say of itself; 128 is usual.
	maxEntries = 1024
)

// Partitions reads a disk's partition table. It does not verify the table's checksums: whoever boots from it does.
func Partitions(disk string) ([]Partition, error) {
	f, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parts, err := readGPT(f)
	if err != nil {
		return nil, fmt.Errorf("read the partition table of %s: %w", disk, err)
	}
	return parts, nil
}

func readGPT(disk io.ReaderAt) ([]Partition, error) {
	header := make([]byte, 92)
	if _, err := disk.ReadAt(header, sector); err != nil {
		return nil, err
	}
	if string(header[:8]) != "EFI PART" {
		return nil, errors.New("no GUID partition table")
	}
	first, count, size := binary.LittleEndian.Uint64(header[72:]), binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	if count > maxEntries || size < 128 || size > 4096 {
		return nil, fmt.Errorf("%d entries of %d bytes make no sense", count, size)
	}
	table := make([]byte, int(count)*int(size))
	if _, err := disk.ReadAt(table, int64(first)*sector); err != nil {
		return nil, err
	}
	var out []Partition
	for i := range int(count) {
		e := table[i*int(size):][:128]
		if [16]byte(e[:16]) == ([16]byte{}) {
			continue // unused
		}
		start, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		out = append(out, Partition{
			ID: guid(e[16:32]), Name: partitionName(e[56:128]),
			Offset: int64(start) * sector, Size: int64(last-start+1) * sector,
		})
	}
	return out, nil
}

// guid writes a GUID, of which the first three parts are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

func partitionName(b []byte) string {
	var units []uint16
	for i := 0; i < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
