/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where in the memory of its task the bytes of a call are: one buffer, or a vector of them.
 */

enum {
	MESSAGE_SIZE = 64, /* struct mmsghdr of 64-bit tasks */
	MESSAGE_VECTOR = 16, /* struct user_msghdr: msg_iov, then msg_iovlen */
	UNKNOWN_MESSAGE = 0xffffffff, /* in call_state.messages: not which of several */
};

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
