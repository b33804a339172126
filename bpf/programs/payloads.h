/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the two ends of a connection say, for the parsers in user space. The first bytes decide
 * whether a connection may be HTTP; if so, the bytes of every call are copied, from all of its
 * buffers, until user space says that it needs no more of them, or none up to a position. A
 * connection that was open before us is looked at whenever its direction changes, which is where a
 * message begins, until one looks like it.
 */

/* Which of several equal programs this is; each has a piece of its own for either direction. */
enum { TURNS = PIECES / 2 };

/* Decide by the first bytes of a call. A server of HTTP/2 may speak first. */
static __noinline int decide(struct call_state *call, struct socket_state *st, __u32 size)
{
	__u8 head[2 * HEAD_BYTES] = {};
	struct buffers from;
	__u32 length = HEAD_BYTES;

	if (!call || !st || st->looked_at == call->direction)
		return 0;
	st->looked_at = call->direction;
	if (!find_buffers(&from, call) || !next_buffer(&from)) {
		size = 0; /* not to be seen: no reason to give up */
		st->looked_at = 0;
	} else {
		if (length > size)
			length = size;
		if (length > from.now.length)
			length = from.now.length;
		length = at_most_mask(length, 2 * HEAD_BYTES - 1);
		if (bpf_probe_read_user(head, length, (void *)from.now.base))
			size = 0;
	}
	if (size && is_beginning(head, length)) {
		st->payload = PAYLOAD_WANTED;
		st->is_http2 = is_preface(head, length) || is_frame(head, length);
		return 0;
	}
	if (podwire_tls && size && is_hello(head, length))
		note_hello(call, st);
	st->looks++;
	if (st->looks >= MAX_LOOKS || (size && !(st->flags & PODWIRE_PREEXISTING)))
		st->payload = PAYLOAD_UNWANTED;
	return 0;
}

static __always_inline int submit_piece(struct piece *piece)
{
	__u32 key = PODWIRE_KIND_PAYLOAD, captured = piece->record.captured, lane;
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &key);
	__u64 length;

	if (!counted)
		return 0;
	piece->record.sequence = next_payload_sequence(&lane);
	piece->record.cpu = lane;
	length = sizeof(piece->record) + at_most_mask(captured, 2 * PIECE_BYTES - 1);
	if (is_full() || bpf_ringbuf_output(&payloads, piece, length, BPF_RB_NO_WAKEUP)) {
		__sync_fetch_and_add(&counted->ring_full, 1);
		piece->copying.is_untold = 1;
	} else {
		__sync_fetch_and_add(&counted->submitted, 1);
		piece->copying.is_untold = 0;
	}
	return 0;
}

/* Let go what is ready of a piece and begin the next, behind it. */
static __always_inline void cut(struct piece *piece, __u32 size)
{
	piece->record.size = size;
	submit_piece(piece);
	piece->record.position += size;
	piece->record.captured = 0;
}

/* Take what one buffer, the piece and the frame have room for; returns 1 at the end. */
static long copy_step(__u32 step, struct piece **context)
{
	struct piece *piece = *context;
	struct copying *of = &piece->copying;
	__u32 length, size = of->size, skipped = of->skipped, header = 0;
	bool is_followed = MOST_FRAMES > 0 && of->framing.is_followed;
	__u32 filled = of->filled & (PIECE_BYTES - 1);

	if (!size || !next_buffer(&of->from))
		return 1;
	length = of->from.now.length > size ? size : of->from.now.length;
	if (skipped) {
		if (length > skipped)
			length = skipped;
		of->skipped = skipped - length;
		piece->record.position += length;
		goto taken;
	}
	if (is_followed && step >= MOST_FRAMES)
		is_followed = of->framing.is_followed = 0;
	if (is_followed && of->framing.left) {
		if (length > of->framing.left)
			length = of->framing.left;
		if (of->framing.is_body) {
			of->passed += length;
			of->framing.left -= length;
			goto taken;
		}
	}
	/* What was passed ends a piece, and a header is never cut by the end of one. */
	if (MOST_FRAMES > 0 && (of->passed || (is_followed && !of->framing.left &&
					   filled > PIECE_BYTES - FRAME_HEADER))) {
		cut(piece, filled + of->passed);
		of->passed = 0;
		filled = 0;
	}
	if (is_followed && !of->framing.left) {
		header = take_header(of, length);
		if (!header)
			return 1;
		/* Together with what follows, where that is copied as well. */
		if (length > header && (of->framing.is_body || !of->framing.left))
			length = header;
		else if (of->framing.is_followed && length > header + of->framing.left)
			length = header + of->framing.left;
	}
	if (length > PIECE_BYTES - filled)
		length = PIECE_BYTES - filled;
	length = at_most_mask(length, 2 * PIECE_BYTES - 1);
	if (bpf_probe_read_user(&piece->data[at_most_mask(filled, PIECE_BYTES - 1)], length,
				(void *)of->from.now.base))
		return 1;
	if (MOST_FRAMES > 0 && of->framing.is_followed)
		of->framing.left -= length - header;
	filled += length;
	piece->record.captured = filled;
	if (filled >= PIECE_BYTES)
		cut(piece, filled);
	of->filled = filled & (PIECE_BYTES - 1);
taken:
	of->size = size - length;
	of->from.now.base += length;
	of->from.now.length -= length;
	return 0;
}

