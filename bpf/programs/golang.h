/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Calls of Go's crypto/tls, as programs/tls.h. Go moves the stacks of its goroutines, which the kernel's
 * own probes of returns do not survive; so there is a probe at every instruction that returns.
 */

enum {
	STACK_TOP = 8, /* in the runtime's state of a goroutine: stack.hi (src/runtime/runtime2.go) */
	WORD = 8,
};

/* Above the return address: (session, buffer, its length, its capacity), then the result. */
static __always_inline __u64 go_on_stack(struct pt_regs *ctx, __u32 word)
{
	__u64 value = 0;

	bpf_probe_read_user(&value, sizeof(value), (void *)FRAME_AT_ENTRY(ctx) + word * WORD);
	return value;
}

/* The stack pointer is the same at the entry and at a return. */
static __always_inline bool go_frame(struct pt_regs *ctx, __u8 convention, struct tls_frame_key *key)
{
	__u64 top;

	key->pid = bpf_get_current_pid_tgid() >> 32;
	key->goroutine = convention == PODWIRE_GO_REGISTERS ? ctx->GOROUTINE_REGISTER :
							      goroutine_by(convention);
	if (!key->goroutine ||
	    bpf_probe_read_user(&top, sizeof(top), (void *)key->goroutine + STACK_TOP))
		return false;
	key->stack = FRAME_AT_ENTRY(ctx) - top;
	return true;
}

/* What a goroutine is in; NULL if it is not known. */
static __always_inline struct tls_call *goroutine_of(const struct tls_frame_key *frame)
{
	struct goroutine_key key = {.goroutine = frame->goroutine, .pid = frame->pid};
	struct go_process *process = bpf_map_lookup_elem(&go_processes, &key.pid);

	if (!process)
		return 0;
	key.program = process->program;
	return bpf_map_lookup_elem(&goroutines, &key);
}

static __always_inline struct tls_call *create_goroutine(const struct tls_frame_key *frame,
							 __u8 convention)
{
	struct goroutine_key key = {.goroutine = frame->goroutine, .pid = frame->pid};
	struct go_process *process = bpf_map_lookup_elem(&go_processes, &key.pid), found = {};
	struct tls_call *in, fresh = {};
	__u32 zero = 0, *seen;

	if (!process) {
		found.program = bpf_get_prandom_u32();
		found.convention = convention;
		bpf_map_update_elem(&go_processes, &key.pid, &found, BPF_NOEXIST);
		process = bpf_map_lookup_elem(&go_processes, &key.pid); /* or another thread's */
		seen = bpf_map_lookup_elem(&go_seen, &zero);
		if (seen)
			*seen = 1;
	}
	if (!process)
		return 0;
	key.program = process->program;
	in = bpf_map_lookup_elem(&goroutines, &key);
	if (in)
		return in;
	bpf_map_update_elem(&goroutines, &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&goroutines, &key);
}

/*
 * The answer may be read by another goroutine before the write that asked for it has returned. So a
 * write is told of when it begins, once its connection is known; it moves all that it is given, or is
 * the last one.
 */
static __always_inline void tell_write(struct tls_frame *frame, __u32 size)
{
	struct tls_session_key key = session_key(frame->session);
	struct tls_session *session = bpf_map_lookup_elem(&tls_sessions, &key);
	struct clear clear = {.left = size};
	struct tls_stream *stream;

	if (frame->is_told || frame->outer || !session || !session->connection_id)
		return;
	clear.connection_id = session->connection_id;
	stream = bpf_map_lookup_elem(&tls_streams, &clear.connection_id);
	if (!stream)
		return;
	frame->is_told = 1;
	tell_frame(frame, &clear, stream);
}

static __always_inline int enter_go(struct pt_regs *ctx, __u8 kind, __u8 convention)
{
	bool is_in_registers = convention == PODWIRE_GO_REGISTERS;
	struct tls_frame frame = {
		.session = is_in_registers ? GO_ARGUMENT_1(ctx) : go_on_stack(ctx, 1),
		.buffer = is_in_registers ? GO_ARGUMENT_2(ctx) : go_on_stack(ctx, 2),
		.kind = kind,
	};
	struct tls_frame_key key = {};
	struct tls_call *in;
	__u32 size;

	if (kind == PODWIRE_TLS_FREE)
		return forget_session(frame.session);
	if (is_stopped() || is_own_process() || !go_frame(ctx, convention, &key))
		return 0;
	in = create_goroutine(&key, convention);
	if (!in)
		return 0;
	find_outer(in, &key, &frame);
	if (kind == PODWIRE_TLS_WRITE) {
		size = is_in_registers ? GO_ARGUMENT_3(ctx) : go_on_stack(ctx, 3);
		tell_write(&frame, size);
	}
	return enter_frame(in, &key, &frame);
}

static __always_inline int exit_go(struct pt_regs *ctx, __u8 convention)
{
	struct tls_frame_key key = {};
	__u64 result;

	if (!go_frame(ctx, convention, &key))
		return 0;
	result = convention == PODWIRE_GO_REGISTERS ? GO_ARGUMENT_1(ctx) : go_on_stack(ctx, 5);
	return exit_frame(goroutine_of(&key), &key, result);
}

#define GO_PROGRAMS(suffix, convention)                                                            \
	SEC("uprobe")                                                                              \
	int go_exit##suffix(struct pt_regs *ctx)                                                   \
	{                                                                                          \
		return exit_go(ctx, convention);                                                   \
	}                                                                                          \
	SEC("uprobe")                                                                              \
	int go_read##suffix(struct pt_regs *ctx)                                                   \
	{                                                                                          \
		return enter_go(ctx, PODWIRE_TLS_READ, convention);                                \
	}                                                                                          \
	SEC("uprobe")                                                                              \
	int go_write##suffix(struct pt_regs *ctx)                                                  \
	{                                                                                          \
		return enter_go(ctx, PODWIRE_TLS_WRITE, convention);                               \
	}                                                                                          \
	SEC("uprobe")                                                                              \
	int go_handshake##suffix(struct pt_regs *ctx)                                              \
	{                                                                                          \
		return enter_go(ctx, PODWIRE_TLS_HANDSHAKE, convention);                           \
	}                                                                                          \
	SEC("uprobe")                                                                              \
	int go_free##suffix(struct pt_regs *ctx)                                                   \
	{                                                                                          \
		return enter_go(ctx, PODWIRE_TLS_FREE, convention);                                \
	}

GO_PROGRAMS(, PODWIRE_GO_REGISTERS)
GO_PROGRAMS(_by_stack, PODWIRE_GO_STACK)

/* Everything at once, as tls_any(): the cookie says which function it is, in its second byte how it is
 * called, and in the third whether this is a return. */
SEC("uprobe")
int go_any(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx);
	__u8 convention = cookie >> 8;

	KEEP_TASK_STACK(ctx);
	if (cookie >> 16)
		return exit_go(ctx, convention);
	return enter_go(ctx, cookie, convention);
}
