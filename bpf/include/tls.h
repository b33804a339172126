/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which connection a TLS session is on. A library that makes its own system calls shows it by them.
 * One that is given the bytes by its application (memory BIOs: asyncio, Node.js) does not; then the
 * ClientHello, which is in clear, pairs them: a server's session is the one that its task goes to
 * right after it has read a ClientHello, a client's the one that it comes from when it writes one.
 * Where several could be meant none is.
 */
#ifndef PODWIRE_TLS_H
#define PODWIRE_TLS_H

enum { ASKING_NS = 1000000000 };

static __always_inline struct tls_session_key session_key(__u64 session)
{
	struct tls_session_key key = {
		.session = session,
		.pid = bpf_get_current_pid_tgid() >> 32,
	};

	return key;
}

static __always_inline void begin_stream(__u64 connection_id, bool is_begun)
{
	struct tls_stream fresh = {.is_begun = is_begun};

	if (bpf_map_update_elem(&tls_streams, &connection_id, &fresh, BPF_NOEXIST))
		count(PODWIRE_KIND_PAYLOAD, map_full);
}

/* The session that asked is over, or its ClientHello was written. */
static __always_inline void end_asking(struct tls_call *in)
{
	if (in->askers)
		in->askers--;
	if (!in->askers)
		in->is_unclear = 0;
	in->asking = 0;
}

#endif