/* Copy `size` bytes of a call, the first `skipped` of which are not needed. */
static __noinline int copy_payload(struct call_state *call, struct piece *piece, __u32 size,
				   __u32 skipped)
{
	struct copying *of;
	__u32 rest = 0, most;

	if (!call || !piece)
		return 0;
	of = &piece->copying;
	of->skipped = skipped;
	of->filled = of->passed = of->is_untold = 0;
	of->least = LEAST_CONTENT;
	piece->record.captured = 0;
	if (skipped >= size) {
		piece->record.position += size;
		cut(piece, 0);
		return 0;
	}
	if (size - skipped > FEW_BYTES) {
		most = most_bytes();
		if (most <= SOME_BYTES)
			of->least = LEAST_CROWDED;
		if (size - skipped > most && !of->framing.is_followed) {
			rest = size - skipped - most;
			size -= rest;
		}
	}
	of->size = size;
	if (find_buffers(&of->from, call))
		LOOP(MAX_STEPS, copy_step, &piece);
	if (of->size) {
		/* Not to be seen: known only where the content of one frame has all of it. */
		if (of->framing.is_body && of->framing.left >= of->size)
			of->framing.left -= of->size;
		else
			of->framing.is_followed = 0;
		rest += of->size;
	}
	rest += of->passed;
	if (of->filled || rest)
		cut(piece, of->filled + rest);
	return 0;
}

/* TCP's number of the byte after the last one that was moved. */
static __always_inline __u32 position_after(struct sock *sk, bool is_write)
{
	struct tcp_sock *tp = tcp_sock_of(sk);
	__u32 copied;

	if (is_write)
		return READ_TCP(tp, write_seq);
	copied = READ_TCP(tp, copied_seq);
	/* tcp_recvmsg_locked() counts the FIN behind the last byte as read. */
	return copied - (has_received_fin(sk) && copied == READ_TCP(tp, rcv_nxt));
}

enum {
	TLS_RECORD_HEADER = 5,
	TLS_MESSAGE_HEADER = 4,
	TLS_HANDSHAKE_RECORD = 22,
	MAX_HELLO = 1 << 15,
	/* In socket_state.greeting: nothing more is wanted; before it, so many calls were no hello. */
	GREETED = 0xffff,
	MAX_PLAIN = 8,
	PLAIN = GREETED - MAX_PLAIN,
};

/*
 * Of how many bytes a hello is, by its first ones and the length of its first record, whose header is
 * not counted: other messages may share that record, or the hello goes on in further ones (RFC 8446
 * section 5.1), which are as long, but for the last.
 */
static __always_inline __u32 hello_length(const __u8 *message, __u32 fragment)
{
	__u32 length = TLS_MESSAGE_HEADER + frame_length(message + 1);

	if (length > MAX_HELLO)
		return MAX_HELLO;
	if (length > fragment && fragment >= TLS_MESSAGE_HEADER)
		length += (length - 1) / fragment * TLS_RECORD_HEADER;
	return length > MAX_HELLO ? MAX_HELLO : length;
}

/*
 * What a side of TLS says first, in clear: its ClientHello or ServerHello, which name the server that
 * is asked for and the version that is agreed on. It is the beginning of a call, and one of the first:
 * what is said before it, where a connection turns to TLS as databases and mail do (STARTTLS), is
 * short. Many read the header of its record alone, and the rest with further calls. Returns how many
 * of its bytes a call has moved.
 */
static __noinline __u32 take_hello(struct call_state *call, struct socket_state *st, __u32 size)
{
	__u8 head[HEAD_BYTES] = {}, *is_headed;
	struct buffers from;
	__u32 left, fragment, passed = 0, length = TLS_MESSAGE_HEADER;
	__u16 *greeting;

	if (!call || !st)
		return 0;
	greeting = &st->greeting[call->direction == PODWIRE_WRITE];
	is_headed = &st->is_headed[call->direction == PODWIRE_WRITE];
	fragment = left = *greeting;
	if (left && left < PLAIN && !*is_headed)
		goto known;
	if (!find_buffers(&from, call) || !next_buffer(&from))
		from.now.length = from.count = 0;
	if (!*is_headed) {
		*greeting = left ? left + 1 : PLAIN + 1;
		passed = TLS_RECORD_HEADER;
		if (size < passed || from.now.length < passed ||
		    bpf_probe_read_user(head, passed, (void *)from.now.base) ||
		    head[0] != TLS_HANDSHAKE_RECORD || head[1] != 3)
			return 0;
		from.now.base += passed;
		from.now.length -= passed;
		fragment = (__u32)head[3] << 8 | head[4];
		if (fragment > MAX_HELLO)
			fragment = MAX_HELLO;
	}
	/* Now the header of the message. */
	*is_headed = size == passed && fragment;
	if (length > size - passed)
		length = size - passed;
	if (!length || !next_buffer(&from) || from.now.length < length ||
	    bpf_probe_read_user(head + TLS_RECORD_HEADER, at_most_mask(length, 7),
				(void *)from.now.base))
		length = 0;
	/* decide() has looked at the first that is said, and at no other. */
	if (passed && (left || st->looked_at != call->direction) &&
	    is_hello(head, passed + length))
		note_hello(call, st);
	left = length < TLS_MESSAGE_HEADER ? fragment :
					     hello_length(head + TLS_RECORD_HEADER, fragment);
	left += passed;
known:
	if (size > left)
		size = left;
	left -= size;
	*greeting = left ? left : GREETED;
	return size;
}

