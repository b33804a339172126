/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reading kernel sockets: what they are, who owns them, and the way from an fd to one. */
#ifndef PODWIRE_SOCKET_H
#define PODWIRE_SOCKET_H

enum {
	AF_INET = 2,
	AF_INET6 = 10,
	SOCK_STREAM = 1,
	IPPROTO_TCP = 6,
	S_IFMT = 0170000,
	S_IFSOCK = 0140000,
	MSG_PEEK = 0x2,
	MSG_TRUNC = 0x20,
	MSG_ERRQUEUE = 0x2000,
	SOCK_DONE = 1, /* enum sock_flags: a FIN was received */
	PF_EXITING = 0x4,
	PF_IO_WORKER = 0x10,
	PF_KTHREAD = 0x200000,
};

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
};

/*
 * MPTCP carries its bytes through subflows, which are TCP socks of the kernel's own: neither they
 * nor the MPTCP socket is a TCP connection of an application. A connection that fell back to TCP
 * is.
 */
static __always_inline bool is_tcp(struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return sk->sk_protocol == IPPROTO_TCP && sk->sk_type == SOCK_STREAM &&
	       (family == AF_INET || family == AF_INET6);
}

/* The same for a sock that the verifier does not know. */
static __always_inline bool is_tcp_unverified(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP &&
	       BPF_CORE_READ(sk, sk_type) == SOCK_STREAM &&
	       (family == AF_INET || family == AF_INET6);
}

static __always_inline bool is_subflow(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp);
}

/* Held by a process context (lock_sock); softirqs and timers leave such a sock alone. */
static __always_inline bool is_owned(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_lock.owned) != 0;
}

/*
 * Is the last reference to the socket's file gone, i.e. are we below __fput() -> sock_close()?
 * True for close(), for the exit of the last process that had it, and for whatever else drops it;
 * false for shutdown() and for the close of one of several duplicates.
 */
static __always_inline bool is_being_released(struct sock *sk)
{
	struct file *file = BPF_CORE_READ(sk, sk_socket, file);

	if (!file)
		return false;
	if (bpf_core_field_exists(file->f_ref))
		return BPF_CORE_READ(file, f_ref.refcnt.counter) < 0; /* FILE_REF_DEAD or NOREF */
	return BPF_CORE_READ((struct file___count *)file, f_count.counter) == 0;
}

/* The file behind an fd of the current task, unverified, or NULL. */
static __always_inline struct file *file_of_fd(__u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd);
	struct file *file = 0;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/* The sock behind an fd of the current task, unverified; NULL when it is no TCP socket. */
static __always_inline struct sock *sock_of_fd(__u32 fd, struct socket **socket)
{
	struct file *file = file_of_fd(fd);
	struct sock *sk;

	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	*socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(*socket, sk);
	return sk && is_tcp_unverified(sk) ? sk : 0;
}

static __always_inline __u64 cgroup_of_sock(struct sock *sk)
{
	if (!bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return 0;
	return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
}

static __always_inline __u32 netns_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

static __always_inline void map_ipv4(__u8 *to, __be32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

static __always_inline bool is_mapped_ipv4(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

/* Addresses, ports, namespace. A v4-mapped IPv6 socket speaks IPv4 on the wire: family 4. */
static __always_inline void fill_addresses(struct podwire_connection_record *record,
					   struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6 &&
	    bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		bpf_core_read(record->local_address, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(record->remote_address, 16, &sk->__sk_common.skc_v6_daddr);
		record->family = is_mapped_ipv4(record->remote_address) ? 4 : 6;
	} else {
		map_ipv4(record->local_address, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		map_ipv4(record->remote_address, BPF_CORE_READ(sk, __sk_common.skc_daddr));
		record->family = 4;
	}
	record->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (!record->local_port) /* given back by tcp_set_state(TCP_CLOSE); its copy stays */
		record->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	record->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	record->netns = netns_of(sk);
}

#endif
