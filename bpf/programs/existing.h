/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections older than the collector, found through the files of all tasks: unlike iter/tcp this
 * sees every network namespace at once, and knows the owner. Run `find_listeners`, then
 * `find_sockets`, after everything else is attached; whatever has no file (accept queues, fixed
 * files of io_uring) is recognised at its first touch.
 */

SEC("iter/task_file")
int find_listeners(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct listener key;
	struct sock *sk;
	__u8 yes = 1;

	barrier_var(file); /* the verifier wants the checked copy, not a second load */
	if (!file)
		return 0;
	sk = sock_of_file(file);
	if (!sk || tcp_state_of(sk) != TCP_LISTEN)
		return 0;
	key.netns = netns_of(sk);
	key.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	bpf_map_update_elem(&listeners, &key, &yes, BPF_ANY);
	return 0;
}

SEC("iter/task_file")
int find_sockets(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct task_struct *task = ctx->task;
	struct socket_state *st;
	struct sock *sk;
	__u8 tcp_state;

	barrier_var(file);
	barrier_var(task);
	if (!file || !task)
		return 0;
	sk = sock_of_file(file);
	if (!sk)
		return 0;
	tcp_state = tcp_state_of(sk);
	if (tcp_state == TCP_LISTEN || tcp_state == TCP_CLOSE)
		return 0;
	st = find_state(sk);
	if (!st)
		st = create_state(sk);
	if (!st) {
		count(PODWIRE_KIND_CONNECTION, map_full);
		return 0;
	}
	if (!st->connection_id) {
		if (tcp_state == TCP_SYN_SENT) {
			start_state(st, STAGE_CONNECTING, PODWIRE_ROLE_CLIENT);
			begin_flow(sk);
		} else {
			start_unseen(st, sk);
		}
		st->is_own = podwire_own_pid && (__u32)task->tgid == podwire_own_pid;
	}
	if (st->is_own)
		return 0;
	if (!st->owner.pid) {
		st->owner.cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
		st->owner.pid = task->tgid;
		st->owner.tid = task->pid;
		bpf_core_read(st->owner.comm, sizeof(st->owner.comm), &task->comm);
	}
	if (st->flags & PODWIRE_PREEXISTING)
		announce(sk, st);
	return 0;
}
