/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Calls of rustls, as programs/tls.h. A session is a value that its program moves about, so its
 * address says little; but the functions that are given the socket make the system calls:
 *
 *   reading: FILL takes records from the socket, then RECEIVED is given what is decrypted of them;
 *   writing: WRITE takes what is to be said, then FLUSH gives the records to the socket.
 *
 * The two belong together if nothing of another session comes between on the thread. As a second
 * sign both are given parts of the same session, which is one piece of memory; and where several
 * sessions could be meant, the distance of those parts, which is the same for all sessions of a kind.
 * What is written is not copied at once, as its connection may only be known when it is flushed: its
 * caller still has it then, and where it is another by its ends only its size is told.
 */

enum {
	RUSTLS_THREADS = 8192,
	RUSTLS_WRITES = 2048,
	RUSTLS_PROGRAMS = 4096,
	SESSION_BYTES = 2048, /* more than a session has: 500 to 1200 */
	OTHER_BYTES = 256, /* less than that, and more than what clients and servers differ by */
	MANY_MISSES = 4,
	RUSTLS_PIECES = 16,   /* of what is written before it is flushed */
	RECORD_BYTES = 16384, /* at most, in clear (RFC 8446 section 5.1) */
	NO_POINTER = 1 << 20, /* the capacity of a Vec is below it, and no address */
	POINTER_BITS = 56,
	MESSAGE_DATA = 3, /* in the first byte of a message; from 0.23 on the other */
	MESSAGE_DATA_LATER = 4,
};

/* What a thread reads. */
struct rustls_reads {
	__u64 filled; /* by the last FILL that moved bytes */
	__u64 connection_id;
};

struct rustls_piece {
	__u64 buffer;
	__u64 first; /* its first bytes and its last, as many as are there */
	__u64 last;
	__u32 size;
	__u32 pad;
};

/* What a thread has written and not flushed. */
struct rustls_writes {
	__u64 session;
	__u64 start_ns;
	__u32 size;
	__u32 told; /* sizes of the pieces */
	__u32 count;
	__u8 is_unclear; /* another session has written before */
	__u8 pad[3];
	struct rustls_piece pieces[RUSTLS_PIECES];
};

/* By thread; a stale one is no nearer to a session than any other memory. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RUSTLS_THREADS);
	__type(key, __u64);
	__type(value, struct rustls_reads);
} rustls_reads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RUSTLS_WRITES);
	__type(key, __u64);
	__type(value, struct rustls_writes);
} rustls_writes SEC(".maps");

struct rustls_program {
	__u64 memory; /* of a process, which begins another one with another program */
	__u32 pid;
	__u32 is_write;
};

struct rustls_offset {
	__s64 bytes;
	__u64 misses; /* in succession, where no other session could be meant */
};

/* The distance of two parts of a session, as it was seen where no other one could be meant. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, RUSTLS_PROGRAMS);
	__type(key, struct rustls_program);
	__type(value, struct rustls_offset);
} rustls_offsets SEC(".maps");

/* What a new entry begins as; too large for the stack. */
static const struct rustls_writes no_writes = {};

static __always_inline bool is_pointer(__u64 word)
{
	return word >= NO_POINTER && !(word >> POINTER_BITS);
}

static __always_inline bool is_within(__s64 distance, __s64 most)
{
	return distance > -most && distance < most;
}

/* Whether two places are in one session. `is_clear`: no other session could be meant. */
static __always_inline bool is_one_session(__s64 offset, bool is_write, bool is_clear)
{
	struct rustls_program key = {
		.memory = (__u64)READ_TASK(current_task(), mm),
		.pid = bpf_get_current_pid_tgid() >> 32,
		.is_write = is_write,
	};
	struct rustls_offset *known, fresh = {.bytes = offset};

	if (!is_within(offset, SESSION_BYTES))
		return false;
	known = bpf_map_lookup_elem(&rustls_offsets, &key);
	if (!known) {
		if (is_clear)
			bpf_map_update_elem(&rustls_offsets, &key, &fresh, BPF_NOEXIST);
		return is_clear;
	}
	if (is_within(offset - known->bytes, OTHER_BYTES)) {
		known->misses = 0;
		return true;
	}
	if (!is_clear || ++known->misses < MANY_MISSES)
		return false;
	*known = fresh; /* the first one was wrong, as a call had been missed */
	return true;
}

