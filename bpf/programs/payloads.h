/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the two ends of a connection say, for the parsers in user space. The first bytes decide
 * whether a connection may be HTTP; if so, the bytes of every call are copied, from all of its
 * buffers, until user space says that it needs no more of them, or none up to a position. A
 * connection that was open before us is looked at whenever its direction changes, which is where a
 * message begins, until one looks like it.
 */

enum {
	HEAD_BYTES = 16,  /* what a decision is made from */
	FEW_BYTES = 1024, /* of a call when the ring is crowded */
	MAX_LOOKS = 200,  /* at an older connection */
	MESSAGE_SIZE = 64, /* struct mmsghdr of 64-bit tasks */
	MESSAGE_VECTOR = 16, /* struct user_msghdr: msg_iov, then msg_iovlen */
	MAX_FRAME = 1 << 20,
	UNKNOWN_MESSAGE = 0xffffffff, /* in call_state.messages: not which of several */
};

/* Which of several equal programs this is; each has a piece of its own for either direction. */
enum { TURNS = PIECES / 2 };

/* `value` where the verifier of every kernel sees its bound: the compiler would leave out a mask that
 * it thinks is without effect. */
static __always_inline __u32 at_most_mask(__u32 value, __u32 mask)
{
	barrier_var(value);
	return value & mask;
}

static __always_inline bool find_buffers(struct buffers *of, const struct call_state *call)
{
	__u64 header = call->address;
	struct iovec vector;

	of->now.base = call->address;
	of->now.length = 0;
	of->vector = call->address;
	of->count = call->address_length;
	switch (call->kind) {
	case PODWIRE_CALL_READ:
	case PODWIRE_CALL_RECVFROM:
	case PODWIRE_CALL_WRITE:
	case PODWIRE_CALL_SENDTO:
		of->now.length = 0xffffffff;
		of->count = 0;
		return true;
	case PODWIRE_CALL_READV:
	case PODWIRE_CALL_WRITEV:
		return true;
	case PODWIRE_CALL_RECVMMSG:
	case PODWIRE_CALL_SENDMMSG:
		if (call->messages == UNKNOWN_MESSAGE)
			return false;
		header += (__u64)call->messages * MESSAGE_SIZE;
		break;
	case PODWIRE_CALL_RECVMSG:
	case PODWIRE_CALL_SENDMSG:
		break;
	default:
		return false; /* sendfile(), splice(), io_uring: no memory of the task */
	}
	if (bpf_probe_read_user(&vector, sizeof(vector), (void *)(header + MESSAGE_VECTOR)))
		return false;
	of->vector = vector.base;
	of->count = vector.length;
	return true;
}

/* Make sure that the buffer under way has bytes; false at the end of them. */
static __always_inline bool next_buffer(struct buffers *of)
{
	if (of->now.length)
		return true;
	if (!of->count)
		return false;
	if (bpf_probe_read_user(&of->now, sizeof(of->now), (void *)of->vector)) {
		of->count = 0;
		of->now.length = 0;
		return false;
	}
	of->vector += sizeof(of->now);
	of->count--;
	return true;
}

static __always_inline bool is_upper(__u8 letter)
{
	return (letter >= 'A' && letter <= 'Z') || letter == '-' || letter == '_';
}

/*
 * METHOD SP and what a target may begin with (RFC 9112 section 3), the preface of HTTP/2 among them
 * (RFC 9113 section 3.4: PRI * HTTP/2.0), or as much of it as there is.
 */
static __always_inline bool is_request(const __u8 *head, __u32 size)
{
	__u8 after;

	for (__u32 i = 0; i < HEAD_BYTES - 1; i++) {
		if (is_upper(head[i]))
			continue;
		if (i >= size)
			return true;
		if (head[i] != ' ' || i < 2)
			return false;
		after = head[i + 1];
		return i + 1 >= size || after == '/' || after == '*' || after == 'h' ||
		       after == 'H' || (head[0] == 'C' && head[1] == 'O' && head[2] == 'N');
	}
	return false;
}

