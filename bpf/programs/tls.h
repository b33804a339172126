/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Calls of TLS libraries: what an application says and hears in clear. The connection is that of the
 * system calls made inside them, which the core's programs note in the task's state; so nothing here
 * depends on the layout of a library's own structures.
 *
 * Two probes of one function, of a file that is reached by two ways, do no more than one: the second
 * entry repeats the first, and the second return finds no frame.
 */

enum {
	FRAMES = 1 << 15,
	/* A call inside another one is not farther down the stack; what is, is another stack. */
	STACK_BETWEEN = 1 << 15,
};

/* A call that has not returned, by the address of its return address. */
struct tls_frame_key {
	__u64 stack;
	__u64 goroutine; /* whose stack may move, then the distance from its top; 0: a thread */
	__u32 pid;
	__u32 pad;
};

struct tls_frame {
	__u64 session;
	__u64 buffer;
	__u64 moved_at; /* where an _ex call puts how many bytes it has moved */
	__u64 start_ns;
	__u64 outer; /* session of the call that this one was made by; 0: none */
	__u64 outer_stack;
	__u8 kind; /* enum podwire_tls_function */
	__u8 is_told; /* what it moves has been told of when it was entered */
	__u8 pad[6];
};

/* What never returns, of a task that is killed, is the oldest one day. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAMES);
	__type(key, struct tls_frame_key);
	__type(value, struct tls_frame);
} tls_frames SEC(".maps");

/* Set when nobody reads the ring any more: to detach the probes takes the kernel seconds. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tls_stopped SEC(".maps");

static __always_inline bool is_stopped(void)
{
	__u32 zero = 0, *stopped = bpf_map_lookup_elem(&tls_stopped, &zero);

	return stopped && *stopped;
}

static __always_inline bool is_tls_write(__u8 kind)
{
	return kind == PODWIRE_TLS_WRITE || kind == PODWIRE_TLS_WRITE_EX || kind == PODWIRE_TLS_SENDFILE;
}

/* `in`: what the caller is in. */
static __always_inline void find_outer(struct tls_call *in, const struct tls_frame_key *key,
				       struct tls_frame *frame)
{
	struct tls_frame *before;

	frame->start_ns = bpf_ktime_get_ns();
	if (in->session && in->stack == key->stack) {
		before = bpf_map_lookup_elem(&tls_frames, key);
		if (before) {
			frame->outer = before->outer;
			frame->outer_stack = before->outer_stack;
			/* A stack that had to grow enters its function again. */
			frame->is_told = before->is_told && before->session == frame->session &&
					 before->buffer == frame->buffer;
		}
	} else if (in->session && in->stack - key->stack < STACK_BETWEEN) {
		frame->outer = in->session;
		frame->outer_stack = in->stack;
	} else {
		in->connection_id = 0;
		in->arrived_ns = 0;
		in->is_first = 0;
	}
}

static __always_inline int enter_frame(struct tls_call *in, const struct tls_frame_key *key,
				       const struct tls_frame *frame)
{
	if (bpf_map_update_elem(&tls_frames, key, frame, BPF_ANY))
		return 0;
	in->session = frame->session;
	in->stack = key->stack;
	return 0;
}

static __always_inline int enter_tls(struct pt_regs *ctx, __u8 kind)
{
	struct tls_frame_key key = {
		.stack = FRAME_AT_ENTRY(ctx),
		.pid = bpf_get_current_pid_tgid() >> 32,
	};
	struct tls_frame frame = {
		.session = ARGUMENT_1(ctx),
		.buffer = ARGUMENT_2(ctx),
		.moved_at = ARGUMENT_4(ctx),
		.kind = kind,
	};
	struct tls_call *in;

	if (is_stopped() || is_own_process())
		return 0;
	in = create_tls();
	if (!in)
		return 0; /* its return finds no frame */
	find_outer(in, &key, &frame);
	return enter_frame(in, &key, &frame);
}

/* How many bytes a call has moved. */
static __always_inline __u32 moved_by(const struct tls_frame *frame, int result)
{
	__u64 moved = 0;

	if (result <= 0 || frame->kind >= PODWIRE_TLS_HANDSHAKE)
		return 0;
	if (frame->kind != PODWIRE_TLS_READ_EX && frame->kind != PODWIRE_TLS_WRITE_EX)
		return result;
	if (result != 1 ||
	    bpf_probe_read_user(&moved, sizeof(moved), (void *)frame->moved_at))
		return 0;
	return moved;
}

/* A client's session without system calls of its own, seen before its ClientHello was written. */
static __always_inline void begin_asking(struct tls_session *session, __u64 address,
					 struct tls_call *in)
{
	__u64 now = bpf_ktime_get_ns();