static __always_inline void note_filled(__u64 filled, __u64 connection_id)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct rustls_reads reads = {.filled = filled, .connection_id = connection_id};

	bpf_map_update_elem(&rustls_reads, &thread, &reads, BPF_ANY);
}

/*
 * The connection whose bytes a thread has just decrypted, into this place; 0 if it is not known.
 * Handshakes of many sessions go on at once, but what is filled is decrypted at once: a program that
 * fills several sessions first is believed wrongly until their distance is known.
 */
static __always_inline __u64 received_on(__u64 place)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct rustls_reads *reads = bpf_map_lookup_elem(&rustls_reads, &thread);

	if (!reads || !is_one_session(place - reads->filled, false, true))
		return 0;
	return reads->connection_id;
}

/* A Vec is (capacity, pointer, length), of older compilers (pointer, capacity, length). */
static __always_inline bool find_bytes(const __u64 *vec, struct tls_frame *frame, struct clear *of)
{
	frame->buffer = vec[0];
	if (!is_pointer(frame->buffer) || vec[1] >= NO_POINTER)
		frame->buffer = vec[1];
	of->left = vec[2];
	return is_pointer(frame->buffer) && vec[2] && vec[2] <= RECORD_BYTES;
}

static __always_inline int tell_received(__u64 place, const __u64 *vec)
{
	struct tls_frame frame = {.kind = PODWIRE_TLS_READ};
	struct tls_call *in = current_tls();
	struct clear clear = {};
	struct tls_stream *stream;

	/* What is received inside another session is cipher text to the inner one. */
	if (is_stopped() || !in || in->session || !find_bytes(vec, &frame, &clear))
		return 0;
	clear.connection_id = received_on(place);
	stream = clear.connection_id ? bpf_map_lookup_elem(&tls_streams, &clear.connection_id) : 0;
	if (stream)
		return tell_frame(&frame, &clear, stream);
	if (!in->is_left_out)
		count(PODWIRE_KIND_PAYLOAD, unpaired);
	return 0;
}

static __always_inline int enter_received(struct pt_regs *ctx)
{
	__u64 vec[3];

	if (bpf_probe_read_user(vec, sizeof(vec), (void *)ARGUMENT_2(ctx)))
		return 0;
	return tell_received(ARGUMENT_1(ctx), vec);
}

/* A message is (what it is, a Vec if that is data); its context begins with a place in the session. */
static __always_inline int enter_message(struct pt_regs *ctx)
{
	__u64 words[4], place;

	if (bpf_probe_read_user(words, sizeof(words), (void *)LARGE_ARGUMENT_3(ctx)) ||
	    ((__u8)words[0] != MESSAGE_DATA && (__u8)words[0] != MESSAGE_DATA_LATER) ||
	    bpf_probe_read_user(&place, sizeof(place), (void *)LARGE_ARGUMENT_2(ctx)))
		return 0;
	return tell_received(place, words + 1);
}

static __always_inline void read_ends(struct rustls_piece *piece)
{
	__u32 size = piece->size < sizeof(piece->first) ? piece->size : sizeof(piece->first);

	piece->first = piece->last = 0;
	size = at_most_mask(size, 15);
	if (size > sizeof(piece->first))
		return;
	bpf_probe_read_user(&piece->first, size, (void *)piece->buffer);
	bpf_probe_read_user(&piece->last, size, (void *)(piece->buffer + piece->size - size));
}

static __always_inline void add_piece(struct rustls_writes *writes, __u64 buffer, __u64 size)
{
	struct rustls_piece *piece;
	__u32 number = writes->count;

	barrier_var(number);
	if (number >= RUSTLS_PIECES)
		return;
	piece = &writes->pieces[number];
	piece->buffer = buffer;
	piece->size = size;
	read_ends(piece);
	writes->told += size;
	writes->count = number + 1;
}

