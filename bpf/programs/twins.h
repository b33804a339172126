/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Kernel functions on a packet's way, each hooked by fentry and fexit or by kprobe and kretprobe;
 * user space attaches one kind of a function, never both. Returns come before entries in this
 * file, hence are attached first: an entry without its return would leave what it kept.
 */

/* `body` is one of the functions of sending.h and receiving.h. */
#define ENTER_1(function, body)                                                                    \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_enter, __u64 a)                                                    \
	{                                                                                          \
		return body(a);                                                                    \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int function##_enter_probe(struct pt_regs *ctx)                                            \
	{                                                                                          \
		return body(ARGUMENT_1(ctx));                                                      \
	}

/* The sk_buff is the third argument of output functions, the second of a neighbour's. */
#define ENTER_2(function, body)                                                                    \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_enter, __u64 a, __u64 b)                                           \
	{                                                                                          \
		return body(a, b);                                                                 \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int function##_enter_probe(struct pt_regs *ctx)                                            \
	{                                                                                          \
		return body(ARGUMENT_1(ctx), ARGUMENT_2(ctx));                                     \
	}

#define ENTER_3(function, body)                                                                    \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_enter, __u64 a, __u64 b, __u64 c)                                  \
	{                                                                                          \
		return body(a, b, c);                                                              \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int function##_enter_probe(struct pt_regs *ctx)                                            \
	{                                                                                          \
		return body(ARGUMENT_1(ctx), ARGUMENT_2(ctx), ARGUMENT_3(ctx));                    \
	}

/* What a kretprobe does with the frame of its function. */
#define EXIT_PROBE(function, call)                                                                 \
	SEC("kretprobe/" #function)                                                                \
	int function##_exit_probe(struct pt_regs *ctx)                                             \
	{                                                                                          \
		struct frame frame = {};                                                           \
		__u64 a, b;                                                                        \
		long result = RESULT(ctx);                                                         \
                                                                                                   \
		if (!pop_frame(ctx, &frame))                                                       \
			return 0;                                                                  \
		a = frame.arguments[0];                                                            \
		b = frame.arguments[1];                                                            \
		(void)b, (void)result;                                                             \
		return call;                                                                       \
	}

#define ENTER_PROBE(function, call)                                                                \
	SEC("kprobe/" #function)                                                                   \
	int function##_enter_probe(struct pt_regs *ctx)                                            \
	{                                                                                          \
		__u64 a = ARGUMENT_1(ctx), b = ARGUMENT_2(ctx);                                    \
                                                                                                   \
		push_frame(ctx, a, b);                                                             \
		return call;                                                                       \
	}

/* Both ends of a function, of which no more is wanted than its first two arguments. */
#define AROUND(function, entered, left)                                                            \
	SEC("fexit/" #function)                                                                    \
	int BPF_PROG(function##_exit, __u64 a, __u64 b)                                            \
	{                                                                                          \
		return left(a, b);                                                                 \
	}                                                                                          \
	EXIT_PROBE(function, left(a, b))                                                           \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_enter, __u64 a, __u64 b)                                           \
	{                                                                                          \
		return entered(a, b);                                                              \
	}                                                                                          \
	ENTER_PROBE(function, entered(a, b))

/* tcp_sendmsg(sk, message, size) and, before v6.5, tcp_sendpage(sk, page, offset, size, flags) */
SEC("fexit/tcp_sendmsg")
int BPF_PROG(tcp_sendmsg_exit, __u64 sk, void *message, __u64 size, int result)
{
	return on_sent(sk, result);
}
EXIT_PROBE(tcp_sendmsg, on_sent(a, (int)result))
SEC("fentry/tcp_sendmsg")
int BPF_PROG(tcp_sendmsg_enter, __u64 sk)
{
	return on_send(sk);
}
ENTER_PROBE(tcp_sendmsg, on_send(a))

SEC("fexit/tcp_sendpage")
int BPF_PROG(tcp_sendpage_exit, __u64 sk, void *page, int offset, __u64 size, int flags, int result)
{
	return on_sent(sk, result);
}
EXIT_PROBE(tcp_sendpage, on_sent(a, (int)result))
SEC("fentry/tcp_sendpage")
int BPF_PROG(tcp_sendpage_enter, __u64 sk)
{
	return on_send(sk);
}
ENTER_PROBE(tcp_sendpage, on_send(a))

/* __ip_queue_xmit(sk, skb, flow, tos), inet6_csk_xmit(sk, skb, flow): ip6_xmit() has more arguments
 * than a trampoline takes before v6.6 */
AROUND(__ip_queue_xmit, on_ip_xmit, on_ip_left)
AROUND(inet6_csk_xmit, on_ip_xmit, on_ip_left)

/* (net, sk, skb) */
#define output_of(net, sk, skb) on_ip_output(skb)
ENTER_3(ip_output, output_of)
ENTER_3(ip6_output, output_of)

/* (neighbour, skb) */
#define neighbour_of(neighbour, skb) on_neighbour(skb)
ENTER_2(neigh_resolve_output, neighbour_of)

/* nf_hook_slow(skb, state, entries, index) */
#define family_of(state) BPF_CORE_READ((struct nf_hook_state *)(state), pf)
#define hook_of(state) BPF_CORE_READ((struct nf_hook_state *)(state), hook)
#define netfilter_of(skb, state) on_netfilter(skb, family_of(state), hook_of(state))
#define netfilter_left_of(skb, state) on_netfilter_left(skb, family_of(state), hook_of(state))
AROUND(nf_hook_slow, netfilter_of, netfilter_left_of)

/* (skb, device, type, original device); (head of the list, type, original device) */
#define list_of(head) on_ip_list()
ENTER_1(ip_rcv, on_ip)
ENTER_1(ipv6_rcv, on_ip)
ENTER_1(ip_list_rcv, list_of)
ENTER_1(ipv6_list_rcv, list_of)
ENTER_1(ip_local_deliver, on_local)
ENTER_1(ip6_input, on_local)

/* (skb) */
#define tcp_of(skb, none) on_tcp(skb)
#define tcp_left_of(skb, none) on_tcp_left(skb)
AROUND(tcp_v4_rcv, tcp_of, tcp_left_of)
AROUND(tcp_v6_rcv, tcp_of, tcp_left_of)

/* tcp_add_backlog(sk, skb) and, since v5.18, a place for the reason */
SEC("fexit/tcp_add_backlog")
int BPF_PROG(tcp_add_backlog_exit, __u64 sk, __u64 skb)
{
	return on_backlog(sk, skb);
}
EXIT_PROBE(tcp_add_backlog, on_backlog(a, b))
ENTER_PROBE(tcp_add_backlog, 0)

/* tcp_rcv_state_process(sk, skb): what tcp_rcv_established(), and so tcp_probe, does not see */
#define queued_of(sk, skb)                                                                         \
	on_queued(sk, skb, BPF_CORE_READ(tcp_control_of(skb), seq),                                \
		  BPF_CORE_READ(tcp_control_of(skb), end_seq),                                     \
		  BPF_CORE_READ((struct tcp_sock *)(sk), rcv_nxt),                                 \
		  BPF_CORE_READ((struct tcp_sock *)(sk), copied_seq))
ENTER_2(tcp_rcv_state_process, queued_of)
