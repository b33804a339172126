/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Times submit_transfer() alone, at every getppid(), and the clock itself, for the benchmark. */
#include "bpf/include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "bpf/include/events.h"
#include "bpf/include/maps.h"
#include "bpf/include/socket.h"
#include "bpf/include/storage.h"
#include "bpf/include/ring.h"

enum { SLOTS = 1024 }; /* nanoseconds, the last one for all that took longer */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

static __always_inline void note(__u32 base, __u64 ns)
{
	__u32 key = base + (ns < SLOTS ? ns : SLOTS - 1);
	__u64 *found = bpf_map_lookup_elem(&times, &key);

	if (found)
		*found += 1;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(time_submit, struct pt_regs *regs, long number)
{
#if defined(__TARGET_ARCH_x86)
	const long getppid = 110;
#else
	const long getppid = 173;
#endif
	__u64 start, end;

	if (number != getppid)
		return 0;
	start = bpf_ktime_get_ns();
	submit_transfer(1, 1000, start, 64, PODWIRE_READ, PODWIRE_CALL_READ);
	end = bpf_ktime_get_ns();
	note(0, end - start);
	note(SLOTS, bpf_ktime_get_ns() - end);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
