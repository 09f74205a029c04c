package timeshift

import "encoding/binary"

// machineCode gives the functions that take the place of the vDSO's, by symbol. Each does the system call and adds
// offset seconds to what it returned. They use only registers that the callee may spoil.
var machineCode = func(offset int64) map[string][]byte {
	seconds := binary.LittleEndian.AppendUint64(nil, uint64(offset))
	return map[string][]byte{
		// int clock_gettime(clockid_t edi, struct timespec *rsi)
		"__vdso_clock_gettime": join(
			[]byte{0xb8, 228, 0, 0, 0},  // mov eax, SYS_clock_gettime
			[]byte{0x0f, 0x05},          // syscall
			[]byte{0x85, 0xc0},          // test eax, eax
			[]byte{0x75, 0x16},          // jnz end
			[]byte{0x85, 0xff},          // test edi, edi        CLOCK_REALTIME
			[]byte{0x74, 0x05},          // jz add
			[]byte{0x83, 0xff, 0x05},    // cmp edi, 5           CLOCK_REALTIME_COARSE
			[]byte{0x75, 0x0d},          // jne end
			[]byte{0x48, 0xb9}, seconds, // add: mov rcx, seconds
			[]byte{0x48, 0x01, 0x0e}, // add [rsi], rcx
			[]byte{0xc3},             // end: ret
		),
		// int gettimeofday(struct timeval *rdi, struct timezone *rsi)
		"__vdso_gettimeofday": join(
			[]byte{0xb8, 96, 0, 0, 0},   // mov eax, SYS_gettimeofday
			[]byte{0x0f, 0x05},          // syscall
			[]byte{0x85, 0xc0},          // test eax, eax
			[]byte{0x75, 0x12},          // jnz end
			[]byte{0x48, 0x85, 0xff},    // test rdi, rdi
			[]byte{0x74, 0x0d},          // jz end
			[]byte{0x48, 0xb9}, seconds, // mov rcx, seconds
			[]byte{0x48, 0x01, 0x0f}, // add [rdi], rcx
			[]byte{0xc3},             // end: ret
		),
		// time_t time(time_t *rdi): the system call is given no pointer, so that it can't write there
		"__vdso_time": join(
			[]byte{0x57},                // push rdi
			[]byte{0x31, 0xff},          // xor edi, edi
			[]byte{0xb8, 201, 0, 0, 0},  // mov eax, SYS_time
			[]byte{0x0f, 0x05},          // syscall
			[]byte{0x5f},                // pop rdi
			[]byte{0x48, 0xb9}, seconds, // mov rcx, seconds
			[]byte{0x48, 0x01, 0xc8}, // add rax, rcx
			[]byte{0x48, 0x85, 0xff}, // test rdi, rdi
			[]byte{0x74, 0x03},       // jz end
			[]byte{0x48, 0x89, 0x07}, // mov [rdi], rax
			[]byte{0xc3},             // end: ret
		),
	}
}

func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
