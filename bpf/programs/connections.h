/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The life of a connection. The handshake decides a connect, blocking or not; accept() takes an
 * established connection; the release of the socket's last file, or its destruction, closes it.
 */

enum {
	ECANCELED = 125,
};

static __always_inline bool is_in_call(struct call_state *call, __u8 kind)
{
	return call && call->is_active && call->kind == kind;
}

/* Whether the task is on its way out of a close(): a delayed fput(), which before v6.6 is where
 * close() itself closes, runs after the program at its end. What a task has open when it ends goes
 * the same way. */
static __always_inline bool is_after_close(struct call_state *call)
{
	return call && !call->is_active && call->kind == CALL_CLOSE &&
	       call_of_number(READ_USER_REGS(CALL_NUMBER_REGISTER)) == CALL_CLOSE &&
	       !(READ_TASK(current_task(), flags) & PF_EXITING);
}

/* Of two twins that find no memory for a socket only the first counts its event. */
static __always_inline int without_memory(__u32 kind, bool is_twin)
{
	if (!is_twin)
		count(kind, map_full);
	return 0;
}

static __always_inline void hold(struct call_state *call, struct sock *sk, struct socket_state *st,
				 __u8 event, __u8 tcp_state)
{
	fill_record(&call->held, event, sk, st, 0, 0, tcp_state);
	call->held_kind = kind_of_event(event) + 1;
}

/* Once per connection: this end has closed it. */
static __noinline int closed(struct sock *sk, struct socket_state *st, __u8 tcp_state)
{
	struct podwire_connection_record record;
	__u64 now = bpf_ktime_get_ns(), duration = PODWIRE_UNMEASURED;
	struct call_state *call;

	if (!st || st->stage != STAGE_OPEN || st->is_own)
		return 0;
	if (!ends_outside(sk, st))
		consider(sk, st, false);
	st->stage = STAGE_CLOSED;
	st->is_ready = 0;
	if (st->is_left_out) {
		count(PODWIRE_KIND_CLOSE, excluded);
		return 0;
	}
	end_payload(sk, st);
	call = is_owned(sk) ? current_call() : 0;
	if (is_in_call(call, CALL_CLOSE)) {
		release_held(call, now); /* close_range() closes several */
		hold(call, sk, st, PODWIRE_CLOSED, tcp_state);
		return 0;
	}
	if (is_after_close(call)) {
		duration = now - call->start_ns;
		call->start_ns = now;
	}
	fill_record(&record, PODWIRE_CLOSED, sk, st, now, duration, tcp_state);
	submit_connection(&record);
	return 0;
}

static __noinline int begin_connect(struct sock *sk, bool is_twin)
{
	struct call_state *call = current_call();
	__u64 start_ns = bpf_ktime_get_ns();
	struct socket_state *st;
	__u8 one = 1;

	if (is_subflow(sk))
		return 0;
	if (is_in_call(call, CALL_CONNECT) && call->sock == (__u64)sk) {
		call->has_sent_syn = 1;
		start_ns = call->start_ns;
	} else {
		call = 0;
	}
	st = create_state(sk);
	if (!st)
		return without_memory(PODWIRE_KIND_OPEN, is_twin);
	if (st->stage == STAGE_CONNECTING)
		return 0; /* the twin has seen it */
	closed(sk, st, TCP_CLOSE); /* a reset connection that is connected anew */
	start_state(st, STAGE_CONNECTING, PODWIRE_ROLE_CLIENT);
	st->start_ns = start_ns;
	own_by_current(&st->owner);
	st->is_own = is_own_process();
	if (st->is_own)
		return 0;
	begin_flow(sk);
	bpf_map_update_elem(&undecided, &st->connection_id, &one, BPF_ANY);
	if (call)
		call->connection_id = st->connection_id;
	return 0;
}

static __noinline int connected(struct sock *sk, struct socket_state *st)
{
	struct podwire_connection_record record;

	if (!st || st->is_own)
		return 0;
	fill_connected(&record, sk, st, 0, TCP_ESTABLISHED);
	submit_and_announce(&record, st);
	return 0;
}