/* Whether a connection that is not HTTP may still say what TLS begins with. */
static __always_inline bool may_greet(const struct socket_state *st, bool is_write)
{
	return podwire_tls && st->greeting[is_write] != GREETED &&
	       !(st->flags & PODWIRE_PREEXISTING);
}

/* Tell the parsers of what a call has moved, at the end of it. */
static __always_inline void capture(struct call_state *call, struct sock *sk,
				    struct socket_state *st, __u32 size, __u32 turn)
{
	bool is_write = call->direction == PODWIRE_WRITE, is_hello = false;
	__u32 key = turn % TURNS + (is_write ? TURNS : 0), skipped = 0;
	__u32 end = position_after(sk, is_write);
	struct podwire_verdict *verdict;
	struct framing *framing;
	struct piece *piece;
	__s32 unneeded;

	if (st->payload == PAYLOAD_UNDECIDED)
		decide(call, st, size);
	if (st->announcement == ANNOUNCED_NEVER ||
	    (st->payload != PAYLOAD_WANTED && !may_greet(st, is_write)))
		return; /* most calls leave here */
	piece = bpf_map_lookup_elem(&pieces, &key);
	if (!piece)
		return;
	piece->record.connection_id = st->connection_id;
	piece->record.end_ns = bpf_ktime_get_ns();
	piece->record.start_ns = is_write ? call->start_ns : arrival_by_task();
	piece->record.direction = call->direction;
	piece->record.flags = 0;
	piece->record.position = end - size;
	piece->copying.framing.is_followed = 0;
	framing = &st->framing[is_write];
	if (st->payload != PAYLOAD_WANTED) {
		size = take_hello(call, st, size);
		if (!size)
			return;
		is_hello = true;
		piece->record.flags = PODWIRE_HELLO;
	} else {
		verdict = bpf_map_lookup_elem(&verdicts, &st->connection_id);
		if (verdict && verdict->is_unwanted) {
			st->payload = PAYLOAD_UNWANTED;
			return;
		}
		tell_unseen_before(st->unseen, st->connection_id, 0);
		if (MOST_FRAMES > 0 && st->is_http2 &&
		    follow_frames(call, framing, piece->record.position)) {
			piece->copying.framing = *framing;
		} else if (verdict && verdict->is_skipping[is_write]) {
			unneeded = verdict->position[is_write] - piece->record.position;
			if (unneeded > 0 && unneeded > size)
				return;
			if (unneeded > 0)
				skipped = unneeded;
		}
	}
	/* At one place: the verifier follows every step of a copy, on old kernels. */
	copy_payload(call, piece, size, skipped);
	if (is_hello)
		return;
	note_unseen(&st->unseen[is_write], piece->copying.is_untold, end, piece->record.end_ns);
	if (MOST_FRAMES > 0 && st->is_http2) {
		*framing = piece->copying.framing;
		framing->position = end;
	}
}

/* How far a direction has come that user space does not want all of. */
static __always_inline void tell_end(struct sock *sk, __u64 connection_id, bool is_write)
{
	struct unseen end = {
		.end_ns = bpf_ktime_get_ns(),
		.position = position_after(sk, is_write),
	};

	tell_position(&end, connection_id, is_write, PODWIRE_ENDED);
}

/* Of what is inside TLS: how far it came is known to its stream only. */
static __noinline int end_clear(__u64 connection_id)
{
	struct tls_stream *stream = bpf_map_lookup_elem(&tls_streams, &connection_id);

	if (stream)
		tell_unseen(stream->unseen, connection_id, PODWIRE_CLEAR);
	return 0;
}

/* Called once for a connection, when this end closes it. */
static __always_inline void end_payload(struct sock *sk, struct socket_state *st)
{
	struct podwire_verdict *verdict;

	if (podwire_tls && st->flags & PODWIRE_TLS)
		end_clear(st->connection_id);
	if (!podwire_payloads || st->payload != PAYLOAD_WANTED)
		return;
	verdict = bpf_map_lookup_elem(&verdicts, &st->connection_id);
	tell_unseen(st->unseen, st->connection_id, 0);
	if (verdict && verdict->is_skipping[0])
		tell_end(sk, st->connection_id, false);
	if (verdict && verdict->is_skipping[1])
		tell_end(sk, st->connection_id, true);
}