	if (in->asking == address)
		return;
	if (session->is_asking) {
		session->is_lost = 1; /* something else came between */
		return;
	}
	if (in->askers && now - in->asking_ns > ASKING_NS) {
		in->askers = 0;
		in->is_unclear = 0;
	}
	session->is_asking = 1;
	in->askers++;
	if (in->askers > 1)
		in->is_unclear = 1;
	in->asking = address;
	in->asking_ns = now;
}

/*
 * The connection of a session: that of the system calls of this call or of an earlier one, else by a
 * ClientHello; 0 if it is not known.
 */
static __always_inline __u64 connection_of(const struct tls_frame *frame, struct tls_call *in,
					   bool has_moved)
{
	struct tls_session_key key = session_key(frame->session);
	struct tls_session *known, fresh = {};

	if (frame->kind == PODWIRE_TLS_CONNECT)
		fresh.role = PODWIRE_ROLE_CLIENT;
	if (frame->kind == PODWIRE_TLS_ACCEPT)
		fresh.role = PODWIRE_ROLE_SERVER;
	known = bpf_map_lookup_elem(&tls_sessions, &key);
	if (!known) {
		bpf_map_update_elem(&tls_sessions, &key, &fresh, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&tls_sessions, &key);
	}
	if (!known)
		return in->connection_id;
	if (in->connection_id) {
		if (in->asking == frame->session)
			end_asking(in);
		/* It was given its role while we watched, and this is the first that it moves. */
		if (known->role && !known->connection_id && !known->is_lost)
			in->is_first = 1;
		known->connection_id = in->connection_id;
	} else if (!known->connection_id && !known->is_lost && !frame->outer) {
		if (has_moved) {
			known->is_lost = 1;
		} else if (known->role == PODWIRE_ROLE_SERVER && in->greeted_id) {
			known->connection_id = in->greeted_id;
			in->greeted_id = 0;
			begin_stream(known->connection_id, true);
		} else if (known->role == PODWIRE_ROLE_CLIENT) {
			begin_asking(known, frame->session, in);
		}
	}
	return known->connection_id;
}

static __always_inline struct tls_stream *stream_of(__u64 connection_id, __u8 kind,
						    const struct tls_call *in)
{
	struct tls_stream *stream = bpf_map_lookup_elem(&tls_streams, &connection_id);

	/* Without a sign of life the connection may be gone, with all that would end the entry. */
	if (stream || !in->connection_id)
		return stream;
	begin_stream(connection_id, kind >= PODWIRE_TLS_HANDSHAKE || in->is_first);
	return bpf_map_lookup_elem(&tls_streams, &connection_id);
}

/* `of` has the connection and how many bytes it is about. */
static __always_inline int tell_frame(const struct tls_frame *frame, struct clear *of,
				      struct tls_stream *stream)
{
	bool is_write = is_tls_write(frame->kind);

	of->direction = is_write ? PODWIRE_WRITE : PODWIRE_READ;
	of->flags = PODWIRE_CLEAR | (stream->is_begun ? PODWIRE_BEGUN : 0);
	of->start_ns = is_write ? frame->start_ns : stream->arrived_ns;
	of->end_ns = bpf_ktime_get_ns();
	of->buffer = frame->kind == PODWIRE_TLS_SENDFILE ? 0 : frame->buffer;
	of->position = stream->position[is_write];
	stream->position[is_write] = of->position + of->left;
	return tell_clear(of, stream);
}

static __always_inline int exit_frame(struct tls_call *in, const struct tls_frame_key *key, int result)
{
	struct tls_frame *found = bpf_map_lookup_elem(&tls_frames, key), frame;
	struct tls_stream *stream;
	struct clear clear = {};

	if (!found)
		return 0;
	frame = *found;
	bpf_map_delete_elem(&tls_frames, key);
	if (!in)
		return 0;
	in->session = frame.outer;
	in->stack = frame.outer_stack;
	clear.left = moved_by(&frame, result);
	clear.connection_id = connection_of(&frame, in, clear.left > 0);
	if (!clear.connection_id) {
		if (clear.left && !in->is_left_out)
			count(PODWIRE_KIND_PAYLOAD, unpaired);
		return 0;
	}
	stream = stream_of(clear.connection_id, frame.kind, in);
	/* What a session inside another one moves is cipher text to the inner one. */
	if (!clear.left || frame.outer || frame.is_told)
		return 0;
	if (!stream) {
		/* The one that it had: it has ended, or was outside the scope and is another one now. */
		if (!in->is_left_out)
			count(PODWIRE_KIND_PAYLOAD, unpaired);
		return 0;
	}
	if (in->arrived_ns)
		stream->arrived_ns = in->arrived_ns;
	return tell_frame(&frame, &clear, stream);
}

