/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Times submit_transfer() alone, at every getppid(), and the clock itself, for the benchmark. With
 * `podwire_stages` the transfer has every figure of a packet that was read.
 */
#include "bpf/include/vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "bpf/include/events.h"
#include "bpf/include/maps.h"
#include "bpf/include/flows.h"
#include "bpf/include/socket.h"
#include "bpf/include/storage.h"
#include "bpf/include/figures.h"
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

static __always_inline void fill_flow(struct sock *sk)
{
	struct flow *flow;

	begin_flow(sk);
	flow = find_flow((__u64)sk);
	if (!flow)
		return;
	for (int i = PODWIRE_READ_L4_DURATION; i < PODWIRE_READ_CALL_DURATION; i++)
		flow->read[i] = 1000;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(time_submit, struct pt_regs *regs, long number)
{
#if defined(__TARGET_ARCH_x86)
	const long getppid = 110;
#else
	const long getppid = 173;
#endif
	struct transfer transfer = {
		.connection_id = 1,
		.duration_ns = 1000,
		.sk = 1,
		.size = 64,
		.direction = PODWIRE_READ,
		.call = PODWIRE_CALL_READ,
		.counted = {.is_known = 1, .packets = 1, .packet_bytes = 64},
	};
	__u64 start, end;

	if (number != getppid)
		return 0;
	fill_flow((struct sock *)transfer.sk);
	start = bpf_ktime_get_ns();
	transfer.end_ns = start;
	submit_transfer(&transfer);
	end = bpf_ktime_get_ns();
	note(0, end - start);
	note(SLOTS, bpf_ktime_get_ns() - end);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
