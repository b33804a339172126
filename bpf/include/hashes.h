/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * State in hashes, by the address of the sock and by thread id, for kernels whose tracing programs
 * have no storage, or that tell no socket with the bytes: here a sock that was reached through a
 * file descriptor leads to its state as well. tcp_destroy_sock and sched_process_exit delete it.
 * Nothing in here needs more than v5.10, where atomics do not fetch.
 */
#ifndef PODWIRE_HASHES_H
#define PODWIRE_HASHES_H

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 19);
	__type(key, __u64);
	__type(value, struct socket_state);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, __u32);
	__type(value, struct call_state);
} calls SEC(".maps");

/* By thread id; apart from `calls`, because of the probes that use it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u32);
	__type(value, struct tls_call);
} tls_calls SEC(".maps");

/* What new entries begin as; too large for the stack. */
static const struct socket_state new_socket = {};
static const struct call_state new_call = {};

enum {
	LEVELS = 4, /* task, softirq, interrupt, NMI */
	LEVEL_SHIFT = 10, /* above the number of the CPU */
	LANE_SHIFT = 12,
};

struct numbers {
	__u64 id;
	__u64 sequences[PODWIRE_KINDS]; /* of records, by the kind that stands for the ring */
};

/*
 * Without fetching atomics a program may be interrupted, on its CPU, between reading a number and
 * writing the next. Interrupts nest strictly: each finds how deep it is, and has numbers of its own
 * there. CPU and depth together are the lane, which records carry as their CPU. Where a program may be
 * left for another task they do not nest: collector/attach.py refuses this object there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LEVELS);
	__type(key, __u32);
	__type(value, struct numbers);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} depths SEC(".maps");

#define lane_of(level) (bpf_get_smp_processor_id() | (level) << LEVEL_SHIFT)

/* Takes the next number of one member; `lane` becomes whose it is. */
#define take_number(member, lane)                                                                  \
	({                                                                                         \
		__u32 zero_ = 0, level_ = 0;                                                       \
		volatile __u32 *depth_ = bpf_map_lookup_elem(&depths, &zero_);                     \
		volatile struct numbers *numbers_;                                                 \
		__u64 taken_ = 0;                                                                  \
		if (depth_) {                                                                      \
			level_ = *depth_;                                                          \
			*depth_ = level_ + 1;                                                      \
			numbers_ = bpf_map_lookup_elem(&numbers, &level_);                         \
			if (numbers_) {                                                            \
				taken_ = numbers_->member;                                         \
				numbers_->member = taken_ + 1;                                     \
			}                                                                          \
			*depth_ = level_;                                                          \
		}                                                                                  \
		*(lane) = lane_of(level_);                                                         \
		taken_;                                                                            \
	})

/* A lane would have to make one every four microseconds, all the time, to overtake the clock. */
static __always_inline __u64 next_id(void)
{
	__u32 lane;
	__u64 number = take_number(id, &lane);

	return (number << LANE_SHIFT | lane) + 1;
}

static __always_inline __u64 next_connection_sequence(__u32 *lane)
{
	return take_number(sequences[PODWIRE_KIND_CONNECTION], lane);
}

static __always_inline __u64 next_payload_sequence(__u32 *lane)
{
	return take_number(sequences[PODWIRE_KIND_PAYLOAD], lane);
}

/* Count a record as submitted; returns its sequence number. */
static __always_inline __u64 count_submitted(struct podwire_counts *counted, __u32 kind, __u32 *lane)
{
	__sync_fetch_and_add(&counted->submitted, 1);
	if (kind == PODWIRE_KIND_TRANSFER)
		return take_number(sequences[PODWIRE_KIND_TRANSFER], lane);
	if (kind == PODWIRE_KIND_DROP)
		return take_number(sequences[PODWIRE_KIND_DROP], lane);
	return take_number(sequences[PODWIRE_KIND_PROCESS], lane);
}

/* How many buffers and pieces of a call are copied; the verifier follows every one of them, and has no
 * patience left for frames. */
enum { MAX_STEPS = 24, MOST_FRAMES = 0 };

/* Calls step(i, of) until it returns something. */
#define LOOP(times, step, of)                                                                      \
	for (int i_ = 0; i_ < (times) && !(step)(i_, of); i_++)

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/* A member of a task, which the verifier does not know here. */
#define READ_TASK(task, member) BPF_CORE_READ(task, member)

/* A member of a sock. */
#define READ_SOCK(sk, member) BPF_CORE_READ(sk, member)

static __always_inline struct tcp_sock *tcp_sock_of(struct sock *sk)
{
	return (struct tcp_sock *)sk;
}

/* A member of a TCP sock. */
#define READ_TCP(tp, member) BPF_CORE_READ(tp, member)

/* The increase of a counter since it was told. Two that tell it at once both do, without atomics
 * that compare: then the next increase is told less often. */
static __always_inline __u32 take_32(__u32 *told, __u32 now)
{
	__s32 increase = now - *told;

	if (increase <= 0)
		return 0;
	__sync_fetch_and_add(told, (__u32)increase);
	return increase;
}

static __always_inline __u64 take_64(__u64 *told, __u64 now)
{
	__s64 increase = now - *told;

	if (increase <= 0)
		return 0;
	__sync_fetch_and_add(told, (__u64)increase);
	return increase;
}

static __always_inline struct call_state *current_call(void)
{
	__u32 key = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&calls, &key);
}

static __always_inline struct call_state *create_call(struct task_struct *task)
{
	__u32 key = bpf_get_current_pid_tgid();
	struct call_state *call = bpf_map_lookup_elem(&calls, &key);

	if (call)
		return call;
	bpf_map_update_elem(&calls, &key, &new_call, BPF_NOEXIST);
	return bpf_map_lookup_elem(&calls, &key);
}

static __always_inline struct tls_call *current_tls(void)
{
	__u32 key = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&tls_calls, &key);
}

static __always_inline struct tls_call *create_tls(void)
{
	__u32 key = bpf_get_current_pid_tgid();
	struct tls_call *found = bpf_map_lookup_elem(&tls_calls, &key), fresh = {};

	if (found)
		return found;
	bpf_map_update_elem(&tls_calls, &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tls_calls, &key);
}

static __always_inline void forget_call(void)
{
	__u32 key = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&calls, &key);
	if (podwire_tls)
		bpf_map_delete_elem(&tls_calls, &key);
}

static __always_inline struct socket_state *find_state(struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&sockets, &key);
}

static __always_inline struct socket_state *create_state(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct socket_state *st = bpf_map_lookup_elem(&sockets, &key);

	if (st)
		return st;
	bpf_map_update_elem(&sockets, &key, &new_socket, BPF_NOEXIST);
	return bpf_map_lookup_elem(&sockets, &key);
}

static __always_inline void forget_state(struct sock *sk)
{
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&sockets, &key);
}

/* The TCP sock of a file that an iterator shows, or NULL. bpf_sock_from_file() came with v5.11. */
static __always_inline struct sock *sock_of_file(struct file *file)
{
	struct socket *socket;
	struct sock *sk;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	return sk && is_tcp_unverified(sk) ? sk : 0;
}

#endif
