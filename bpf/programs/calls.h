/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * System calls: what a task is in, since when, and what came of it. One pair of programs for all
 * calls; those not listed in syscalls.h leave after one table look-up.
 */

/* Errors of connect() that decide nothing. */
enum {
	EINTR = 4,
	EFAULT = 14,
	EISCONN = 106,
	EALREADY = 114,
	EINPROGRESS = 115,
	ERESTARTSYS = 512,
};

/* What a descriptor of a call leads to. */
struct target {
	struct sock *sk;
	__u8 direction;
};

struct socket_address {
	__u16 family;
	__be16 port;
	union {
		__be32 ipv4;
		struct {
			__u32 flow;
			__u8 ipv6[16];
		};
	};
};

static __always_inline void release_held(struct call_state *call, __u64 now)
{
	if (!call->held_kind)
		return;
	call->held.end_ns = now;
	call->held.duration_ns = now - call->start_ns;
	call->start_ns = now; /* of the next file that the call closes */
	call->held_kind = 0;
	submit_connection(&call->held);
}

static __always_inline void flush_transfer(struct call_state *call, __u64 now)
{
	struct transfer transfer = {};

	if (!call->size)
		return;
	if (call->standing == STANDING_ANNOUNCED) {
		transfer.connection_id = call->connection_id;
		transfer.duration_ns = now - call->start_ns;
		transfer.end_ns = now;
		transfer.sk = call->sock;
		transfer.size = call->size;
		transfer.direction = call->direction;
		transfer.call = call->kind;
		transfer.counted = call->counted;
		submit_transfer(&transfer);
	} else {
		count_untold(call->standing == STANDING_LEFT_OUT);
	}
	call->size = 0;
	__builtin_memset(&call->counted, 0, sizeof(call->counted));
}

/* A transfer's beginning and end; see transfers.h and descriptors.h, of which an object has one. */
static __always_inline bool is_transfer_of_interest(struct target *target, struct pt_regs *regs,
						    __u8 kind);
static __always_inline void enter_transfer(struct call_state *call, const struct target *target,
					   struct pt_regs *regs);
static __always_inline void exit_transfer(struct call_state *call, long result);

static __always_inline void enter_connect(struct call_state *call, __u32 fd)
{
	struct socket *socket = 0;
	struct sock *sk = sock_of_fd(fd, &socket);

	call->sock = (__u64)sk;
	call->has_sent_syn = 0;
	/* Not SS_CONNECTING: a repeated connect() only asks how the first one went. */
	call->is_fresh_connect = sk && BPF_CORE_READ(socket, state) == SS_UNCONNECTED;
}

/*
 * connect() failed and nothing has told of it: before a SYN was sent there was no route, no free
 * port, or a filter forbade it; after that the change of the sock's state was not seen. The kernel
 * has forgotten the address by now.
 */
static __noinline int fail_connect(struct call_state *call, __u32 error)
{
	struct podwire_connection_record record;
	struct socket_address address = {};
	__u64 now = bpf_ktime_get_ns();
	struct owner owner;
	struct sock *sk;
	__u32 length;

	if (!call)
		return 0;
	sk = (struct sock *)call->sock;
	length = call->address_length;
	if (length > sizeof(address))
		length = sizeof(address);
	if (bpf_probe_read_user(&address, length, (void *)call->address))
		return 0;
	if (address.family != AF_INET && address.family != AF_INET6)
		return 0;
	own_by_current(&owner);
	fill_owned(&record, PODWIRE_CONNECTED, sk,
		   call->has_sent_syn ? call->connection_id : new_connection_id(),
		   PODWIRE_ROLE_CLIENT, &owner, now, now - call->start_ns, TCP_CLOSE);
	record.error = error;
	record.remote_port = bpf_ntohs(address.port);
	if (address.family == AF_INET) {
		map_ipv4(record.remote_address, address.ipv4);
	} else {
		__builtin_memcpy(record.remote_address, address.ipv6, 16);
	}
	record.family = is_mapped_ipv4(record.remote_address) ? 4 : 6;
	submit_connection(&record);
	return 0;
}

static __always_inline void exit_connect(struct call_state *call, long result, __u64 now)
{
	__u32 error = -result;

	if (call->held_kind) {
		call->held.error = result < 0 ? error : call->held.error;
		release_held(call, now);
		return;
	}
	if (result >= 0 || !call->is_fresh_connect)
		return;
	if (error == EINTR || error == EFAULT || error == EISCONN || error == EALREADY ||
	    error == EINPROGRESS || error >= ERESTARTSYS)
		return;
	if (!call->has_sent_syn || decide_connect(call->connection_id))
		fail_connect(call, error);
}

