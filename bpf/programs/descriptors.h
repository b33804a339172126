/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Bytes, where sockets do not tell them: a call's descriptor leads to the socket, its result is the
 * size. What no system call of the task moves is not seen: io_uring, and the kernel's own sockets.
 */

enum {
	MAX_MESSAGES = 1024, /* UIO_MAXIOV: what sendmmsg() and recvmmsg() take at most */
	MESSAGE_LENGTH = 56, /* its msg_len */
};

static __always_inline bool is_write(__u8 kind)
{
	return kind >= PODWIRE_CALL_WRITE && kind <= PODWIRE_CALL_SENDFILE;
}

/* Looks at received bytes without taking them, or at other bytes than the peer's. */
static __always_inline bool is_peek(struct pt_regs *regs, __u8 kind)
{
	__u64 flags = 0;

	if (kind == PODWIRE_CALL_RECVMSG)
		flags = CALL_ARGUMENT_3(regs);
	else if (kind == PODWIRE_CALL_RECVFROM || kind == PODWIRE_CALL_RECVMMSG)
		flags = CALL_ARGUMENT_4(regs);
	return flags & (MSG_PEEK | MSG_ERRQUEUE);
}

static __noinline bool find_target(struct target *target, __u32 fd, __u32 other_fd, __u8 kind)
{
	struct socket *socket;

	if (!target)
		return false;
	target->direction = is_write(kind) ? PODWIRE_WRITE : PODWIRE_READ;
	target->sk = sock_of_fd(fd, &socket);
	if (!target->sk && kind == PODWIRE_CALL_SPLICE) { /* one end of a splice is a pipe */
		target->direction = PODWIRE_WRITE;
		target->sk = sock_of_fd(other_fd, &socket);
	}
	return target->sk != 0;
}

static __always_inline bool is_transfer_of_interest(struct target *target, struct pt_regs *regs,
						    __u8 kind)
{
	return !is_peek(regs, kind) &&
	       find_target(target, CALL_ARGUMENT_1(regs), CALL_ARGUMENT_3(regs), kind);
}

static __always_inline void enter_transfer(struct call_state *call, const struct target *target,
					   struct pt_regs *regs)
{
	call->sock = (__u64)target->sk;
	call->direction = target->direction;
	call->address = CALL_ARGUMENT_2(regs);
	call->address_length = CALL_ARGUMENT_3(regs);
	call->messages = 0;
}

/* The kernel writes the size of each message into the array that the call was given. */
static __noinline __u32 size_of_messages(__u64 array, __u32 messages)
{
	__u32 sum = 0, size;

	for (__u32 i = 0; i < MAX_MESSAGES && i < messages; i++) {
		size = 0;
		bpf_probe_read_user(&size, sizeof(size),
				    (void *)(array + i * MESSAGE_SIZE + MESSAGE_LENGTH));
		sum += size;
	}
	return sum;
}

static __noinline int moved(struct call_state *call, __u32 size)
{
	__u64 now = bpf_ktime_get_ns();
	struct socket_state *st;
	struct sock *sk;

	if (!call)
		return 0;
	sk = (struct sock *)call->sock;
	/* Closed meanwhile by another thread: its state must not come back. */
	if (!find_state(sk) && tcp_state_of(sk) == TCP_CLOSE) {
		count(PODWIRE_KIND_TRANSFER, unannounced);
		return 0;
	}
	st = touch(sk);
	if (!st) {
		count(PODWIRE_KIND_TRANSFER, map_full);
		return 0;
	}
	if (st->is_own)
		return 0;
	if (podwire_tls)
		note_tls(st, call->direction);
	call->connection_id = st->connection_id;
	call->standing = standing_of(st);
	call->size = size;
	if (!st->is_left_out) {
		take_counters(sk, st, call->direction, &call->counted);
		if (podwire_payloads)
			capture(call, sk, st, size, 0);
	}
	flush_transfer(call, now);
	return 0;
}

static __always_inline void exit_transfer(struct call_state *call, long result)
{
	__u32 size = result;

	if (result <= 0)
		return;
	if (call->kind == PODWIRE_CALL_RECVMMSG || call->kind == PODWIRE_CALL_SENDMMSG) {
		size = size_of_messages(call->address, result);
		if (result > 1)
			call->messages = UNKNOWN_MESSAGE;
	}
	if (size)
		moved(call, size);
}
