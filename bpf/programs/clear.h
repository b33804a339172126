/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is said in clear inside TLS, on its way into the ring: which of it is wanted, which is copied,
 * and what is told of by its size alone. As payloads.h, but in a probe, which may be preempted.
 */

enum {
	SMALL_BYTES = 512,
	MEDIUM_BYTES = 2048,
	CLEAR_BYTES = PIECE_BYTES,
};

/* As `verdicts`, of the clear bytes of connections. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_VERDICTS);
	__type(key, __u64);
	__type(value, struct podwire_verdict);
} tls_verdicts SEC(".maps");

/* Clear bytes on their way into the ring. */
struct clear {
	__u64 connection_id;
	__u64 start_ns;
	__u64 end_ns;
	__u64 buffer;
	__u32 position;
	__u32 left;
	__u8 direction;
	__u8 flags;
	__u8 is_untold; /* the ring had no room for the last of it */
	__u8 pad[5];
};

/* As decide() of payloads.h, of what is in clear. */
static __always_inline void decide_clear(struct tls_stream *stream, const struct clear *of)
{
	__u8 head[2 * HEAD_BYTES] = {};
	__u32 length = of->left < HEAD_BYTES ? of->left : HEAD_BYTES;

	if (stream->looked_at == of->direction)
		return;
	stream->looked_at = of->direction;
	length = at_most_mask(length, 2 * HEAD_BYTES - 1);
	if (bpf_probe_read_user(head, length, (void *)of->buffer))
		return;
	if (is_beginning(head, length)) {
		stream->payload = PAYLOAD_WANTED;
		return;
	}
	stream->looks++;
	if (stream->looks >= MAX_LOOKS || stream->is_begun)
		stream->payload = PAYLOAD_UNWANTED;
}

static __always_inline void fill_clear(struct podwire_payload_record *record,
				       const struct clear *of, __u32 size)
{
	__u32 lane;

	record->connection_id = of->connection_id;
	record->start_ns = of->start_ns;
	record->end_ns = of->end_ns;
	record->position = of->position;
	record->size = size;
	record->captured = 0;
	record->direction = of->direction;
	record->flags = of->flags;
	record->sequence = next_payload_sequence(&lane);
	record->cpu = lane;
}

/* Reserved in one of few sizes, which the verifier must know, and filled from the task's memory: no
 * place on the way that another task could come upon, as a probe may be preempted. */
#define SUBMIT_CLEAR(of, length, room)                                                             \
	({                                                                                         \
		struct podwire_payload_record *record_ =                                           \
			bpf_ringbuf_reserve(&payloads, sizeof(*record_) + (room), 0);              \
		if (record_) {                                                                     \
			fill_clear(record_, of, length);                                           \
			if (!bpf_probe_read_user((void *)(record_ + 1), length,                    \
						 (void *)(of)->buffer))                            \
				record_->captured = length;                                        \
			bpf_ringbuf_submit(record_, BPF_RB_NO_WAKEUP);                             \
		}                                                                                  \
		record_ != 0;                                                                      \
	})

static __always_inline bool submit_clear(const struct clear *of, __u32 length)
{
	barrier_var(length);
	if (length <= SMALL_BYTES)
		return SUBMIT_CLEAR(of, length, SMALL_BYTES);
	barrier_var(length);
	if (length <= MEDIUM_BYTES)
		return SUBMIT_CLEAR(of, length, MEDIUM_BYTES);
	barrier_var(length);
	if (length > CLEAR_BYTES)
		return false;
	return SUBMIT_CLEAR(of, length, CLEAR_BYTES);
}

static __always_inline void count_clear(struct clear *of, bool is_submitted)
{
	of->is_untold = !is_submitted;
	if (is_submitted)
		count(PODWIRE_KIND_PAYLOAD, submitted);
	else
		count(PODWIRE_KIND_PAYLOAD, ring_full);
}

/* Take one piece; returns 1 at the end. */
static long clear_step(__u32 step, struct clear *of)
{
	__u32 length = of->left;

	if (!length)
		return 1;
	if (length > CLEAR_BYTES)
		length = CLEAR_BYTES;
	count_clear(of, !is_full() && submit_clear(of, length));
	of->buffer += length;
	of->position += length;
	of->left -= length;
	return 0;
}

/* Bytes that are not copied are told of by their size. */
static __always_inline void tell_size(struct clear *of, __u32 size)
{
	struct podwire_payload_record *record;

	if (!size)
		return;
	record = bpf_ringbuf_reserve(&payloads, sizeof(*record), 0);
	if (record) {
		fill_clear(record, of, size);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	count_clear(of, record != 0);
	of->buffer += size;
	of->position += size;
}

/* That it could be read, though it is not wanted. */
static __always_inline void tell_readable(const struct clear *of)
{
	struct unseen here = {.end_ns = of->end_ns, .position = of->position};

	tell_position(&here, of->connection_id, of->direction == PODWIRE_WRITE, of->flags);
}

static __noinline int tell_clear(struct clear *of, struct tls_stream *stream)
{
	struct podwire_verdict *verdict;
	__u32 rest = 0, skipped = 0, size, most;
	bool is_write;
	__s32 unneeded;

	if (!of || !stream)
		return 0;
	is_write = of->direction == PODWIRE_WRITE;
	size = of->left;
	if (stream->payload == PAYLOAD_UNDECIDED) {
		decide_clear(stream, of);
		if (stream->payload == PAYLOAD_UNWANTED)
			tell_readable(of);
	}
	if (stream->payload != PAYLOAD_WANTED)
		return 0;
	verdict = bpf_map_lookup_elem(&tls_verdicts, &of->connection_id);
	if (verdict && verdict->is_unwanted) {
		stream->payload = PAYLOAD_UNWANTED;
		return 0;
	}
	if (verdict && verdict->is_skipping[is_write]) {
		unneeded = verdict->position[is_write] - of->position;
		if (unneeded > 0)
			skipped = unneeded < size ? unneeded : size;
	}
	if (!of->buffer)
		skipped = size;
	tell_unseen_before(stream->unseen, of->connection_id, of->flags);
	tell_size(of, skipped);
	size -= skipped;
	if (size > FEW_BYTES) {
		most = most_bytes();
		if (size > most) {
			rest = size - most;
			size = most;
		}
	}
	of->left = size;
	LOOP(MAX_STEPS, clear_step, of);
	tell_size(of, rest + of->left);
	note_unseen(&stream->unseen[is_write], of->is_untold, of->position, of->end_ns);
	return 0;
}