static __noinline int exit_accept(struct call_state *call, __u32 fd)
{
	struct podwire_connection_record record;
	struct socket *socket;
	struct sock *sk = sock_of_fd(fd, &socket);
	__u64 key = (__u64)sk, now = bpf_ktime_get_ns(), start, connection_id;
	struct waiting *waiting, unseen = {};
	struct owner owner;

	if (!call || !sk)
		return 0;
	waiting = bpf_map_lookup_elem(&accept_queue, &key);
	if (!waiting) {
		/* Told when it is touched: from here its state cannot be written. */
		bpf_map_update_elem(&accept_queue, &key, &unseen, BPF_NOEXIST);
		return 0;
	}
	connection_id = waiting->connection_id;
	/* Waiting for a client is not part of accepting it. */
	start = waiting->established_ns > call->start_ns ? waiting->established_ns : call->start_ns;
	if (bpf_map_delete_elem(&accept_queue, &key))
		return 0;
	own_by_current(&owner);
	fill_owned(&record, PODWIRE_ACCEPTED, sk, connection_id, PODWIRE_ROLE_SERVER, &owner, now,
		   now - start, tcp_state_of(sk));
	submit_connection(&record);
	return 0;
}

/* The end of the call before was not seen: what is known of it is told, all but its duration. */
static __noinline int end_unseen(struct call_state *call)
{
	__u64 now = bpf_ktime_get_ns();

	if (!call)
		return 0;
	call->is_active = 0;
	call->start_ns = now - PODWIRE_UNMEASURED;
	flush_transfer(call, now);
	release_held(call, now);
	return 0;
}

/* See processes.h. */
static __always_inline int exit_map(struct pt_regs *regs, long result);

static __always_inline int exit_call(struct pt_regs *regs, long result)
{
	__u8 kind = call_of_number(regs->CALL_NUMBER_REGISTER);
	struct call_state *call;
	__u64 now;

	if (!kind)
		return 0;
	if (kind == CALL_MAP)
		return exit_map(regs, result);
	call = current_call();
	if (!call || !call->is_active)
		return 0;
	call->is_active = 0;
	call->is_told = 0;
	if (kind < CALL_CONNECT) {
		exit_transfer(call, result);
		return 0;
	}
	now = bpf_ktime_get_ns();
	if (kind == CALL_CONNECT)
		exit_connect(call, result, now);
	else if (kind == CALL_ACCEPT && result >= 0)
		exit_accept(call, result);
	else if (kind == CALL_CLOSE)
		release_held(call, now);
	return 0;
}

static __always_inline int enter_call(struct pt_regs *regs, long number, bool is_spare)
{
	__u8 kind = call_of_number(number);
	struct target target = {};
	struct task_struct *task;
	struct call_state *call;

	if (!kind || kind == CALL_MAP)
		return 0;
	task = current_task();
	if (is_compat(task) || is_own_process())
		return 0;
	if (is_spare) {
		call = current_call();
		if (call && call->is_active)
			return 0;
	}
	if (kind < CALL_CONNECT && !is_transfer_of_interest(&target, regs, kind))
		return 0;
	call = create_call(task);
	if (!call)
		return 0; /* where sockets tell bytes, they are told at once, without a duration */
	if (call->is_active)
		end_unseen(call);
	call->kind = kind;
	call->is_active = 1;
	call->is_told = 0;
	call->size = 0;
	__builtin_memset(&call->counted, 0, sizeof(call->counted));
	call->held_kind = 0;
	call->start_ns = bpf_ktime_get_ns();
	if (kind == CALL_CONNECT) {
		call->address = CALL_ARGUMENT_2(regs);
		call->address_length = CALL_ARGUMENT_3(regs);
		enter_connect(call, CALL_ARGUMENT_1(regs));
	} else if (kind < CALL_CONNECT) {
		enter_transfer(call, &target, regs);
	}
	return 0;
}

/*
 * Since v7.0 a task may be preempted inside a tracepoint's program, and until it is back the kernel
 * skips that program on that CPU for every other task (Linux kernel commit a46023d5616e ("tracing:
 * Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast"), prog->active). So there are
 * spares, which do nothing unless all before them were skipped: as many tasks as there are programs
 * would have to be away at once, each inside another of them. collector/attach.py leaves them out
 * where programs are not preempted.
 *
 * sys_exit stands before sys_enter in this file, hence is attached before it and detached after it:
 * every call that is seen to begin is seen to end. One is useless without the other.
 */
#define SYS_EXIT(name)                                                                             \
	SEC("tp_btf/sys_exit")                                                                     \
	int BPF_PROG(name, struct pt_regs *regs, long result)                                      \
	{                                                                                          \
		return exit_call(regs, result);                                                    \
	}

#define SYS_ENTER(name, is_spare)                                                                  \
	SEC("tp_btf/sys_enter")                                                                    \
	int BPF_PROG(name, struct pt_regs *regs, long number)                                      \
	{                                                                                          \
		return enter_call(regs, number, is_spare);                                         \
	}

SYS_EXIT(sys_exit)
SYS_EXIT(sys_exit_spare_1)
SYS_EXIT(sys_exit_spare_2)
SYS_EXIT(sys_exit_spare_3)
SYS_ENTER(sys_enter, false)
SYS_ENTER(sys_enter_spare_1, true)
SYS_ENTER(sys_enter_spare_2, true)
SYS_ENTER(sys_enter_spare_3, true)
