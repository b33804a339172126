/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The state of sockets and tasks, and the connection records made from it. */
#ifndef PODWIRE_STATE_H
#define PODWIRE_STATE_H

static __always_inline void own_by_current(struct owner *owner)
{
	__u64 pid_tid = bpf_get_current_pid_tgid();

	owner->cgroup_id = bpf_get_current_cgroup_id();
	owner->pid = pid_tid >> 32;
	owner->tid = (__u32)pid_tid;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
}

static __always_inline void fill_owner(struct podwire_connection_record *record,
				       const struct owner *owner, struct sock *sk)
{
	record->cgroup_id = owner->pid ? owner->cgroup_id : cgroup_of_sock(sk);
	record->pid = owner->pid;
	record->tid = owner->tid;
	__builtin_memcpy(record->comm, owner->comm, sizeof(record->comm));
}

/* Everything but `error` and flags, which are 0, and what submit_connection() adds. Where no state of
 * the sock can be had its owner is enough: a whole state is too much for the stack. */
static __always_inline void fill_owned(struct podwire_connection_record *record, __u8 event,
				       struct sock *sk, __u64 connection_id, __u8 role,
				       const struct owner *owner, __u64 end_ns, __u64 duration_ns,
				       __u8 tcp_state)
{
	__builtin_memset(record, 0, sizeof(*record));
	record->connection_id = connection_id;
	record->end_ns = end_ns;
	record->duration_ns = duration_ns;
	record->event = event;
	record->role = role;
	record->state = tcp_state;
	fill_addresses(record, sk);
	fill_owner(record, owner, sk);
}

static __always_inline void fill_record(struct podwire_connection_record *record, __u8 event,
					struct sock *sk, const struct socket_state *st,
					__u64 end_ns, __u64 duration_ns, __u8 tcp_state)
{
	fill_owned(record, event, sk, st->connection_id, st->role, &st->owner, end_ns, duration_ns,
		   tcp_state);
	record->flags = st->flags;
}

static __always_inline __u8 tcp_state_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_state);
}

/*
 * Tell user space who this connection is, until the ring has taken it. First seen by a softirq, it
 * is told again when a process touches it. `st` may be a copy.
 */
static __noinline void announce(struct sock *sk, struct socket_state *st)
{
	struct podwire_connection_record record;
	__u8 wanted;

	if (!st)
		return;
	wanted = st->owner.pid ? ANNOUNCED : ANNOUNCED_WITHOUT_OWNER;
	if (st->announcement >= wanted)
		return;
	fill_record(&record, PODWIRE_ANNOUNCED, sk, st, bpf_ktime_get_ns(), PODWIRE_UNMEASURED,
		    tcp_state_of(sk));
	if (submit_connection(&record))
		st->announcement = wanted;
}

/* Submit an event that carries the whole announcement anyway. */
static __always_inline void submit_and_announce(struct podwire_connection_record *record,
						struct socket_state *st)
{
	__u8 told = st->owner.pid ? ANNOUNCED : ANNOUNCED_WITHOUT_OWNER;

	if (submit_connection(record) && st->announcement < told)
		st->announcement = told;
}

static __always_inline __u64 new_connection_id(void)
{
	return podwire_id_base + next_id();
}

static __always_inline void start_state(struct socket_state *st, __u8 stage, __u8 role)
{
	__builtin_memset(st, 0, sizeof(*st));
	st->connection_id = new_connection_id();
	st->stage = stage;
	st->role = role;
}

/* A socket of which no beginning was seen. It was open before us: server if its port was listened on
 * then. Or the program was skipped when the handshake ended, and accept() has left a note. */
static __always_inline void start_unseen(struct socket_state *st, struct sock *sk)
{
	struct listener listener = {
		.netns = netns_of(sk),
		.port = BPF_CORE_READ(sk, __sk_common.skc_num),
	};
	__u64 key = (__u64)sk;

	if (bpf_map_lookup_elem(&accept_queue, &key)) {
		start_state(st, STAGE_OPEN, PODWIRE_ROLE_SERVER);
		st->is_waiting = 1;
	} else {
		start_state(st, STAGE_OPEN,
			    bpf_map_lookup_elem(&listeners, &listener) ? PODWIRE_ROLE_SERVER :
									 PODWIRE_ROLE_CLIENT);
		st->flags = PODWIRE_PREEXISTING;
		skip_counters(sk, st);
	}
	begin_flow(sk);
}

static __noinline bool is_sock_left_out(struct sock *sk, const struct socket_state *st)
{
	__u32 local_port = BPF_CORE_READ(sk, __sk_common.skc_num);

	if (!st)
		return false;
	if (!local_port) /* see fill_addresses() */
		local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	return is_left_out(st->role, local_port,
			   bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport)), st->owner.pid);
}

static __always_inline void leave_out(struct sock *sk, struct socket_state *st)
{
	if (st->flags & PODWIRE_TLS)
		bpf_map_delete_elem(&tls_streams, &st->connection_id);
	end_flow(sk);
	st->announcement = ANNOUNCED_NEVER;
	st->payload = PAYLOAD_UNWANTED;
	st->is_left_out = 1;
}