static __always_inline void add_vector(struct rustls_writes *writes, __u64 vector, __u32 left)
{
	struct iovec each;

	for (int i = 0; i < RUSTLS_PIECES && left; i++) {
		if (bpf_probe_read_user(&each, sizeof(each), (void *)(vector + i * sizeof(each))))
			return;
		if (each.length > left)
			each.length = left;
		left -= each.length;
		if (each.length)
			add_piece(writes, each.base, each.length);
	}
}

static __always_inline void note_written(const struct tls_frame *frame, __u32 size,
					 const struct tls_call *in)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct rustls_writes *writes = bpf_map_lookup_elem(&rustls_writes, &thread);

	if (!writes) {
		bpf_map_update_elem(&rustls_writes, &thread, &no_writes, BPF_NOEXIST);
		writes = bpf_map_lookup_elem(&rustls_writes, &thread);
		if (!writes)
			return;
	}
	if (writes->size &&
	    (writes->session != frame->session || frame->start_ns - writes->start_ns > ASKING_NS)) {
		if (!in->is_left_out)
			count(PODWIRE_KIND_PAYLOAD, unpaired);
		writes->is_unclear = 1;
		writes->size = 0;
	}
	if (!writes->size) {
		writes->session = frame->session;
		writes->start_ns = frame->start_ns;
		writes->told = 0;
		writes->count = 0;
	}
	writes->size += size;
	if (frame->kind == PODWIRE_RUSTLS_WRITE)
		add_piece(writes, frame->buffer, size);
	else
		add_vector(writes, frame->buffer, size);
}

/* Tell one piece; returns 1 at the end. Not static: so the verifier looks at it once. */
__noinline int rustls_tell_piece(__u64 connection_id, __u32 number)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct rustls_writes *writes = bpf_map_lookup_elem(&rustls_writes, &thread);
	struct tls_stream *stream = bpf_map_lookup_elem(&tls_streams, &connection_id);
	struct tls_frame frame = {.kind = PODWIRE_TLS_WRITE};
	struct clear clear = {.connection_id = connection_id};
	struct rustls_piece *piece, now = {};

	if (!writes || !stream)
		return 1;
	frame.start_ns = writes->start_ns;
	if (number >= RUSTLS_PIECES || number >= writes->count) {
		clear.left = writes->size - writes->told; /* for more there is no room */
		if (clear.left)
			tell_frame(&frame, &clear, stream);
		return 1;
	}
	piece = &writes->pieces[number];
	now.buffer = piece->buffer;
	now.size = piece->size;
	read_ends(&now);
	if (now.first == piece->first && now.last == piece->last)
		frame.buffer = piece->buffer;
	clear.left = piece->size;
	tell_frame(&frame, &clear, stream);
	return 0;
}

static __always_inline void tell_written(__u64 flushed, __u64 connection_id, bool has_stream,
					 const struct tls_call *in)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct rustls_writes *writes = bpf_map_lookup_elem(&rustls_writes, &thread);

	if (!writes || !writes->size ||
	    !is_one_session(flushed - writes->session, true, !writes->is_unclear))
		return;
	writes->is_unclear = 0;
	if (has_stream) {
		for (__u32 i = 0; i <= RUSTLS_PIECES && !rustls_tell_piece(connection_id, i); i++)
			;
	} else if (!in->is_left_out) {
		count(PODWIRE_KIND_PAYLOAD, unpaired);
	}
	writes->size = 0;
}

static __always_inline int enter_rustls(struct pt_regs *ctx, __u8 kind)
{
	struct tls_frame_key key = {
		.stack = FRAME_AT_ENTRY(ctx),
		.pid = bpf_get_current_pid_tgid() >> 32,
	};
	struct tls_frame frame = {
		.session = ARGUMENT_1(ctx),
		.buffer = ARGUMENT_2(ctx),
		.moved_at = ARGUMENT_3(ctx), /* see result_of() */
		.kind = kind,
	};
	struct tls_call *in;

	if (is_stopped() || is_own_process())
		return 0;
	in = create_tls();
	if (!in)
		return 0;
	find_outer(in, &key, &frame);
	return enter_frame(in, &key, &frame);
}

