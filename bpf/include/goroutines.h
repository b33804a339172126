/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who makes a call in a Go program: a goroutine, which may leave its thread in the middle of a call
 * and go on in another one. What is kept by task for other programs is kept by goroutine for these.
 */
#ifndef PODWIRE_GOROUTINES_H
#define PODWIRE_GOROUTINES_H

struct go_process {
	__u32 program; /* tells it from what ran or will run under the same id */
	__u8 convention; /* enum podwire_go_convention */
	__u8 pad[3];
};

/* Processes that have called Go's crypto/tls, by process id; until they end or are another program. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct go_process);
} go_processes SEC(".maps");

/* Whether there was one: till then nobody looks for it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} go_seen SEC(".maps");

struct goroutine_key {
	__u64 goroutine; /* address of the runtime's own state of it */
	__u32 pid;
	__u32 program; /* Go's memory is at the same place in all: so are many of its goroutines */
};

/* Goroutines that have called it. Many wait in a read for ever, and the oldest may be evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 15);
	__type(key, struct goroutine_key);
	__type(value, struct tls_call);
} goroutines SEC(".maps");

/* The goroutine that the current thread runs; 0 if that cannot be told. */
static __always_inline __u64 goroutine_by(__u8 convention)
{
#if defined(__TARGET_ARCH_x86)
	__u64 goroutine = 0;

	if (convention == PODWIRE_GO_STACK) {
		/* -8(FS); src/runtime/go_tls.h */
		goroutine = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), thread.fsbase);
		if (bpf_probe_read_user(&goroutine, sizeof(goroutine), (void *)(goroutine - 8)))
			return 0;
		return goroutine;
	}
#endif
	return READ_USER_REGS(GOROUTINE_REGISTER);
}

/* Of a system call: what its goroutine is in, or else its task. */
static __always_inline struct tls_call *tls_of_caller(void)
{
	struct goroutine_key key = {};
	__u32 zero = 0, *seen = bpf_map_lookup_elem(&go_seen, &zero);
	struct go_process *process;
	struct tls_call *found;

	if (!seen || !*seen)
		return current_tls();
	key.pid = bpf_get_current_pid_tgid() >> 32;
	process = bpf_map_lookup_elem(&go_processes, &key.pid);
	if (!process)
		return current_tls();
	key.program = process->program;
	key.goroutine = goroutine_by(process->convention);
	found = bpf_map_lookup_elem(&goroutines, &key);
	return found ? found : current_tls();
}

/* A process is another program now, or has ended. */
static __always_inline void forget_goroutines(void)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;

	bpf_map_delete_elem(&go_processes, &pid);
}

#endif