/*
 * Whether a connection that ends now was outside the scope when anything was told last. It ends there:
 * its process may have been forgotten already, and would bring it back.
 */
static __noinline bool ends_outside(struct sock *sk, struct socket_state *st)
{
	if (!st)
		return false;
	if (!st->is_left_out && st->scope != current_scope() &&
	    !bpf_map_delete_elem(&let_go, &st->connection_id))
		leave_out(sk, st);
	return st->is_left_out;
}

/* A new connection to user space, as if all had begun now: what it did meanwhile is not to be told. */
static __always_inline void come_back(struct sock *sk, struct socket_state *st)
{
	struct owner owner = st->owner;

	start_state(st, STAGE_OPEN, st->role);
	st->owner = owner;
	st->flags = PODWIRE_PREEXISTING;
	skip_counters(sk, st);
	begin_flow(sk);
}

/* Look at a connection again after the monitoring scope has changed, maybe more than once. One of which
 * user space knows nothing is that of the task that uses it now: who did before may be gone. */
static __noinline int consider(struct sock *sk, struct socket_state *st, bool is_used)
{
	__u32 scope = current_scope();
	bool is_out, is_let_go;

	if (!st || st->scope == scope)
		return 0;
	is_let_go = !bpf_map_delete_elem(&let_go, &st->connection_id);
	if (is_used && (st->is_left_out || is_let_go))
		own_by_current(&st->owner);
	is_out = is_sock_left_out(sk, st);
	if ((is_out || is_let_go) && !st->is_left_out)
		leave_out(sk, st);
	if (!is_out && st->is_left_out && st->stage == STAGE_OPEN)
		come_back(sk, st);
	st->is_left_out = is_out;
	st->scope = scope;
	return 0;
}

/* Whether a connect was not decided yet: the first who asks tells of it. */
static __always_inline bool decide_connect(__u64 connection_id)
{
	return !bpf_map_delete_elem(&undecided, &connection_id);
}

/* A connect was decided: `error` 0 is success. */
static __always_inline void fill_connected(struct podwire_connection_record *record,
					   struct sock *sk, struct socket_state *st, __u32 error,
					   __u8 tcp_state)
{
	__u64 now = bpf_ktime_get_ns();

	fill_record(record, PODWIRE_CONNECTED, sk, st, now,
		    st->start_ns ? now - st->start_ns : PODWIRE_UNMEASURED, tcp_state);
	record->error = error;
	decide_connect(st->connection_id);
	st->stage = error ? STAGE_CLOSED : STAGE_OPEN;
}

/* An application was seen to have a connection of which no accept() was seen: io_uring. */
static __noinline void claim_by_touch(struct sock *sk, struct socket_state *st)
{
	struct podwire_connection_record record;
	__u64 key = (__u64)sk;
	bool is_first;

	if (!st)
		return;
	is_first = bpf_map_delete_elem(&accept_queue, &key) == 0 || st->is_unqueued;
	st->is_waiting = 0;
	st->is_unqueued = 0;
	if (!is_first)
		return; /* accept() has said it */
	fill_record(&record, PODWIRE_ACCEPTED, sk, st, bpf_ktime_get_ns(), PODWIRE_UNMEASURED,
		    tcp_state_of(sk));
	submit_and_announce(&record, st);
}

/* A connection is open of which no handshake was seen: the kernel skips a program that would interrupt
 * itself (bpf_prog_info.recursion_misses). A function of its own for its stack. */
static __noinline void connect_by_touch(struct sock *sk, struct socket_state *st, __u8 tcp_state)
{
	struct podwire_connection_record record;

	if (!st)
		return;
	fill_connected(&record, sk, st, 0, tcp_state);
	submit_and_announce(&record, st);
}

/* The slow part of touch(): settle all that a process context can settle. */
static __noinline void settle(struct sock *sk, struct socket_state *st)
{
	__u8 tcp_state = tcp_state_of(sk);

	if (!st)
		return;
	if (!st->connection_id)
		start_unseen(st, sk);
	if (!st->owner.pid)
		own_by_current(&st->owner);
	consider(sk, st, true);
	if (st->stage == STAGE_CONNECTING && tcp_state != TCP_SYN_SENT &&
	    tcp_state != TCP_SYN_RECV && tcp_state != TCP_CLOSE)
		connect_by_touch(sk, st, tcp_state);
	if (st->is_waiting)
		claim_by_touch(sk, st);
	announce(sk, st);
	st->is_ready = (st->announcement == ANNOUNCED || st->is_left_out) &&
		       st->stage == STAGE_OPEN;
}

/* The state of a socket that the current task uses; NULL without memory for it. */
static __always_inline struct socket_state *touch(struct sock *sk)
{
	struct socket_state *st = create_state(sk);

	if (st && !(st->is_ready && st->scope == current_scope()))
		settle(sk, st);
	return st;
}

static __always_inline __u8 standing_of(const struct socket_state *st)
{
	if (st->is_left_out)
		return STANDING_LEFT_OUT;
	return st->announcement == ANNOUNCED_NEVER ? STANDING_UNANNOUNCED : STANDING_ANNOUNCED;
}

#endif