static __noinline int connect_failed(struct sock *sk, struct socket_state *st)
{
	struct podwire_connection_record record;
	struct call_state *call;
	__u32 error;

	if (!st || st->is_own)
		return 0;
	/* tcp_reset() and tcp_write_err() set the error before the state. */
	error = BPF_CORE_READ(sk, sk_err);
	if (!error) {
		/* tcp_v4_connect() failed after SYN_SENT: only the call knows why. */
		call = current_call();
		if (is_in_call(call, CALL_CONNECT) && call->sock == (__u64)sk &&
		    call->has_sent_syn && is_owned(sk)) {
			st->stage = STAGE_CLOSED;
			decide_connect(st->connection_id);
			hold(call, sk, st, PODWIRE_CONNECTED, TCP_CLOSE);
			call->held.error = ECANCELED;
			return 0;
		}
		error = BPF_CORE_READ(sk, sk_err_soft);
	}
	/* Without any, the application has given up. */
	fill_connected(&record, sk, st, error ? error : ECANCELED, TCP_CLOSE);
	submit_connection(&record);
	return 0;
}

/* The three-way handshake of a client is complete; an application may accept it now. */
static __noinline int queued(struct sock *sk, bool is_twin)
{
	struct waiting waiting = {};
	__u64 key = (__u64)sk;
	struct socket_state *st;

	if (is_subflow(sk))
		return 0;
	st = create_state(sk);
	if (!st)
		return without_memory(PODWIRE_KIND_OPEN, is_twin);
	start_state(st, STAGE_OPEN, PODWIRE_ROLE_SERVER);
	begin_flow(sk);
	st->is_waiting = 1;
	waiting.connection_id = st->connection_id;
	waiting.established_ns = bpf_ktime_get_ns();
	st->is_unqueued = bpf_map_update_elem(&accept_queue, &key, &waiting, BPF_ANY) != 0;
	return 0;
}

/* connect(AF_UNSPEC) */
static __always_inline bool is_disconnecting(struct sock *sk)
{
	struct call_state *call = current_call();

	return is_in_call(call, CALL_CONNECT) && call->sock == (__u64)sk && is_owned(sk);
}

static __noinline int established(struct sock *sk, struct socket_state *st, int before,
				  bool is_twin)
{
	if (!st && before == TCP_SYN_RECV)
		return queued(sk, is_twin);
	if (!st && before == TCP_SYN_SENT && !is_subflow(sk)) {
		/* It was under way when we came: no start, no owner yet. */
		st = create_state(sk);
		if (!st)
			return without_memory(PODWIRE_KIND_OPEN, is_twin);
		start_state(st, STAGE_CONNECTING, PODWIRE_ROLE_CLIENT);
		begin_flow(sk);
	}
	return st && st->stage == STAGE_CONNECTING ? connected(sk, st) : 0;
}

static __always_inline int state_changed(struct sock *sk, int before, int after, bool is_twin)
{
	struct socket_state *st;

	if (!is_tcp(sk))
		return 0;
	if (after == TCP_SYN_SENT)
		return begin_connect(sk, is_twin);
	if (after == TCP_SYN_RECV || after == TCP_LISTEN || before == TCP_LISTEN)
		return 0;
	st = find_state(sk);
	if (after == TCP_ESTABLISHED)
		return established(sk, st, before, is_twin);
	if (st && st->stage == STAGE_CONNECTING)
		return after == TCP_CLOSE ? connect_failed(sk, st) : 0;
	if (st && st->stage == STAGE_CLOSED)
		return 0;
	if (is_being_released(sk)) {
		/* A subflow may be closed below the release of the MPTCP socket's file (seen on
		 * v6.1). */
		if (is_own_process() || (!st && is_subflow(sk)))
			return 0;
		if (!ends_outside(sk, st))
			st = touch(sk); /* closed without any transfer counts as well */
		if (!st)
			return without_memory(PODWIRE_KIND_CLOSE, is_twin);
		return closed(sk, st, after);
	}
	if (after == TCP_CLOSE && is_disconnecting(sk))
		return closed(sk, st, after);
	return 0;
}

