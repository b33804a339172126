/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What system calls tell of TLS: the core's side of include/tls.h. */

/* A ClientHello (RFC 8446 section 5.1: handshake record; section 4: client_hello). */
static __always_inline bool is_hello(const __u8 *head, __u32 size)
{
	return size >= 6 && head[0] == 22 && head[1] == 3 && head[2] <= 4 && head[5] == 1;
}

/* A connection's first bytes are a ClientHello that no library has moved itself. */
static __always_inline void note_hello(struct call_state *call, struct socket_state *st)
{
	struct tls_session_key key = {};
	struct tls_session paired = {
		.connection_id = st->connection_id,
		.role = PODWIRE_ROLE_CLIENT,
	};
	struct tls_call *in = create_tls();

	st->flags |= PODWIRE_TLS;
	if (!in)
		return;
	if (call->direction == PODWIRE_READ) {
		in->greeted_id = st->connection_id;
		return;
	}
	if (in->asking && !in->is_unclear && bpf_ktime_get_ns() - in->asking_ns < ASKING_NS) {
		key = session_key(in->asking);
		bpf_map_update_elem(&tls_sessions, &key, &paired, BPF_ANY);
		begin_stream(st->connection_id, true);
	}
	end_asking(in);
}

/* A TLS library has moved bytes on a socket: what it says in clear comes from the library. */
static __always_inline void note_tls(struct socket_state *st, __u8 direction)
{
	struct tls_call *in = tls_of_caller();
	struct tls_stream *stream;
	__u64 arrived_ns = 0;

	if (!in)
		return;
	in->greeted_id = 0;
	in->is_left_out = st->is_left_out;
	if (st->is_left_out || (!in->session && !(st->flags & PODWIRE_TLS)))
		return;
	if (direction == PODWIRE_READ)
		arrived_ns = arrival_by_task();
	if (!in->session) {
		stream = arrived_ns ? bpf_map_lookup_elem(&tls_streams, &st->connection_id) : 0;
		if (stream)
			stream->arrived_ns = arrived_ns;
		return;
	}
	in->is_first = !st->looked_at && st->payload == PAYLOAD_UNDECIDED &&
		       !(st->flags & PODWIRE_PREEXISTING);
	in->connection_id = st->connection_id;
	if (arrived_ns)
		in->arrived_ns = arrived_ns;
	st->flags |= PODWIRE_TLS;
	st->payload = PAYLOAD_UNWANTED;
}