/*
 * How many bytes a call has moved: (0, bytes) or (1, an error), in registers. Of compilers before that
 * was so it is in memory, and the first argument is where, before the session.
 */
static __always_inline __u64 result_of(struct pt_regs *ctx, struct tls_frame *frame)
{
	__u64 result[2] = {RESULT(ctx), RESULT_2(ctx)};

	if (IS_LARGE_RESULT(ctx, frame->session)) {
		if (bpf_probe_read_user(result, sizeof(result), (void *)frame->session))
			result[0] = 1;
		frame->session = frame->buffer;
		frame->buffer = frame->moved_at;
	}
	return result[0] ? 0 : result[1];
}

static __always_inline int exit_rustls(struct pt_regs *ctx)
{
	struct tls_frame_key key = {
		.stack = FRAME_AT_RETURN(ctx),
		.pid = bpf_get_current_pid_tgid() >> 32,
	};
	struct tls_frame *found = bpf_map_lookup_elem(&tls_frames, &key), frame;
	struct tls_call *in = current_tls();
	struct tls_stream *stream = 0;
	__u64 connection_id, moved;

	if (!found)
		return 0;
	frame = *found;
	bpf_map_delete_elem(&tls_frames, &key);
	if (!in)
		return 0;
	in->session = frame.outer;
	in->stack = frame.outer_stack;
	moved = result_of(ctx, &frame);
	if (frame.kind == PODWIRE_RUSTLS_WRITE || frame.kind == PODWIRE_RUSTLS_WRITE_VECTOR) {
		if (moved && !frame.outer)
			note_written(&frame, moved, in);
		return 0;
	}
	connection_id = connection_of(&frame, in, false);
	if (connection_id)
		stream = stream_of(connection_id, PODWIRE_TLS_READ, in);
	if (stream && in->arrived_ns)
		stream->arrived_ns = in->arrived_ns;
	if (frame.outer)
		return 0;
	if (frame.kind == PODWIRE_RUSTLS_FLUSH)
		tell_written(frame.session, connection_id, stream != 0, in);
	else if (in->connection_id)
		note_filled(frame.session, connection_id);
	return 0;
}

/* One by one, or all at once, as in tls.h. */
SEC("uretprobe")
int rustls_exit(struct pt_regs *ctx)
{
	return exit_rustls(ctx);
}

#define RUSTLS_ENTER(name, kind)                                                                   \
	SEC("uprobe")                                                                              \
	int name(struct pt_regs *ctx)                                                              \
	{                                                                                          \
		return enter_rustls(ctx, kind);                                                    \
	}

RUSTLS_ENTER(rustls_fill, PODWIRE_RUSTLS_FILL)
RUSTLS_ENTER(rustls_flush, PODWIRE_RUSTLS_FLUSH)
RUSTLS_ENTER(rustls_write, PODWIRE_RUSTLS_WRITE)
RUSTLS_ENTER(rustls_write_vector, PODWIRE_RUSTLS_WRITE_VECTOR)

SEC("uprobe")
int rustls_received(struct pt_regs *ctx)
{
	return enter_received(ctx);
}

SEC("uprobe")
int rustls_message(struct pt_regs *ctx)
{
	return enter_message(ctx);
}

SEC("uretprobe")
int rustls_any_exit(struct pt_regs *ctx)
{
	KEEP_TASK_STACK(ctx);
	return exit_rustls(ctx);
}

SEC("uprobe")
int rustls_any(struct pt_regs *ctx)
{
	__u64 function = bpf_get_attach_cookie(ctx);

	KEEP_TASK_STACK(ctx);
	switch (function) {
	case PODWIRE_RUSTLS_RECEIVED:
		return enter_received(ctx);
	case PODWIRE_RUSTLS_MESSAGE:
		return enter_message(ctx);
	default:
		return enter_rustls(ctx, function);
	}
}
