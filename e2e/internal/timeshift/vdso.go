package timeshift

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// atSysinfoEHDR is the auxiliary vector's entry that holds the vDSO's address.
const atSysinfoEHDR = 33

// maxVDSO bounds what is read of the vDSO; it is two to four pages long.
const maxVDSO = 64 << 10

// patch overwrites the time functions in the stopped process's copy of the vDSO.
func patch(pid int, offset time.Duration) error {
	base, err := vdsoBase(pid)
	if err != nil {
		return fmt.Errorf("find the vDSO of process %d: %w", pid, err)
	}
	image, err := readVDSO(pid, base)
	if err != nil {
		return fmt.Errorf("read the vDSO of process %d: %w", pid, err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("read the vDSO of process %d: %w", pid, err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return fmt.Errorf("read the vDSO's symbols: %w", err)
	}
	code := machineCode(int64(offset / time.Second))
	for _, s := range symbols {
		replacement, ok := code[s.Name]
		if !ok {
			continue
		}
		delete(code, s.Name)
		if room := room(symbols, s); room < uint64(len(replacement)) {
			return fmt.Errorf("the vDSO's %s has room for %d bytes, needed are %d", s.Name, room, len(replacement))
		}
		if _, err := unix.PtracePokeData(pid, uintptr(base+s.Value), replacement); err != nil {
			return fmt.Errorf("overwrite %s: %w", s.Name, err)
		}
	}
	for name := range code {
		return fmt.Errorf("the vDSO has no %s", name)
	}
	return nil
}

// room is how many bytes lie between a function and the next one: compilers pad functions, and split
// their cold parts off.
func room(symbols []elf.Symbol, of elf.Symbol) uint64 {
	next := of.Value + max(of.Size, 16)
	found := false
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Value > of.Value && (!found || s.Value < next) {
			next, found = s.Value, true
		}
	}
	if !found {
		return of.Size
	}
	return next - of.Value
}

func vdsoBase(pid int) (uint64, error) {
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, err
	}
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == atSysinfoEHDR {
			return binary.NativeEndian.Uint64(auxv[8:]), nil
		}
	}
	return 0, fmt.Errorf("the kernel gave it none (booted with vdso=0?)")
}

// readVDSO reads from its start to the end of the mapping.
func readVDSO(pid int, base uint64) ([]byte, error) {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	image := make([]byte, maxVDSO)
	n, err := mem.ReadAt(image, int64(base))
	if n == 0 {
		return nil, err
	}
	return image[:n], nil // the error tells that the mapping has ended
}