/* "HTTP/1.", "PROXY " or the signature of its second version, empty lines before a request. */
static __always_inline bool is_other_beginning(const __u8 *head, __u32 size)
{
	static const char answer[] = "HTTP/1.", proxy[] = "PROXY ";
	bool is_answer = true, is_proxy = true;

	for (__u32 i = 0; i < sizeof(answer) - 1; i++)
		if (i < size && head[i] != answer[i])
			is_answer = false;
	for (__u32 i = 0; i < sizeof(proxy) - 1; i++)
		if (i < size && head[i] != proxy[i])
			is_proxy = false;
	return is_answer || is_proxy || (size >= 2 && head[0] == '\r' && head[1] == '\n');
}

/* A frame of HTTP/2, by all that RFC 9113 section 6 says of its header. */
static __always_inline bool is_frame(const __u8 *head, __u32 size)
{
	__u32 length = (__u32)head[0] << 16 | (__u32)head[1] << 8 | head[2];
	__u32 stream = (__u32)head[5] << 24 | (__u32)head[6] << 16 | (__u32)head[7] << 8 | head[8];
	__u8 flags = head[4];

	if (size < 9 || length > MAX_FRAME || stream >> 31)
		return false;
	switch (head[3]) {
	case 0: /* DATA */
		return stream && !(flags & ~0x09);
	case 1: /* HEADERS */
		return stream && length && !(flags & ~0x2d);
	case 2: /* PRIORITY */
		return stream && length == 5;
	case 3: /* RST_STREAM */
		return stream && length == 4;
	case 4: /* SETTINGS */
		return !stream && length % 6 == 0 && !(flags & ~0x01);
	case 6: /* PING */
		return !stream && length == 8 && !(flags & ~0x01);
	case 7: /* GOAWAY */
		return !stream && length >= 8;
	case 8: /* WINDOW_UPDATE */
		return length == 4;
	default:
		return false;
	}
}

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
	if (size && (is_request(head, length) || is_other_beginning(head, length) ||
		     is_frame(head, length))) {
		st->payload = PAYLOAD_WANTED;
		return 0;
	}
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
	if (bpf_ringbuf_output(&payloads, piece, length, BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&counted->ring_full, 1);
	else
		__sync_fetch_and_add(&counted->submitted, 1);
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

/* Take what one buffer and the piece have room for; returns 1 at the end. */
static long copy_step(__u32 step, struct piece **context)
{
	struct piece *piece = *context;
	struct copying *of = &piece->copying;
	__u32 length, size = of->size, skipped = of->skipped;
	__u32 filled = of->filled & (PIECE_BYTES - 1);

	if (!size || !next_buffer(&of->from))
		return 1;
	length = of->from.now.length > size ? size : of->from.now.length;
	if (skipped) {
		if (length > skipped)
			length = skipped;
		of->skipped = skipped - length;
		piece->record.position += length;
	} else {
		if (length > PIECE_BYTES - filled)
			length = PIECE_BYTES - filled;
		length = at_most_mask(length, 2 * PIECE_BYTES - 1);
		if (bpf_probe_read_user(&piece->data[at_most_mask(filled, PIECE_BYTES - 1)], length,
					(void *)of->from.now.base))
			return 1;
		filled += length;
		piece->record.captured = filled;
		if (filled >= PIECE_BYTES)
			cut(piece, filled);
		of->filled = filled & (PIECE_BYTES - 1);
	}
	of->size = size - length;
	of->from.now.base += length;
	of->from.now.length -= length;
	return 0;
}

/*
 * Bodies must not crowd out heads: from half of the ring on, only the beginning of a call is copied.
 * What is left out of a body of known length is not missed.
 */
static __always_inline bool is_crowded(void)
{
	return bpf_ringbuf_query(&payloads, BPF_RB_AVAIL_DATA) >
	       bpf_ringbuf_query(&payloads, BPF_RB_RING_SIZE) / 2;
}

/* Copy `size` bytes of a call, the first `skipped` of which are not needed. */
static __noinline int copy_payload(struct call_state *call, struct piece *piece, __u32 size,
				   __u32 skipped)
{
	struct copying *of;
	__u32 rest = 0;

	if (!call || !piece)
		return 0;
	of = &piece->copying;
	of->skipped = skipped;
	of->filled = 0;
	piece->record.captured = 0;
	if (skipped >= size) {
		piece->record.position += size;
		cut(piece, 0);
		return 0;
	}
	if (size - skipped > FEW_BYTES && is_crowded()) {
		rest = size - skipped - FEW_BYTES;
		size -= rest;
	}
	of->size = size;
	if (find_buffers(&of->from, call))
		LOOP(MAX_STEPS, copy_step, &piece);
	rest += of->size;
	if (of->filled || rest)
		cut(piece, of->filled + rest);
	return 0;
}

/* TCP's number of the byte after the last one that was moved. */
static __always_inline __u32 position_after(struct sock *sk, bool is_write)
{
	__u32 copied;

	if (is_write)
		return READ_TCP(sk, write_seq);
	copied = READ_TCP(sk, copied_seq);
	/* tcp_recvmsg_locked() counts the FIN behind the last byte as read. */
	return copied - (has_received_fin(sk) && copied == READ_TCP(sk, rcv_nxt));
}

/* Tell the parsers of what a call has moved, at the end of it. */
static __always_inline void capture(struct call_state *call, struct sock *sk,
				    struct socket_state *st, __u32 size, __u32 turn)
{
	bool is_write = call->direction == PODWIRE_WRITE;
	__u32 key = turn % TURNS + (is_write ? TURNS : 0), skipped = 0;
	struct podwire_verdict *verdict;
	struct piece *piece;
	__s32 unneeded;

	if (st->payload == PAYLOAD_UNDECIDED)
		decide(call, st, size);
	if (st->payload != PAYLOAD_WANTED || st->announcement == ANNOUNCED_NEVER)
		return;
	piece = bpf_map_lookup_elem(&pieces, &key);
	if (!piece)
		return;
	piece->record.connection_id = st->connection_id;
	piece->record.end_ns = bpf_ktime_get_ns();
	piece->record.start_ns = is_write ? call->start_ns : arrival_by_task();
	piece->record.direction = call->direction;
	piece->record.pad = 0;
	piece->record.position = position_after(sk, is_write) - size;
	verdict = bpf_map_lookup_elem(&verdicts, &st->connection_id);
	if (verdict) {
		if (verdict->is_unwanted) {
			st->payload = PAYLOAD_UNWANTED;
			return;
		}
		if (verdict->is_skipping[is_write]) {
			unneeded = verdict->position[is_write] - piece->record.position;
			if (unneeded > 0 && unneeded > size)
				return;
			if (unneeded > 0)
				skipped = unneeded;
		}
	}
	copy_payload(call, piece, size, skipped);
}

/* How far a connection has come whose last bytes were not captured: an empty record for a direction
 * that user space does not want all of. */
static __noinline int tell_position(struct sock *sk, struct socket_state *st, bool is_write)
{
	__u32 key = PODWIRE_KIND_PAYLOAD, lane;
	struct podwire_counts *counted = bpf_map_lookup_elem(&counts, &key);
	struct podwire_payload_record *record;

	if (!counted || !st)
		return 0;
	record = bpf_ringbuf_reserve(&payloads, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&counted->ring_full, 1);
		return 0;
	}
	record->connection_id = st->connection_id;
	record->start_ns = record->end_ns = bpf_ktime_get_ns();
	record->position = position_after(sk, is_write);
	record->size = record->captured = 0;
	record->direction = is_write ? PODWIRE_WRITE : PODWIRE_READ;
	record->pad = 0;
	record->sequence = next_payload_sequence(&lane);
	record->cpu = lane;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	__sync_fetch_and_add(&counted->submitted, 1);
	return 0;
}

/* Called once for a connection, when this end closes it. */
static __always_inline void end_payload(struct sock *sk, struct socket_state *st)
{
	struct podwire_verdict *verdict;

	if (!podwire_payloads || st->payload != PAYLOAD_WANTED)
		return;
	verdict = bpf_map_lookup_elem(&verdicts, &st->connection_id);
	if (!verdict)
		return;
	if (verdict->is_skipping[0])
		tell_position(sk, st, false);
	if (verdict->is_skipping[1])
		tell_position(sk, st, true);
}