static __always_inline int exit_tls(struct pt_regs *ctx)
{
	struct tls_frame_key key = {
		.stack = FRAME_AT_RETURN(ctx),
		.pid = bpf_get_current_pid_tgid() >> 32,
	};

	return exit_frame(current_tls(), &key, RESULT(ctx));
}

/* The return stands first and is attached first: an entry without it would leave its frame. */
SEC("uretprobe")
int tls_exit(struct pt_regs *ctx)
{
	return exit_tls(ctx);
}

#define TLS_ENTER(name, kind)                                                                      \
	SEC("uprobe")                                                                              \
	int name(struct pt_regs *ctx)                                                              \
	{                                                                                          \
		return enter_tls(ctx, kind);                                                       \
	}

TLS_ENTER(tls_read, PODWIRE_TLS_READ)
TLS_ENTER(tls_write, PODWIRE_TLS_WRITE)
TLS_ENTER(tls_read_ex, PODWIRE_TLS_READ_EX)
TLS_ENTER(tls_write_ex, PODWIRE_TLS_WRITE_EX)
TLS_ENTER(tls_sendfile, PODWIRE_TLS_SENDFILE)
TLS_ENTER(tls_handshake, PODWIRE_TLS_HANDSHAKE)
TLS_ENTER(tls_connect, PODWIRE_TLS_CONNECT)
TLS_ENTER(tls_accept, PODWIRE_TLS_ACCEPT)

/* A session is given its role: at its beginning, whatever had its address before. */
static __always_inline int begin_session(struct pt_regs *ctx, __u8 role)
{
	struct tls_session_key key = session_key(ARGUMENT_1(ctx));
	struct tls_session fresh = {.role = role};

	bpf_map_update_elem(&tls_sessions, &key, &fresh, BPF_ANY);
	return 0;
}

SEC("uprobe")
int tls_as_client(struct pt_regs *ctx)
{
	return begin_session(ctx, PODWIRE_ROLE_CLIENT);
}

SEC("uprobe")
int tls_as_server(struct pt_regs *ctx)
{
	return begin_session(ctx, PODWIRE_ROLE_SERVER);
}

/* The address may be another session's at once. */
static __always_inline int forget_session(__u64 session)
{
	struct tls_session_key key = session_key(session);

	bpf_map_delete_elem(&tls_sessions, &key);
	return 0;
}

static __always_inline int end_session(struct pt_regs *ctx)
{
	__u64 session = ARGUMENT_1(ctx);
	struct tls_call *in = current_tls();

	if (in && in->asking == session)
		end_asking(in);
	return forget_session(session);
}

SEC("uprobe")
int tls_free(struct pt_regs *ctx)
{
	return end_session(ctx);
}

/*
 * Since v6.13 the kernel gives a program of this kind a stack of the CPU's (Linux kernel commit
 * e00931c02568 ("bpf: Enable private stack for eligible subprogs")), as if none were entered again
 * before it is left. At a function of a file that is not so where the kernel may preempt: the next
 * task's would write over what the first has there, and v7.2 was seen to crash of it. One that has a
 * tail call keeps its task's stack; this one is never made.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} nowhere SEC(".maps");

const volatile bool podwire_never = false;

#define KEEP_TASK_STACK(ctx)                                                                       \
	({                                                                                         \
		if (podwire_never)                                                                 \
			bpf_tail_call(ctx, &nowhere, 0);                                           \
	})

/*
 * The same at all functions of a file at once, where the kernel can (v6.6): it lets go of them as one.
 * Which function it is, the cookie says.
 */
SEC("uretprobe")
int tls_any_exit(struct pt_regs *ctx)
{
	KEEP_TASK_STACK(ctx);
	return exit_tls(ctx);
}

SEC("uprobe")
int tls_any(struct pt_regs *ctx)
{
	__u64 function = bpf_get_attach_cookie(ctx);

	KEEP_TASK_STACK(ctx);
	switch (function) {
	case PODWIRE_TLS_AS_CLIENT:
		return begin_session(ctx, PODWIRE_ROLE_CLIENT);
	case PODWIRE_TLS_AS_SERVER:
		return begin_session(ctx, PODWIRE_ROLE_SERVER);
	case PODWIRE_TLS_FREE:
		return end_session(ctx);
	default:
		return enter_tls(ctx, function);
	}
}
