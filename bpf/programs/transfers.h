/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Bytes: sock_sendmsg() and sock_recvmsg() tell socket and size of every call that moves data,
 * whichever system call it came from.
 * Linux kernel commit 6e6eda44b939 ("sock: add tracepoint for send recv length") (in v6.3).
 */

/* tcp_splice_read() does not pass sock_recvmsg(), so the socket must be found through the fd. */
static __noinline int enter_splice(struct call_state *call, __u32 fd)
{
	struct socket_state st = {};
	struct socket *socket;
	struct sock *sk = sock_of_fd(fd, &socket);

	if (!call)
		return 0;
	call->sock = (__u64)sk;
	call->standing = STANDING_UNANNOUNCED;
	call->connection_id = 0;
	if (!sk || !read_state(sk, &st))
		return 0;
	if (!st.owner.pid)
		own_by_current(&st.owner);
	st.is_left_out = is_sock_left_out(sk, &st);
	if (st.is_waiting)
		claim_by_touch(sk, &st);
	announce(sk, &st); /* known again at its next touch: the copy forgets that it was told */
	call->standing = standing_of(&st);
	call->connection_id = st.connection_id;
	return 0;
}

static __always_inline void exit_splice(struct call_state *call, long result, __u64 now)
{
	if (!call->sock || result <= 0)
		return;
	call->size = result;
	call->direction = PODWIRE_READ;
	flush_transfer(call, now);
}

static __always_inline bool is_transfer_of_interest(struct target *target, struct pt_regs *regs,
						    __u8 kind)
{
	return true; /* whether it moves bytes, the socket tells */
}

static __always_inline void enter_transfer(struct call_state *call, const struct target *target,
					   struct pt_regs *regs)
{
	call->address = CALL_ARGUMENT_2(regs);
	call->address_length = CALL_ARGUMENT_3(regs);
	call->messages = 0;
	if (call->kind == PODWIRE_CALL_SPLICE)
		enter_splice(call, CALL_ARGUMENT_1(regs));
}

static __always_inline void exit_transfer(struct call_state *call, long result)
{
	if (call->size)
		flush_transfer(call, bpf_ktime_get_ns());
	else if (call->kind == PODWIRE_CALL_SPLICE)
		exit_splice(call, result, bpf_ktime_get_ns());
}

static __always_inline __u8 call_without_syscall(struct task_struct *task)
{
	if (task->flags & PF_IO_WORKER)
		return PODWIRE_CALL_IO_URING;
	if (task->flags & PF_KTHREAD)
		return PODWIRE_CALL_OTHER;
	/* Submitted inline by io_uring_enter, or its task work on the way back to user space. */
	return task->io_uring ? PODWIRE_CALL_IO_URING : PODWIRE_CALL_OTHER;
}

enum turn {
	TURN_FIRST,
	TURN_SPARE,
	TURN_SECOND_SPARE,
	TURN_LAST,
};

static __always_inline void moved(struct sock *sk, __u32 size, __u8 direction, int flags,
				  enum turn turn)
{
	struct transfer transfer = {};
	struct task_struct *task;
	struct socket_state *st;
	struct call_state *call;

	if (!is_tcp(sk) || is_own_process())
		return;
	task = current_task();
	call = current_call();
	if (!call)
		call = create_call(task); /* for the mark */
	if (call)
		call->is_told = turn != TURN_LAST;
	st = touch(sk);
	if (!st) {
		count(PODWIRE_KIND_TRANSFER, map_full);
		return;
	}
	if (st->is_own)
		return;
	if (podwire_tls)
		note_tls(st, direction);
	if (call && call->is_active && call->kind < CALL_CONNECT) {
		if (call->size && (call->connection_id != st->connection_id ||
				   call->direction != direction)) {
			__u64 now = bpf_ktime_get_ns();

			flush_transfer(call, now);
			call->start_ns = now;
		}
		call->connection_id = st->connection_id;
		call->sock = (__u64)sk;
		call->standing = standing_of(st);
		call->direction = direction;
		call->size += size;
		if (st->is_left_out)
			return;
		take_counters(sk, st, direction, &call->counted);
		if (podwire_payloads && !(flags & MSG_TRUNC))
			capture(call, sk, st, size, turn);
		call->messages++;
		return;
	}
	if (st->announcement == ANNOUNCED_NEVER) {
		count_untold(st->is_left_out);
		return;
	}
	take_counters(sk, st, direction, &transfer.counted);
	transfer.connection_id = st->connection_id;
	transfer.duration_ns = PODWIRE_UNMEASURED;
	transfer.end_ns = bpf_ktime_get_ns();
	transfer.sk = (__u64)sk;
	transfer.size = size;
	transfer.direction = direction;
	transfer.call = call_without_syscall(task);
	submit_transfer(&transfer);
}

/* Has a program before this one told of the same bytes? The last of them removes its mark. */
static __always_inline bool is_told(enum turn turn)
{
	struct call_state *call;
	bool is_told;

	if (turn == TURN_FIRST)
		return false;
	call = current_call();
	is_told = !call || call->is_told; /* no memory for the mark: only the first tells */
	if (call && turn == TURN_LAST)
		call->is_told = 0;
	return is_told;
}

static __always_inline int sent(struct sock *sk, int result, enum turn turn)
{
	if (result > 0 && !is_told(turn))
		moved(sk, result, PODWIRE_WRITE, 0, turn);
	return 0;
}

static __always_inline int received(struct sock *sk, int result, int flags, enum turn turn)
{
	if (result > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)) && !is_told(turn))
		moved(sk, result, PODWIRE_READ, flags, turn);
	return 0;
}

#define SOCK_SEND_LENGTH(name, turn)                                                               \
	SEC("tp_btf/sock_send_length")                                                             \
	int BPF_PROG(name, struct sock *sk, int result, int flags)                                 \
	{                                                                                          \
		return sent(sk, result, turn);                                                     \
	}

#define SOCK_RECV_LENGTH(name, turn)                                                               \
	SEC("tp_btf/sock_recv_length")                                                             \
	int BPF_PROG(name, struct sock *sk, int result, int flags)                                 \
	{                                                                                          \
		return received(sk, result, flags, turn);                                          \
	}

SOCK_SEND_LENGTH(sock_send_length, TURN_FIRST)
SOCK_SEND_LENGTH(sock_send_length_spare_1, TURN_SPARE)
SOCK_SEND_LENGTH(sock_send_length_spare_2, TURN_SECOND_SPARE)
SOCK_SEND_LENGTH(sock_send_length_spare_3, TURN_LAST)
SOCK_RECV_LENGTH(sock_recv_length, TURN_FIRST)
SOCK_RECV_LENGTH(sock_recv_length_spare_1, TURN_SPARE)
SOCK_RECV_LENGTH(sock_recv_length_spare_2, TURN_SECOND_SPARE)
SOCK_RECV_LENGTH(sock_recv_length_spare_3, TURN_LAST)
