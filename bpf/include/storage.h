/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * State in the storage of its socket or task: the kernel frees it with them, so nothing leaks,
 * nothing is evicted, and no key can be reused under us. Tracing programs have it since v5.11
 * (Linux kernel commits 8e4597c627fb, 4cf1bc1f1045), atomics that fetch since v5.12.
 */
#ifndef PODWIRE_STORAGE_H
#define PODWIRE_STORAGE_H

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct call_state);
} calls SEC(".maps");

/* Next sequence number of the ring `connections`, which several kinds share. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} connection_sequence SEC(".maps");

__u64 podwire_ids = 0;

static __always_inline __u64 next_id(void)
{
	return __sync_fetch_and_add(&podwire_ids, 1) + 1;
}

/* Numbers records per lane, here per CPU. */
static __always_inline __u64 next_connection_sequence(__u32 *lane)
{
	__u32 key = 0;
	__u64 *sequence = bpf_map_lookup_elem(&connection_sequence, &key);

	*lane = bpf_get_smp_processor_id();
	return sequence ? __sync_fetch_and_add(sequence, 1) : 0;
}

static __always_inline __u64 next_payload_sequence(__u32 *lane)
{
	__u32 key = 0;
	__u64 *sequence = bpf_map_lookup_elem(&payload_sequence, &key);

	*lane = bpf_get_smp_processor_id();
	return sequence ? __sync_fetch_and_add(sequence, 1) : 0;
}

/* Count a record as submitted; alone in its ring, the number so far is its sequence number. */
static __always_inline __u64 count_submitted(struct podwire_counts *counted, __u32 kind, __u32 *lane)
{
	*lane = bpf_get_smp_processor_id();
	return __sync_fetch_and_add(&counted->submitted, 1);
}

/* How many buffers, pieces and frames of a call are copied; and up to which step its frames are
 * told apart. */
enum { MAX_STEPS = 8192, MOST_FRAMES = MAX_STEPS / 2 };

/* Calls step(i, of) until it returns something. The helper came with v5.17. */
#define LOOP(times, step, of) bpf_loop(times, step, of, 0)

static __always_inline struct task_struct *current_task(void)
{
	return bpf_get_current_task_btf();
}

/* A member of a task. */
#define READ_TASK(task, member) ((task)->member)

/* A member of a sock; reading it by a helper would take tens of nanoseconds. */
#define READ_SOCK(sk, member) ((sk)->member)

static __always_inline struct tcp_sock *tcp_sock_of(struct sock *sk)
{
	return bpf_skc_to_tcp_sock(sk);
}

/* A member of a TCP sock. */
#define READ_TCP(tp, member) ((tp) ? (tp)->member : 0)

/* The increase of a counter since it was told; of two that tell it at once only one does. */
#define take_(told, now, difference)                                                               \
	({                                                                                         \
		typeof(*(told)) now_ = (now), old_ = *(told), taken_ = 0;                          \
		if ((difference)(now_ - old_) > 0 &&                                               \
		    __sync_val_compare_and_swap(told, old_, now_) == old_)                         \
			taken_ = now_ - old_;                                                      \
		taken_;                                                                            \
	})

static __always_inline __u32 take_32(__u32 *told, __u32 now)
{
	return take_(told, now, __s32);
}

static __always_inline __u64 take_64(__u64 *told, __u64 now)
{
	return take_(told, now, __s64);
}

static __always_inline struct call_state *current_call(void)
{
	return bpf_task_storage_get(&calls, current_task(), 0, 0);
}

static __always_inline struct call_state *create_call(struct task_struct *task)
{
	return bpf_task_storage_get(&calls, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline struct socket_state *create_state(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline struct socket_state *find_state(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, 0, 0);
}

static __always_inline struct tls_call *current_tls(void)
{
	struct call_state *call = current_call();

	if (!call)
		return 0;
	barrier_var(call); /* no arithmetic before that, which the verifier refuses */
	return &call->tls;
}

static __always_inline struct tls_call *create_tls(void)
{
	struct call_state *call = create_call(current_task());

	return call ? &call->tls : 0;
}

/* The kernel frees both with their owners. */
static __always_inline void forget_state(struct sock *sk)
{
}

static __always_inline void forget_call(void)
{
}

/* The TCP sock of a file that an iterator shows, or NULL. */
static __always_inline struct sock *sock_of_file(struct file *file)
{
	struct socket *socket = bpf_sock_from_file(file);
	struct sock *sk;

	if (!socket)
		return 0;
	sk = socket->sk;
	return sk && is_tcp(sk) ? sk : 0;
}

/*
 * Read the state of a sock that the verifier does not know, by walking its storage as
 * bpf_local_storage_lookup() does.
 */
static __always_inline bool read_state(struct sock *sk, struct socket_state *to)
{
	__u32 map_id = ((struct bpf_map *)&sockets)->id;
	struct hlist_node *node = BPF_CORE_READ(sk, sk_bpf_storage, list.first);
	struct bpf_local_storage_elem *elem;

	for (int i = 0; i < 8 && node; i++) {
		elem = (void *)node - bpf_core_field_offset(elem->snode);
		if (BPF_CORE_READ(elem, sdata.smap, map.id) == map_id)
			return !bpf_probe_read_kernel(to, sizeof(*to),
						      (void *)elem +
							      bpf_core_field_offset(elem->sdata.data));
		node = BPF_CORE_READ(node, next);
	}
	return false;
}

#endif