/* What came to a connection after its last call, so that sums over its records are whole. */
static __noinline int tell_rest(struct sock *sk, struct socket_state *st, __u8 direction)
{
	struct transfer transfer = {};
	struct flow *flow = 0;

	if (!st)
		return 0;
	take_counters(sk, st, direction, &transfer.counted);
	if (podwire_stages)
		flow = find_flow((__u64)sk);
	if (!transfer.counted.packets && !transfer.counted.packet_bytes &&
	    !transfer.counted.retransmits && !(flow && has_figures(flow, direction)))
		return 0;
	transfer.connection_id = st->connection_id;
	transfer.duration_ns = PODWIRE_UNMEASURED;
	transfer.end_ns = bpf_ktime_get_ns();
	transfer.sk = (__u64)sk;
	transfer.direction = direction;
	transfer.call = PODWIRE_CALL_NONE;
	submit_transfer(&transfer);
	return 0;
}

static __always_inline int destroyed(struct sock *sk)
{
	struct socket_state *st = find_state(sk);
	struct flow *flow = 0;
	__u64 key = (__u64)sk;

	if (!st) {
		bpf_map_delete_elem(&accept_queue, &key);
		return 0;
	}
	/* Never accepted: it was no application's connection. An accepted one has left the queue. */
	if (st->is_waiting && (st->is_unqueued || !bpf_map_delete_elem(&accept_queue, &key)))
		st->stage = STAGE_CLOSED;
	if (st->stage == STAGE_CONNECTING && decide_connect(st->connection_id))
		connect_failed(sk, st); /* which was not seen, and no connect() waited for */
	closed(sk, st, TCP_CLOSE);
	consider(sk, st, false);
	if (!st->is_own && st->announcement != ANNOUNCED_NEVER) {
		if (podwire_stages)
			flow = find_flow(key);
		if (flow && flow->explained > 0)
			tell_losses(st->connection_id, bpf_ktime_get_ns(), key, flow);
		tell_rest(sk, st, PODWIRE_READ);
		tell_rest(sk, st, PODWIRE_WRITE);
	}
	if (st->flags & PODWIRE_TLS)
		bpf_map_delete_elem(&tls_streams, &st->connection_id);
	end_flow(sk);
	forget_state(sk);
	return 0;
}

/*
 * The kernel skips a program that interrupts itself on the same CPU: a softirq's state change
 * during a process's would be lost (bpf_prog_info.recursion_misses; Linux kernel commit
 * 05b24ff9b2cf ("bpf: Prevent bpf program recursion for raw tracepoint probes") (in v6.2)). So
 * each of these runs as two twins: the second does nothing, unless the first was skipped. For the
 * spares see calls.h.
 */
#define INET_SOCK_SET_STATE(name, is_twin)                                                         \
	SEC("tp_btf/inet_sock_set_state")                                                          \
	int BPF_PROG(name, struct sock *sk, int before, int after)                                 \
	{                                                                                          \
		return state_changed(sk, before, after, is_twin);                                  \
	}

#define TCP_DESTROY_SOCK(name)                                                                     \
	SEC("tp_btf/tcp_destroy_sock")                                                             \
	int BPF_PROG(name, struct sock *sk)                                                        \
	{                                                                                          \
		return destroyed(sk);                                                              \
	}

INET_SOCK_SET_STATE(inet_sock_set_state, false)
INET_SOCK_SET_STATE(inet_sock_set_state_twin, true)
INET_SOCK_SET_STATE(inet_sock_set_state_spare_1, true)
INET_SOCK_SET_STATE(inet_sock_set_state_spare_2, true)
TCP_DESTROY_SOCK(tcp_destroy_sock)
TCP_DESTROY_SOCK(tcp_destroy_sock_twin)
TCP_DESTROY_SOCK(tcp_destroy_sock_spare_1)
TCP_DESTROY_SOCK(tcp_destroy_sock_spare_2)
